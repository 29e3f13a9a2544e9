"""docs/reference.md: the parameters, their defaults, and what they do.

Older calls are in docs/older-notes.md.
"""

import contextlib
import enum
import inspect
import re
import ssl

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.helpers import QUORUM, rows, wait_for_message_count

CHANNEL_CALLS = (
    "queue_declare exchange_declare queue_bind basic_publish basic_consume "
    "basic_qos basic_ack basic_nack basic_reject"
)
CALLS = {
    "ConnectionParameters": pika.ConnectionParameters.__init__,
    "BasicProperties": pika.BasicProperties.__init__,
} | {name: getattr(BlockingChannel, name) for name in CHANNEL_CALLS.split()}
PAGES = ["docs/reference.md", "docs/reference.zh-CN.md"]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("call", CALLS)
def test_table_has_the_parameters_and_defaults_of_the_signature(page, call):
    expected = {}
    for parameter in inspect.signature(CALLS[call]).parameters.values():
        value = parameter.default
        if call == "ConnectionParameters" and value is not parameter.empty:
            value = getattr(pika.ConnectionParameters(), parameter.name, None)
        if isinstance(value, pika.PlainCredentials):
            value = f"PlainCredentials({value.username!r}, {value.password!r})"
        elif not isinstance(value, enum.Enum):
            value = repr(value)
        required = "必填" if ".zh-CN" in page else "required"
        default = required if parameter.default is parameter.empty else f"`{value}`"
        if parameter.name not in ("self", "kwargs"):
            expected[f"`{parameter.name}`"] = default
    table = rows(page, call)
    found = [[row[0].strip("*"), row[1]] for row in table]
    assert found == [[*pair] for pair in expected.items()]
    assert all(all(row) for row in table)
    # The same names are in bold.
    assert [row[0] for row in table] == [row[0] for row in rows(PAGES[0], call)]


DURABLE = {"durable": True, "arguments": QUORUM}
ANOTHER = pika.BasicProperties(user_id="another")
NUMBER = pika.BasicProperties(expiration=1000)
FLOAT = pika.BasicProperties(headers={"a": 1.5})


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c, q: c.basic_qos(prefetch_size=1), "NOT_IMPLEMENTED"),
        (lambda c, q: c.basic_publish("", q, b"", ANOTHER), "user_id"),
        (lambda c, q: c.basic_publish("", q, b"", NUMBER), "self.expiration"),
        (lambda c, q: c.basic_publish("", q, b"", FLOAT), "UnsupportedAMQPField"),
        (lambda c, q: c.exchange_declare(""), "ACCESS_REFUSED"),
        (lambda c, q: c.queue_bind(q, "", "x"), "default exchange"),
        (lambda c, q: c.queue_declare("x" * 256), "ShortStringTooLong"),
        (lambda c, q: c.queue_declare("x", passive=True), "NOT_FOUND"),
        (lambda c, q: c.exchange_declare("x", passive=True), "NOT_FOUND"),
        (lambda c, q: c.queue_declare("x", exclusive=True, **DURABLE), "property"),
        (lambda c, q: c.queue_declare("x", auto_delete=True, **DURABLE), "property"),
        (lambda c, q: c.queue_declare("x", arguments=QUORUM), "property|transient"),
        # Older calls.
        (lambda c, q: c.basic_consume(print, queue=q), "TypeError"),
        (lambda c, q: c.basic_consume(q, print, no_ack=True), "TypeError"),
        (lambda c, q: c.basic_publish("", q, b"", immediate=True), "TypeError"),
        (lambda c, q: c.exchange_declare("x", type="fanout"), "TypeError"),
        (lambda c, q: pika.ConnectionParameters(ssl=True), "TypeError"),
        (lambda c, q: pika.ConnectionParameters(heartbeat_interval=60), "TypeError"),
        (lambda c, q: pika.ConnectionParameters(backpressure_detection=1), "TypeError"),
    ],
)
def test_call_is_refused(channel, queue, call, reason):
    channel.confirm_delivery()
    errors = pika.exceptions.AMQPError, AssertionError, TypeError
    with pytest.raises(errors) as error:
        call(channel, queue)
    assert re.search(reason, repr(error.value))


def test_quorum_queue_sends_2000_messages_without_a_prefetch(channel, declare):
    tasks = declare()
    for _ in range(2010):
        channel.basic_publish("", tasks, b"x")
    wait_for_message_count(2010, channel, tasks)
    channel.basic_consume(tasks, lambda *_: None)
    wait_for_message_count(10, channel, tasks)
    assert all("2000" in str(rows(page, "basic_qos")) for page in PAGES)


def test_global_qos_is_shared_only_before_4_3(broker, channel, queue):
    for _ in range(9):
        channel.basic_publish("", queue, b"x")
    channel.basic_qos(prefetch_count=2, global_qos=True)
    for _ in range(2):
        channel.basic_consume(queue, lambda *_: None)
    left = 7 if broker.version < (4, 3) else 5
    wait_for_message_count(left, channel, queue)


def test_broker_disconnects_after_two_or_three_silent_heartbeats(broker):
    parameters = pika.URLParameters(f"{broker.url}?heartbeat=1")
    client = pika.BlockingConnection(parameters)._impl._transport._sock
    client.settimeout(10)
    received = b""
    with contextlib.suppress(ConnectionError):
        while frames := client.recv(4096):
            received += frames
    heartbeats = received.count(b"\xce")  # each ends with this byte
    assert 4 <= heartbeats <= 6  # the broker sends two per heartbeat timeout


def test_priorities_depend_on_the_queue_and_the_version(broker, channel, declare):
    expected = [3, None, 5]  # the order in which we publish them
    if broker.version >= (4, 3):
        expected = [5, None, 3]  # None counts as 4
    elif broker.version >= (4,):
        expected = [5, 3, None]  # high and normal
    quorum = declare()
    classic = declare({"x-queue-type": "classic", "x-max-priority": 9})
    for queue, order in (quorum, expected), (classic, [5, 3, None]):
        for priority in (3, None, 5):
            properties = pika.BasicProperties(priority=priority)
            channel.basic_publish("", queue, b"", properties)
        wait_for_message_count(3, channel, queue)
        assert [channel.basic_get(queue)[1].priority for _ in range(3)] == order


def test_full_queue_drops_its_oldest_message(channel, declare):
    queue = declare({"x-queue-type": "classic", "x-max-length": 1})
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"old")
    channel.basic_publish("", queue, b"new")
    assert channel.basic_get(queue)[2] == b"new"


def test_client_and_broker_agree_on_limits(channel):
    agreed = channel.connection._impl.params
    assert (agreed.heartbeat, agreed.channel_max) == (60, 2047)
    options = pika.SSLOptions(ssl.create_default_context())
    assert pika.ConnectionParameters(ssl_options=options).port == 5671
