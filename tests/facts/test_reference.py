"""docs/reference.md: the parameters, their defaults, and what they do."""

from __future__ import annotations

import contextlib
import enum
import inspect
import ssl
from functools import partial

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.helpers import QUORUM, connect, message_count, wait_for_message_count
from tools.common import wait_until
from tools.pages import sections

CALLS = {
    "ConnectionParameters": pika.ConnectionParameters.__init__,
    "BasicProperties": pika.BasicProperties.__init__,
    "queue_declare": BlockingChannel.queue_declare,
    "exchange_declare": BlockingChannel.exchange_declare,
    "queue_bind": BlockingChannel.queue_bind,
    "basic_publish": BlockingChannel.basic_publish,
    "basic_consume": BlockingChannel.basic_consume,
    "basic_qos": BlockingChannel.basic_qos,
    "basic_ack": BlockingChannel.basic_ack,
    "basic_nack": BlockingChannel.basic_nack,
    "basic_reject": BlockingChannel.basic_reject,
}
PAGES = ["docs/reference.md", "docs/reference.zh-CN.md"]
OFTEN_USED = {"host", "port", "credentials", "queue", "exchange", "exchange_type"}


def rows(page: str, title: str) -> list[list[str]]:
    """Return the rows of the first table in a section."""
    (part,) = [part for part in sections(page) if part.title == title]
    return part.tables[0][1:]


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


def test_both_languages_mark_the_same_parameters():
    english, chinese = (
        {(call, r[0]) for call in CALLS for r in rows(page, call) if "**" in r[0]}
        for page in PAGES
    )
    assert english == chinese
    assert {name.strip("*`") for _, name in english} >= OFTEN_USED


# Single cells.

DURABLE = {"durable": True, "arguments": QUORUM}
ANOTHER = pika.BasicProperties(user_id="another")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda c, q: c.basic_qos(prefetch_size=1), "NOT_IMPLEMENTED"),
        (lambda c, q: c.basic_publish("", q, b"", ANOTHER), "user_id"),
        (lambda c, q: c.queue_bind(q, "", "x"), "default exchange"),
        (lambda c, q: c.queue_declare("x" * 256), "ShortStringTooLong"),
        (lambda c, q: c.queue_declare("x", passive=True), "NOT_FOUND"),
        (lambda c, q: c.exchange_declare("x", passive=True), "NOT_FOUND"),
        (lambda c, q: c.queue_declare("x", exclusive=True, **DURABLE), "property"),
        (lambda c, q: c.queue_declare("x", auto_delete=True, **DURABLE), "property"),
    ],
)
def test_call_is_refused(channel, queue, call, reason):
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.AMQPError) as error:
        call(channel, queue)
    assert reason in repr(error.value)


def test_quorum_queue_must_be_durable(channel):
    with pytest.raises(pika.exceptions.AMQPError, match=r"property|transient_nonexcl"):
        channel.queue_declare("x", arguments=QUORUM)


def test_expiration_must_be_a_str(channel):
    with pytest.raises(AssertionError):
        channel.basic_publish("", "x", b"", pika.BasicProperties(expiration=1000))


def test_quorum_queue_sends_2000_messages_without_a_prefetch(channel, declare):
    tasks = declare()
    for _ in range(2010):
        channel.basic_publish("", tasks, b"x")
    wait_for_message_count(2010, channel, tasks)
    channel.basic_consume(tasks, lambda *_: None)
    wait_for_message_count(10, channel, tasks)
    for page in PAGES:
        (cell,) = [row[2] for row in rows(page, "basic_qos") if "_count`" in row[0]]
        assert "2000" in cell


def test_global_qos_is_shared_only_before_4_3(broker, channel, queue):
    for _ in range(9):
        channel.basic_publish("", queue, b"x")
    channel.basic_qos(prefetch_count=2, global_qos=True)
    for _ in range(2):
        channel.basic_consume(queue, lambda *_: None)
    shared = broker.version < (4, 3)
    wait_for_message_count(9 - 2 if shared else 9 - 4, channel, queue)


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


def test_cc_adds_a_routing_key(channel, queue):
    properties = pika.BasicProperties(headers={"CC": [queue]})
    channel.basic_publish("", "no such queue", b"x", properties)
    assert channel.basic_get(queue, auto_ack=True)[2] == b"x"


def test_binding_without_a_key_has_the_queues_name_as_key(channel, queue):
    channel.queue_bind(queue, "amq.direct")
    channel.basic_publish("amq.direct", queue, b"x")
    assert channel.basic_get(queue, auto_ack=True)[2] == b"x"


