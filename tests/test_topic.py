"""topic/: what its comments and its section of the README claim."""

import itertools

import pytest
from conftest import received

PATTERNS = [
    ["#"],
    [],
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
KEYS = sorted({".".join(words) for n in range(5) for words in itertools.product(WORDS, repeat=n)})


def matches(pattern: list[str], words: list[str]) -> bool:
    """The rule as the README gives it: * is one word, # is any number of words."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(matches(pattern[1:], words[i:]) for i in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and matches(pattern[1:], words[1:])


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
def test_the_matcher_of_these_tests_knows_the_rule(pattern, key, expected):
    assert matches(split(pattern), split(key)) == expected


def test_a_message_goes_where_a_pattern_matches_and_once(start, channel):
    consumers = [start("topic/consumer.py", *patterns) for patterns in PATTERNS]
    for consumer in consumers:
        consumer.ready()
    for key in KEYS:
        channel.basic_publish(exchange="topic_logs", routing_key=key, body=key.encode())
    for patterns, consumer in zip(PATTERNS, consumers, strict=True):
        wanted = [split(pattern) for pattern in patterns or ["#"]]
        expected = [
            f"{key!r}: {key!r}"
            for key in KEYS
            if any(matches(pattern, split(key)) for pattern in wanted)
        ]
        consumer.wait_for("Received", times=len(expected))
        assert consumer.stop() == 0
        assert received(consumer) == expected, patterns


def test_both_ends(start):
    kernel = start("topic/consumer.py", "kern.*", "kern.#").ready()
    critical = start("topic/consumer.py", "*.critical").ready()
    for key in ("kern.critical", "cron.critical", "kern.info"):
        producer = start("topic/producer.py", key, f"of {key}")
        assert producer.end() == 0
        assert producer.lines == [f" [x] Sent '{key}': 'of {key}'"]
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


def test_defaults(start):
    consumer = start("topic/consumer.py").ready()
    assert start("topic/producer.py").end() == 0
    consumer.wait_for("Received")
    assert received(consumer) == ["'anonymous.info': 'Hello World!'"]


def test_a_message_that_no_pattern_matches_is_reported(start):
    start("topic/consumer.py", "kern.*").ready()
    producer = start("topic/producer.py", "kern.a.b", "lost")
    assert producer.end() == 1
    assert producer.errors == [" [!] Nobody got 'lost': no binding matches the key 'kern.a.b'"]
    assert producer.lines == []
