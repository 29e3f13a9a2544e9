"""How exchanges choose queues, and what the broker sends a consumer in advance."""

from datetime import datetime
from decimal import Decimal

import pika
import pytest

from tests.helpers import message_count


def publish(channel, exchange, key="", headers=None):
    channel.confirm_delivery()  # so that the message is in its queues
    properties = pika.BasicProperties(headers=headers)
    channel.basic_publish(exchange, key, b"x", properties)


@pytest.mark.parametrize(
    ("bound", "key", "matches"),
    [
        ("error", "error", True),
        ("error", "Error", False),
        ("error", "errors", False),
        ("error", "", False),
        ("#", "error", False),
        ("", "", True),  # docs/older-notes.md
    ],
)
def test_direct_exchange_wants_exactly_the_key(channel, queue, bound, key, matches):
    channel.queue_bind(queue, "amq.direct", bound)
    publish(channel, "amq.direct", key)
    assert message_count(channel, queue) == matches


# The first rows are the table on topic's page.
@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("kern.*", "kern.info", True),
        ("kern.*", "kern.critical", True),
        ("kern.*", "kern", False),
        ("kern.*", "kern.disk.info", False),
        ("kern.*", "cron.info", False),
        ("*.critical", "cron.critical", True),
        ("*.critical", "critical", False),
        ("*.critical", "kern.disk.critical", False),
        ("kern.#", "kern", True),
        ("kern.#", "kern.disk.info", True),
        ("kern.#", "kernel.info", False),
        ("#", "", True),
        ("#", "kern.disk.info", True),
        ("kern.#.disk", "kern.disk", True),
        ("kern.#.disk", "kern.a.b.disk", True),
        ("kern.#.disk", "kern.a", False),
        ("ker*", "kern", False),
        ("ker*", "ker*", True),
        ("kern", "kern", True),
        ("kern", "kern.info", False),
        ("Kern", "kern", False),
    ],
)
def test_topic_exchange_compares_words(channel, queue, pattern, key, matches):
    channel.queue_bind(queue, "amq.topic", pattern)
    publish(channel, "amq.topic", key)
    assert message_count(channel, queue) == matches


@pytest.mark.parametrize(
    ("binding", "headers", "matches"),
    [
        # all: each header of the binding is in the message, which can have more.
        ({"x-match": "all", "a": 1, "b": 2}, {"a": 1, "b": 2}, True),
        ({"x-match": "all", "a": 1, "b": 2}, {"a": 1}, False),
        ({"x-match": "all", "a": 1}, {"a": 1, "b": 2}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),  # all is the default
        # any: one of them is enough.
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 1, "b": 3}, True),
        ({"x-match": "any", "a": 1, "b": 2}, {"a": 2, "b": 1}, False),
        # Nothing to compare: all is satisfied, any isn't.
        (None, {"a": 1}, True),
        ({"x-match": "all"}, None, True),
        ({"x-match": "any"}, {"a": 1}, False),
        # Names and values are compared exactly, and their types count.
        ({"a": "kern"}, {"a": "kern"}, True),
        ({"a": "kern"}, {"a": "Kern"}, False),
        ({"a": "kern"}, {"A": "kern"}, False),
        ({"a": "5"}, {"a": 5}, False),
        ({"a": 1}, {"a": True}, False),
        # None in a binding: the header is there, with any value.
        ({"a": None}, {"a": "kern"}, True),
        ({"a": None}, {"b": 2}, False),
        ({"a": 1}, {"a": None}, False),
        # Names that begin with x- count only in the forms with -with-x.
        ({"x-match": "all", "x-a": 1, "b": 1}, {"b": 1}, True),
        ({"x-match": "any", "x-a": 1}, {"x-a": 1}, False),
        ({"x-match": "all-with-x", "x-a": 1, "b": 1}, {"b": 1}, False),
        ({"x-match": "any-with-x", "x-a": 1, "b": 1}, {"x-a": 1}, True),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 2}, False),
    ],
)
def test_headers_exchange_compares_values(channel, queue, binding, headers, matches):
    channel.queue_bind(queue, "amq.headers", arguments=binding)
    publish(channel, "amq.headers", "any.key", headers)
    assert message_count(channel, queue) == matches


NOON = datetime(2026, 11, 25, 12)


@pytest.mark.parametrize(
    "value", ["5", 5, 2**40, True, b"5", Decimal("1.5"), [1, "a"], {"a": 1}, NOON]
)
def test_pika_and_a_headers_exchange_take_many_types(broker, channel, queue, value):
    channel.queue_bind(queue, "amq.headers", arguments={"a": value})
    publish(channel, "amq.headers", headers={"a": value})
    matches = value != NOON or broker.version < (3, 11)
    assert message_count(channel, queue) == matches


def test_auto_ack_ignores_the_prefetch(channel, queue):
    channel.basic_qos(prefetch_count=1)
    for _ in range(10):
        publish(channel, "", queue)
    # Pika has no time to call it: we never wait for messages.
    channel.basic_consume(queue, lambda *message: None, auto_ack=True)
    assert message_count(channel, queue) == 0
