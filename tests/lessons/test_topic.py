"""topic: what its comments and its page say. The rule: tests/facts/test_routing.py."""

from tests.helpers import documented, edited, received, run_script

PRODUCER, CONSUMER = "topic/producer.py", "topic/consumer.py"
# Lines of consumer.py.
PATTERNS = 'parser.add_argument("pattern", nargs="*", default=["#"], help="default: #")'


def test_consumers_get_what_matches_their_patterns(start):
    consumers = {
        (): ["kern.critical", "cron.info", "cron.critical", "anonymous.info"],
        ("kern.*",): ["kern.critical"],
        ("kern.*", "*.critical"): ["kern.critical", "cron.critical"],
    }
    running = [start(CONSUMER, *patterns).wait_until_ready() for patterns in consumers]
    for key in ("kern.critical", "cron.info", "cron.critical"):
        assert run_script(start, PRODUCER, key, "x") == [f" [x] Sent '{key}': 'x'"]
    assert run_script(start, PRODUCER) == [" [x] Sent 'anonymous.info': 'Hello World!'"]
    running[0].wait_for("anonymous.info")
    running[1].wait_for("kern.critical")
    running[2].wait_for("cron.critical")
    for consumer, keys in zip(running, consumers.values(), strict=True):
        assert [line.split("'")[1] for line in received(consumer)] == keys


def test_consumer_without_patterns_gets_keys_of_any_length(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    for key in ("kern", "kern.disk.info", ""):
        channel.basic_publish("topic_logs", key, b"x")
    consumer.wait_for("Received '': 'x'")
    assert received(consumer) == ["'kern': 'x'", "'kern.disk.info': 'x'", "'': 'x'"]


def test_default_of_one_word_would_miss_the_others(start, tmp_path):
    copy = edited(tmp_path, CONSUMER, {PATTERNS: PATTERNS.replace('["#"]', '["*"]')})
    one_word = start(copy).wait_until_ready()
    everything = start(CONSUMER).wait_until_ready()
    run_script(start, PRODUCER)
    everything.wait_for("anonymous.info")
    run_script(start, PRODUCER, "last")
    one_word.wait_for("last")
    assert received(one_word) == ["'last': 'Hello World!'"]


def test_pattern_is_used_as_it_is_typed(start):
    consumer = start(CONSUMER, "Kern.#.disk").wait_until_ready()
    for key in ("Kern.disk", "Kern.a.b.disk"):
        run_script(start, PRODUCER, key)
    assert start(PRODUCER, "kern.disk").wait() == 1
    consumer.wait_for("Received 'Kern.a.b.disk'")
    assert len(received(consumer)) == 2


def test_message_that_no_pattern_matches_is_reported(start, tmp_path):
    start(CONSUMER, "kern.*").wait_until_ready()
    producer = start(PRODUCER, "kernel.info", "Booted")
    assert producer.wait() == 1
    assert producer.output == []
    assert producer.errors == [
        " [!] Not delivered: no pattern matches 'kernel.info'. Start a consumer."
    ]
    copy = edited(tmp_path, PRODUCER, {"mandatory=True,": ""})
    without = start(copy, "kernel.info", "Booted")
    assert without.wait() == 0
    assert without.output == [" [x] Sent 'kernel.info': 'Booted'"]


def test_pattern_with_three_hashes_is_refused_since_4_3_5(start, broker):
    consumer = start(CONSUMER, "#.a.#.b.#")
    if broker.version >= (4, 3, 5):
        assert consumer.wait() == 1
        (line,) = consumer.errors
        assert documented("PRECONDITION_FAILED - Topic binding key …")[:-1] in line
    else:
        consumer.wait_until_ready()
