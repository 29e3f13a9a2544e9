"""topic/: what its comments and its page claim."""

import itertools

import pytest
from conftest import received

PATTERNS = [
    ["#"],
    ["*"],
    ["a"],
    [""],
    ["a.#.b"],
    ["a.*.b"],
    ["*.*"],
    ["#.b", "a.#"],
    ["a.", "*.a.*"],
    ["#.#"],
    ["a*", "a#"],
]
WORDS = ["a", "b", ""]
KEYS = sorted(
    {".".join(words) for n in range(5) for words in itertools.product(WORDS, repeat=n)}
)


def matches(pattern: list[str], words: list[str]) -> bool:
    """Apply the rule: * is one word, # is any number of words."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(matches(pattern[1:], words[i:]) for i in range(len(words) + 1))
    return (
        bool(words)
        and pattern[0] in ("*", words[0])
        and matches(pattern[1:], words[1:])
    )


def split(key: str) -> list[str]:
    return key.split(".") if key else []  # the empty key has no word, not an empty one


@pytest.mark.parametrize(
    ("pattern", "key", "expected"),
    [
        ("a.*", "a.b", True),
        ("a.*", "a", False),
        ("a.*", "a.b.c", False),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#", "", True),
        ("*", "", False),
        ("a.#.b", "a.b", True),
        ("a..b", "a..b", True),
        ("a.*.b", "a..b", True),
    ],
)
def test_matcher_of_these_tests_knows_the_rule(pattern, key, expected):
    assert matches(split(pattern), split(key)) == expected


def test_message_goes_once_to_each_queue_with_a_matching_pattern(channel):
    queues = [channel.queue_declare("", exclusive=True).method.queue for _ in PATTERNS]
    for patterns, queue in zip(PATTERNS, queues, strict=True):
        for pattern in patterns:
            channel.queue_bind(queue, "amq.topic", pattern)
    channel.confirm_delivery()  # a confirm means that it's in the queues
    for key in KEYS:
        channel.basic_publish("amq.topic", key, key.encode())
    for patterns, queue in zip(PATTERNS, queues, strict=True):
        wanted = [split(pattern) for pattern in patterns]
        expected = [
            key
            for key in KEYS
            if any(matches(pattern, split(key)) for pattern in wanted)
        ]
        bodies = iter(lambda q=queue: channel.basic_get(q, auto_ack=True)[2], None)
        assert [body.decode() for body in bodies] == expected, patterns


def test_scripts_route_by_pattern(start):
    kernel = start("topic/consumer.py", "kern.*", "kern.#").wait_until_ready()
    critical = start("topic/consumer.py", "*.critical").wait_until_ready()
    for key in ("kern.critical", "cron.critical", "kern.info"):
        producer = start("topic/producer.py", key, f"of {key}")
        assert producer.wait() == 0
        assert producer.output == [f" [x] Sent '{key}': 'of {key}'"]
    kernel.wait_for("kern.info")
    critical.wait_for("cron.critical")
    assert received(kernel) == [
        "'kern.critical': 'of kern.critical'",
        "'kern.info': 'of kern.info'",
    ]
    assert received(critical) == [
        "'kern.critical': 'of kern.critical'",
        "'cron.critical': 'of cron.critical'",
    ]


def test_consumer_without_patterns_gets_everything(start):
    consumer = start("topic/consumer.py").wait_until_ready()
    assert start("topic/producer.py").wait() == 0
    consumer.wait_for("Received 'anonymous.info': 'Hello World!'")


def test_message_that_no_pattern_matches_is_reported(start):
    start("topic/consumer.py", "kern.*").wait_until_ready()
    producer = start("topic/producer.py", "kern.a.b", "lost")
    assert producer.wait() == 1
    assert producer.output == []
    assert producer.errors == [
        " [!] Not delivered: no pattern matches 'kern.a.b'. Start a consumer."
    ]


def test_pattern_with_three_hashes_is_refused_since_4_3_5(start, broker):
    consumer = start("topic/consumer.py", "#.a.#.b.#")
    if not broker.before(4, 3, 5):
        assert consumer.wait() == 1
        assert "PRECONDITION_FAILED" in consumer.errors[0]
    else:
        consumer.wait_until_ready()
