"""advanced/headers: bindings, headers, and which of them match."""

import datetime

import pika
import pytest
from conftest import received
from script import ScriptProcess

PRODUCER, CONSUMER = "advanced/headers/producer.py", "advanced/headers/consumer.py"


@pytest.fixture
def exchange(channel, start):
    """The exchange, declared as the scripts do. `start` deletes it afterwards."""
    channel.exchange_declare("headers_logs", "headers", durable=True)
    return "headers_logs"


@pytest.fixture
def queue(channel):
    return channel.queue_declare("", exclusive=True).method.queue


def publish(channel, exchange, headers):
    properties = pika.BasicProperties(headers=headers)
    channel.basic_publish(exchange, "", b"x", properties)


def copies(channel, queue):
    """Return how many messages the queue has, and take them."""
    count = 0
    while channel.basic_get(queue, auto_ack=True)[0]:
        count += 1
    return count


@pytest.mark.parametrize(
    ("binding", "headers", "matches"),
    [
        # all: each header of the binding is in the message, which can have more.
        ({"x-match": "all", "a": 1, "b": 2}, {"a": 1, "b": 2}, True),
        ({"x-match": "all", "a": 1, "b": 2}, {"a": 1}, False),
        ({"x-match": "all", "a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        # any: one of them is enough.
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 1}, True),
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 1, "b": 3}, True),
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 2, "b": 1}, False),
        # Nothing to compare: all is satisfied, any isn't.
        (None, None, True),
        (None, {"a": 1}, True),
        ({"x-match": "all"}, None, True),
        ({"x-match": "all"}, {"a": 1}, True),
        ({"x-match": "any"}, None, False),
        ({"x-match": "any"}, {"a": 1}, False),
        # Keys and values are compared exactly, and their types count.
        ({"a": "kern"}, {"a": "kern"}, True),
        ({"a": "kern"}, {"a": "Kern"}, False),
        ({"a": "kern"}, {"A": "kern"}, False),
        ({"a": "2"}, {"a": 2}, False),
        ({"a": 2}, {"a": "2"}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": True}, {"a": True}, True),
        ({"a": True}, {"a": "True"}, False),
        ({"a": 2**40}, {"a": 2**40}, True),
        # None in a binding: the header is there, with any value.
        ({"a": None}, {"a": "kern"}, True),
        ({"a": None}, {"a": 2}, True),
        ({"a": None}, {"b": 2}, False),
        ({"x-match": "any", "a": None, "b": 1}, {"a": 2}, True),
        ({"a": 1}, {"a": None}, False),
        # Keys that begin with x- count only in the forms with -with-x.
        ({"x-match": "all", "x-a": 1}, None, True),
        ({"x-match": "all", "x-a": 1, "b": 1}, {"b": 1}, True),
        ({"x-match": "any", "x-a": 1}, {"x-a": 1}, False),
        ({"x-match": "all-with-x", "x-a": 1}, {"x-a": 1}, True),
        ({"x-match": "all-with-x", "x-a": 1}, None, False),
        ({"x-match": "all-with-x", "x-a": 1, "b": 1}, {"b": 1}, False),
        ({"x-match": "any-with-x", "x-a": 1, "b": 1}, {"x-a": 1}, True),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 2}, False),
    ],
)
def test_binding_matches_headers(channel, exchange, queue, binding, headers, matches):
    channel.queue_bind(queue, exchange, arguments=binding)
    publish(channel, exchange, headers)
    assert copies(channel, queue) == int(matches)


def test_two_matching_bindings_deliver_one_copy(channel, exchange, queue):
    channel.queue_bind(queue, exchange, arguments={"x-match": "all", "a": 1})
    channel.queue_bind(queue, exchange, arguments={"x-match": "any", "a": 1, "b": 1})
    publish(channel, exchange, {"a": 1, "b": 1})
    assert copies(channel, queue) == 1


def test_routing_key_is_ignored(channel, exchange, queue):
    channel.queue_bind(queue, exchange, routing_key="other", arguments={"a": 1})
    publish(channel, exchange, {"a": 1})
    assert copies(channel, queue) == 1


