"""topic: its patterns. The rest of its page: tests/scripts/test_exchanges.py."""

from tests.helpers import documented, received, run_script

PRODUCER, CONSUMER = "topic/producer.py", "topic/consumer.py"


def test_consumers_get_what_matches_their_patterns(start):
    """Steps 1 to 3. A key or a pattern can be any string, so it's printed escaped."""
    everything = start(CONSUMER).wait_until_ready()
    kernel = start(CONSUMER, "kern.*").wait_until_ready()
    kernel_or_critical = start(CONSUMER, "kern.*", "*.critical").wait_until_ready()
    disks = start(CONSUMER, "Kern.#.disk", "kern.critical").wait_until_ready()
    one_word = start(CONSUMER, "*").wait_until_ready()  # step 3's default
    keys = "cron.critical", "Kern.disk", "Kern.a.b.disk", "kern.critical", "\x1b[2J"
    lines = []
    for key in keys:
        lines.append(f"{key!r}: 'x'")
        assert run_script(start, PRODUCER, key, "x") == [f" [x] Sent {lines[-1]}"]
    cron, disk, deeper_disk, kern, escape = lines
    for consumer, expected in [
        (everything, lines),
        (kernel, [kern]),
        (kernel_or_critical, [cron, kern]),
        (disks, [disk, deeper_disk, kern]),
        (one_word, [escape]),
    ]:
        consumer.wait_for(expected[-1])
        assert received(consumer) == expected


def test_pattern_with_three_hashes_is_refused_since_4_3_5(start, broker):
    consumer = start(CONSUMER, "#.a.#.b.#")
    if broker.version >= (4, 3, 5):
        assert consumer.wait() == 1
        (line,) = consumer.errors
        assert documented("PRECONDITION_FAILED - Topic binding key …") in line
    else:
        consumer.wait_until_ready()
