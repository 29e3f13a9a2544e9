"""headers: what its scripts and its page say. The rule: tests/facts/test_routing.py."""

from tests.helpers import documented, edited, received, run_script

PRODUCER, CONSUMER = "advanced/headers/producer.py", "advanced/headers/consumer.py"


def test_consumers_get_what_matches_their_binding(start):
    anything = start(CONSUMER).wait_until_ready()
    both = start(CONSUMER, "all", "facility=kern", "level=5").wait_until_ready()
    either = start(CONSUMER, "any", "facility=kern", "level=5").wait_until_ready()
    messages = {
        "'Login failed' {'facility': 'auth', 'level': 5}": ["facility=auth", "level=5"],
        "'Booted' {'facility': 'kern', 'level': 1}": ["facility=kern", "level=1"],
        "'Hello' {}": [],
        "'Panic' {'facility': 'kern', 'level': 5}": ["facility=kern", "level=5"],
    }
    for line, headers in messages.items():
        assert run_script(start, PRODUCER, line.split("'")[1], *headers) == [
            f" [x] Sent {line}"
        ]
    login, boot, hello, panic = messages
    for consumer in (anything, both, either):
        consumer.wait_for("'Panic'")
    assert received(anything) == [login, boot, hello, panic]
    assert received(both) == [panic]
    assert received(either) == [login, boot, panic]


def test_types_count_and_no_value_matches_any_value(start):
    number = start(CONSUMER, "all", "level=5").wait_until_ready()
    string = start(CONSUMER, "all", 'level="5"').wait_until_ready()
    any_level = start(CONSUMER, "all", "level").wait_until_ready()
    run_script(start, PRODUCER, "a number", "level=5")
    run_script(start, PRODUCER, "a string", 'level="5"')
    assert run_script(start, PRODUCER, "none", "level") == [
        " [x] Sent 'none' {'level': None}"
    ]
    any_level.wait_for("'none'")
    number.wait_for("'a number'")
    string.wait_for("'a string'")
    assert received(number) == ["'a number' {'level': 5}"]
    assert received(string) == ["'a string' {'level': '5'}"]
    assert received(any_level) == [
        "'a number' {'level': 5}",
        "'a string' {'level': '5'}",
        "'none' {'level': None}",
    ]


def test_consumer_uses_names_with_x_if_told_to(start):
    ignored = start(CONSUMER, "all", "x-trace=7").wait_until_ready()
    used = start(CONSUMER, "all-with-x", "x-trace=7").wait_until_ready()
    run_script(start, PRODUCER, "one")
    run_script(start, PRODUCER, "two", "x-trace=7")
    ignored.wait_for("'two'")
    used.wait_for("'two'")
    assert received(ignored) == ["'one' {}", "'two' {'x-trace': 7}"]
    assert received(used) == ["'two' {'x-trace': 7}"]


def test_message_that_no_binding_matches_is_reported(start, tmp_path):
    start(CONSUMER, "any").wait_until_ready()
    start(CONSUMER, "all", "level=5").wait_until_ready()
    producer = start(PRODUCER, "a string", 'level="5"')
    assert producer.wait() == 1
    line = " [!] Not delivered: no binding matches {'level': '5'}. Start a consumer."
    assert (producer.output, producer.errors) == ([], [line])
    copy = edited(tmp_path, PRODUCER, {"mandatory=True,": ""})
    without = start(copy, "a string", 'level="5"')
    assert without.wait() == 0
    assert without.output == [" [x] Sent 'a string' {'level': '5'}"]


def test_consumer_reports_invalid_match_in_one_line(start):
    consumer = start(CONSUMER, "level=5")
    assert consumer.wait() == 1
    (line,) = consumer.errors
    assert documented("PRECONDITION_FAILED - Invalid x-match …")[:-1] in line
    assert "expected all, any, all-with-x, or any-with-x" in line
    assert consumer.output == []