def test_datetime_matches_only_on_3_10(broker, channel, exchange, queue):
    noon = datetime.datetime(2026, 11, 25, 12)
    channel.queue_bind(queue, exchange, arguments={"at": noon})
    publish(channel, exchange, {"at": noon})
    assert copies(channel, queue) == int(broker.before(3, 11))


def test_exchange_is_durable(start, channel):
    start(CONSUMER).wait_until_ready()
    channel.exchange_declare("headers_logs", "headers", durable=True)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="durable"):
        channel.exchange_declare("headers_logs", "headers", durable=False)


def test_consumers_get_what_matches_their_binding(start):
    anything = start(CONSUMER).wait_until_ready()
    both = start(CONSUMER, "all", "facility=kern", "level=5").wait_until_ready()
    either = start(CONSUMER, "any", "facility=kern", "level=5").wait_until_ready()
    consumers = [anything, both, either]
    messages = {
        "'Kernel panic' {'facility': 'kern', 'level': 5}": ["facility=kern", "level=5"],
        "'Login failed' {'facility': 'auth', 'level': 5}": ["facility=auth", "level=5"],
        "'Booted' {'facility': 'kern', 'level': 1}": ["facility=kern", "level=1"],
        "'Hello' {}": [],
        "'Goodbye' {'facility': 'kern', 'level': 5}": ["facility=kern", "level=5"],
    }
    for line, headers in messages.items():
        text = line.split("'")[1]
        producer = start(PRODUCER, text, *headers)
        assert producer.wait() == 0
        assert producer.output == [f" [x] Sent {line}"]
    ScriptProcess.wait_until(
        lambda: all(consumer.count("Goodbye") for consumer in consumers), consumers
    )
    panic, login, boot, hello, goodbye = messages
    assert received(anything) == [panic, login, boot, hello, goodbye]
    assert received(both) == [panic, goodbye]
    assert received(either) == [panic, login, boot, goodbye]


def test_key_without_value_matches_any_value(start):
    consumer = start(CONSUMER, "all", "facility").wait_until_ready()
    assert start(PRODUCER, "one", "facility=kern").wait() == 0
    assert start(PRODUCER, "two", "facility=2").wait() == 0
    assert start(PRODUCER, "three", "level=5").wait() == 1
    consumer.wait_for("'two'")
    assert received(consumer) == ["'one' {'facility': 'kern'}", "'two' {'facility': 2}"]


def test_number_in_quotes_is_text(start):
    number = start(CONSUMER, "all", "level=5").wait_until_ready()
    text = start(CONSUMER, "all", 'level="5"').wait_until_ready()
    assert start(PRODUCER, "one", "level=5").wait() == 0
    assert start(PRODUCER, "two", 'level="5"').wait() == 0
    number.wait_for("'one'")
    text.wait_for("'two'")
    assert received(number) == ["'one' {'level': 5}"]
    assert received(text) == ["'two' {'level': '5'}"]


def test_consumer_uses_keys_with_x_if_told_to(start):
    ignored = start(CONSUMER, "all", "x-trace=7").wait_until_ready()
    used = start(CONSUMER, "all-with-x", "x-trace=7").wait_until_ready()
    assert start(PRODUCER, "one").wait() == 0
    assert start(PRODUCER, "two", "x-trace=7").wait() == 0
    ignored.wait_for("'two'")
    used.wait_for("'two'")
    assert received(ignored) == ["'one' {}", "'two' {'x-trace': 7}"]
    assert received(used) == ["'two' {'x-trace': 7}"]


def test_producer_reports_unroutable_message(start):
    start(CONSUMER, "any").wait_until_ready()
    start(CONSUMER, "all", "level=4").wait_until_ready()
    producer = start(PRODUCER, "x", "level=5")
    assert producer.wait() == 1
    line = " [!] Not delivered: no binding matches {'level': 5}. Start a consumer."
    assert (producer.output, producer.errors) == ([], [line])


def test_consumer_reports_invalid_match_in_one_line(start):
    consumer = start(CONSUMER, "some", "level=5")
    assert consumer.wait() == 1
    (line,) = consumer.errors
    assert "(406)" in line
    assert "expected all, any, all-with-x, or any-with-x" in line
    assert consumer.output == []
