"""headers: its bindings. The rest of its page: tests/scripts/test_exchanges.py."""

from tests.helpers import documented, received, run_script

PRODUCER, CONSUMER = "advanced/headers/producer.py", "advanced/headers/consumer.py"


def test_consumers_get_what_matches_their_binding(start):
    """Steps 1 and 3. Which headers match: tests/facts/test_routing.py."""
    both = start(CONSUMER, "all", "facility=kern", "level=5").wait_until_ready()
    either = start(CONSUMER, "any", "facility=kern", "level=5").wait_until_ready()
    string = start(CONSUMER, "all", 'level="5"').wait_until_ready()
    any_level = start(CONSUMER, "all", "level").wait_until_ready()
    everything = start(CONSUMER).wait_until_ready()
    messages = {
        "'Booted' {'facility': 'kern', 'level': 1}": ["facility=kern", "level=1"],
        "'a number' {'level': 5}": ["level=5"],
        "'a string' {'level': '5'}": ['level="5"'],
        "'no value' {'level': None}": ["level"],
        "'Panic' {'facility': 'kern', 'level': 5}": ["facility=kern", "level=5"],
        "'Hello' {}": [],
    }
    for line, headers in messages.items():
        message = line.split("'")[1]
        assert run_script(start, PRODUCER, message, *headers) == [f" [x] Sent {line}"]
    boot, number, text, no_value, panic, _ = messages
    for consumer, expected in [
        (both, [panic]),
        (either, [boot, number, panic]),
        (string, [text]),
        (any_level, [boot, number, text, no_value, panic]),
        (everything, list(messages)),
    ]:
        consumer.wait_for(expected[-1])
        assert received(consumer) == expected


def test_consumer_reports_invalid_match_in_one_line(start):
    """Step 4."""
    consumer = start(CONSUMER, "level=5")
    assert consumer.wait() == 1
    (line,) = consumer.errors
    assert documented("PRECONDITION_FAILED - Invalid x-match …") in line
    assert "expected all, any, all-with-x, or any-with-x" in line
    assert consumer.output == []