def test_reject_requeues_or_drops(channel, queue):
    channel.basic_publish("", queue, b"x")
    for requeue in (True, False):
        method, _, _ = channel.basic_get(queue)
        channel.basic_reject(method.delivery_tag, requeue=requeue)
    assert method.redelivered
    assert channel.basic_get(queue) == (None, None, None)


def test_auto_delete_waits_for_a_first_consumer(channel):
    channel.queue_declare("temporary", auto_delete=True, exclusive=True)
    assert message_count(channel, "temporary") == 0
    channel.basic_cancel(channel.basic_consume("temporary", print))
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        message_count(channel, "temporary")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_only_a_classic_queue_can_have_an_exclusive_consumer(
    channel, declare, queue_type
):
    queue = declare({"x-queue-type": queue_type})
    channel.basic_consume(queue, print, exclusive=True)
    other = channel.connection.channel()
    refused = pytest.raises(
        pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"
    )
    with refused if queue_type == "classic" else contextlib.nullcontext():
        other.basic_consume(queue, print)


@pytest.mark.parametrize("argument", ["x-delivery-limit", "x-consumer-timeout"])
def test_classic_queue_refuses_the_arguments_of_quorum_queues(
    broker, channel, declare, argument
):
    declare({argument: 60_000})
    if broker.version >= (4, 3):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=argument):
            declare({"x-queue-type": "classic", argument: 60_000})


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_priorities_depend_on_the_queue(broker, channel, declare, queue_type):
    arguments = {"x-queue-type": queue_type}
    if queue_type == "classic":
        arguments["x-max-priority"] = 9
        expected = [5, 3, None]
    elif broker.version >= (4, 3):
        expected = [5, None, 3]  # None counts as 4
    elif broker.version >= (4,):
        expected = [5, 3, None]  # it has only high and normal
    else:
        expected = [3, None, 5]  # the order in which they came
    queue = declare(arguments)
    for priority in (3, None, 5):
        properties = pika.BasicProperties(priority=priority)
        channel.basic_publish("", queue, b"", properties)
    wait_for_message_count(3, channel, queue)
    assert [channel.basic_get(queue)[1].priority for _ in range(3)] == expected


def test_full_queue_drops_its_oldest_message_or_refuses_new_ones(channel, declare):
    channel.confirm_delivery()
    queue = declare({"x-queue-type": "classic", "x-max-length": 1})
    for body in (b"old", b"new"):
        channel.basic_publish("", queue, body)
    assert channel.basic_get(queue)[2] == b"new"
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    queue = declare({"x-queue-type": "classic"} | full)
    channel.basic_publish("", queue, b"old")
    with pytest.raises(pika.exceptions.NackError):
        channel.basic_publish("", queue, b"new")


def test_message_over_16_mib_is_refused_since_4_0(broker, channel, queue):
    channel.confirm_delivery()
    refused = pytest.raises(pika.exceptions.ChannelClosedByBroker, match="message size")
    with refused if broker.version >= (4,) else contextlib.nullcontext():
        channel.basic_publish("", queue, bytes(2**24 + 1))


def test_alarm_delays_the_acknowledgements_of_connections_that_publish(broker, declare):
    with connect(broker) as publishing, connect(broker) as quiet:
        deliveries = {publishing: [], quiet: []}
        for connection, messages in deliveries.items():
            queue = declare()
            channel = connection.channel()
            for _ in range(2):
                channel.basic_publish("", queue, b"x")  # before the alarm
            channel.basic_qos(prefetch_count=1)
            channel.basic_consume(queue, lambda *m, to=messages: to.append(m))

        def has_received(connection, count):
            connection.process_data_events(time_limit=0)
            return len(deliveries[connection]) == count

        for connection in deliveries:
            wait_until(partial(has_received, connection, 1), "a message")
        broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
        try:
            deliveries[publishing][0][0].basic_publish("", "no such queue", b"x")
            for ((channel, method, *_),) in deliveries.values():
                channel.basic_ack(method.delivery_tag)
            wait_until(partial(has_received, quiet, 2), "the message after the ack")
            assert not has_received(publishing, 2)
        finally:
            broker.ctl("set_vm_memory_high_watermark", "0.4")
        wait_until(partial(has_received, publishing, 2), "the message after the alarm")


def test_client_and_broker_agree_on_limits(channel):
    agreed = channel.connection._impl.params
    limits = agreed.heartbeat, agreed.channel_max, agreed.frame_max
    assert limits == (60, 2047, 131072)
    options = pika.SSLOptions(ssl.create_default_context())
    assert pika.ConnectionParameters(ssl_options=options).port == 5671
