"""direct: its routing. The rest of its page: tests/scripts/test_exchanges.py."""

from tests.helpers import received, run_script

PRODUCER, CONSUMER = "direct/producer.py", "direct/consumer.py"


def test_consumers_get_the_severities_that_they_name(start):
    """Steps 1 and 2. A severity can be any string, so it's printed escaped."""
    everything = start(CONSUMER).wait_until_ready()
    errors = start(CONSUMER, "error").wait_until_ready()
    others = start(CONSUMER, "error", "Error", "\x1b[2J").wait_until_ready()
    lines = []
    for severity in ("info", "warning", "Error", "\x1b[2J", "error"):
        lines.append(f"{severity!r}: 'Disk full'")
        sent = run_script(start, PRODUCER, severity, "Disk full")
        assert sent == [f" [x] Sent {lines[-1]}"]
    info, warning, capital, escape, error = lines
    for consumer, expected in [
        (everything, [info, warning, error]),
        (errors, [error]),
        (others, [capital, escape, error]),
    ]:
        consumer.wait_for(error)
        assert received(consumer) == expected
    # No default names this one.
    assert start(PRODUCER, "critical").wait() == 1
