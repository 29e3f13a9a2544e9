"""docs/reference.md and docs/reliability.md: parameters, and what survives what."""

from __future__ import annotations

import ast
import contextlib
import enum
import inspect
import re
import socket
import ssl
import uuid

import pika
import pytest
from broker import wait_until
from conftest import message_count, wait_for_message_count
from lessons import SCRIPTS
from pika.adapters.blocking_connection import BlockingChannel
from script import ROOT
from test_pages import ALL, section

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
REFERENCES = [page for page in ALL if page.startswith("docs/reference.")]


def rows(page: str, title: str, number: int = 0) -> list[list[str]]:
    """Return the rows of a table in the section with that English title."""
    return section(page, title).tables[number][1:]


@pytest.mark.parametrize("page", REFERENCES)
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
    assert [row[:2] for row in table] == [[*pair] for pair in expected.items()]
    assert all(all(row) for row in table)


NODES = {
    script: [*ast.walk(ast.parse((ROOT / script).read_text()))] for script in SCRIPTS
}


def uses(script: str, call: str, name: str) -> bool:
    """Return whether a script gives a call that keyword, or sets it as an attribute."""
    for node in NODES[script]:
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(call):
            if name in [keyword.arg for keyword in node.keywords]:
                return True
        elif isinstance(node, ast.Assign) and call == "ConnectionParameters":
            targets = [t for t in node.targets if isinstance(t, ast.Attribute)]
            if name in [target.attr for target in targets]:
                return True
    return False


@pytest.mark.parametrize("call", CALLS)
def test_lesson_named_for_a_parameter_uses_it(call):
    for cell, *_, lesson in rows("docs/reference.md", call):
        users = [s for s in SCRIPTS if uses(s, call, cell.strip("`"))]
        link = re.fullmatch(r"\[\w+\]\(\.\./(.+)\)", lesson)
        assert (link[1] in users) if link else (lesson, users) == ("—", []), cell


# What survives what: each row has its own queues. One broker restart is enough.

SURVIVES = "What survives what"
WORDS = {
    "\N{FULLWIDTH COMMA}": ", ",
    "非持久": "transient",
    "持久": "durable",
    "独占": "exclusive",
    "保留": "kept",
    "重新投递": "redelivered",
    "丢失": "lost",
}


def put(broker, event, kind, mode, auto_ack) -> pika.BlockingConnection:
    """Put a message into a queue. Unless auto_ack is None, deliver it to a consumer."""
    queue = f"{event} {kind} {mode} {auto_ack}"
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(
        queue,
        durable=not re.search("transient|exclusive", kind),
        exclusive="exclusive" in kind,
        arguments={"x-queue-type": kind.split("`")[1]},
    )
    properties = pika.BasicProperties(delivery_mode=int(mode.strip("`")))
    channel.basic_publish("", queue, b"x", properties, mandatory=True)
    if auto_ack is not None:
        messages = []
        channel.basic_consume(queue, lambda *m: messages.append(m), auto_ack=auto_ack)
        while not messages:
            connection.process_data_events(time_limit=10)
    if event == "close":
        channel.close()
    if event == "kill":  # all that the broker sees of a SIGKILL
        connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)
    return connection


def take(broker, event, kind, mode, auto_ack) -> str:
    """Return what happened to that message, and delete its queue."""
    queue = f"{event} {kind} {mode} {auto_ack}"
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        if event != "restart" and "exclusive" in kind:
            wait_until(lambda: queue not in broker.ctl("list_queues"), "its end", 20)
        if event != "restart" and auto_ack is False:
            wait_for_message_count(1, channel, queue)
        try:
            method, _, _ = channel.basic_get(queue, auto_ack=True)
        except pika.exceptions.ChannelClosedByBroker:
            return "lost"
        channel.queue_delete(queue)
    return "lost" if not method else "redelivered" if method.redelivered else "kept"


@pytest.fixture
def outcomes(broker):
    """What happened to each message: {(event, kind, mode, auto_ack): "lost"}"""
    waiting, received = (rows("docs/reliability.md", SURVIVES, n) for n in (0, 1))
    keys = [(e, *row[:2], None) for row in waiting for e in ("kill", "restart")]
    for event, kind, mode, *_ in received:
        (event,) = [e for e in ("kill", "close", "restart") if e in event]
        keys += [(event, kind, mode, auto_ack) for auto_ack in (True, False)]
    connections = {}
    for key in keys:
        try:
            connections[key] = put(broker, *key)
        except pika.exceptions.ConnectionClosedByBroker as error:
            if "transient_nonexcl_queues" not in error.reply_text:
                raise
    found = {key: take(broker, *key) for key in connections if key[0] != "restart"}
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.exchange_declare("durable-logs", durable=True)
        channel.exchange_declare("transient-logs")
    broker.restart()
    exchanges = broker.ctl("list_exchanges", "--silent", "name").split()
    for kind in ("durable", "transient"):
        outcome = "kept" if f"{kind}-logs" in exchanges else "lost"
        found["restart", "exchange", kind, None] = outcome
    return found | {key: take(broker, *key) for key in connections if key not in found}


@pytest.mark.faults
def test_messages_and_exchanges_survive_as_the_page_says(broker, outcomes):
    assert outcomes["restart", "exchange", "durable", None] == "kept"
    expected = "kept" if not broker.before(4, 2) else "lost"
    assert outcomes["restart", "exchange", "transient", None] == expected
    waiting, received = (rows("docs/reliability.md", SURVIVES, n) for n in (0, 1))
    for kind, mode, *cells, _ in waiting:
        for event, cell in zip(("kill", "restart"), cells, strict=True):
            assert outcomes.get((event, kind, mode, None), cell) == cell, (kind, mode)
    cells = [cell for row in received for cell in row[3:]]
    assert cells == [found for key, found in outcomes.items() if key[3] is not None]


def test_chinese_tables_say_the_same():
    for number in (0, 1):
        english = rows("docs/reliability.md", SURVIVES, number)
        chinese = rows("docs/reliability.zh-CN.md", SURVIVES, number)
        for row, other in zip(english, chinese, strict=True):
            text = "|".join(other[number : 4 + number])
            for word, translated in WORDS.items():
                text = text.replace(word, translated)
            assert text == "|".join(row[number : 4 + number])


# Single cells.


@pytest.fixture
def queue(channel) -> str:
    """A private queue."""
    return channel.queue_declare("", exclusive=True).method.queue


QUORUM = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
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
        (lambda c, q: c.queue_declare("x", exclusive=True, **QUORUM), "property"),
        (lambda c, q: c.queue_declare("x", auto_delete=True, **QUORUM), "property"),
    ],
)
def test_call_is_refused(channel, queue, call, reason):
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.AMQPError) as error:
        call(channel, queue)
    assert reason in repr(error.value)


def test_quorum_queue_must_be_durable(channel):
    with pytest.raises(pika.exceptions.AMQPError, match=r"property|transient_nonexcl"):
        channel.queue_declare("x", arguments=QUORUM["arguments"])


def test_expiration_must_be_a_str(channel):
    with pytest.raises(AssertionError):
        channel.basic_publish("", "x", b"", pika.BasicProperties(expiration=1000))


def test_prefetch_has_no_effect_with_auto_ack(channel, queue):
    for _ in range(5):
        channel.basic_publish("", queue, b"x")
    messages = []
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, lambda *m: messages.append(m), auto_ack=True)
    while len(messages) < 5:
        channel.connection.process_data_events(time_limit=10)


def test_global_qos_is_shared_only_before_4_3(broker, channel, queue):
    for _ in range(9):
        channel.basic_publish("", queue, b"x")
    channel.basic_qos(prefetch_count=2, global_qos=True)
    for _ in range(2):
        channel.basic_consume(queue, lambda *_: None)
    wait_for_message_count(9 - 4 if not broker.before(4, 3) else 9 - 2, channel, queue)


def test_broker_disconnects_after_two_or_three_silent_heartbeats(broker):
    connection = pika.BlockingConnection(
        pika.URLParameters(f"{broker.url}?heartbeat=1")
    )
    client = connection._impl._transport._sock
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


@pytest.fixture
def declare(channel):
    """declare(arguments) declares a durable queue, which is deleted after the test."""
    names = []

    def declare(arguments: dict[str, object]) -> str:
        names.append(f"test-{uuid.uuid4()}")
        channel.queue_declare(names[-1], durable=True, arguments=arguments)
        return names[-1]

    yield declare
    for name in names:
        channel.queue_delete(name)


def test_quorum_queue_gives_up_after_20_redeliveries_since_4_0(
    broker, channel, declare, queue
):
    dead_letters = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
    tasks = declare({"x-queue-type": "quorum"} | dead_letters)
    channel.basic_publish("", tasks, b"x")
    deliveries = []

    def reject(channel, method, properties, body):
        deliveries.append(method)
        channel.basic_reject(method.delivery_tag)

    channel.basic_consume(tasks, reject)
    while message_count(channel, queue) == 0 and len(deliveries) < 30:
        channel.connection.process_data_events(time_limit=0.1)
    assert len(deliveries) == (21 if not broker.before(4) else 30)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_only_a_classic_queue_can_have_an_exclusive_consumer(
    channel, declare, queue_type
):
    queue = declare({"x-queue-type": queue_type})
    channel.basic_consume(queue, print, exclusive=True)
    other = channel.connection.channel()
    if queue_type == "quorum":
        other.basic_consume(queue, print)
    else:
        with pytest.raises(
            pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"
        ):
            other.basic_consume(queue, print)


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_priorities_depend_on_the_queue(broker, channel, declare, queue_type):
    arguments = {"x-queue-type": queue_type}
    if queue_type == "classic":
        arguments["x-max-priority"] = 9
        expected = [5, 3, None]
    elif broker.before(4):
        expected = [3, None, 5]  # the order in which they came
    else:  # before 4.3, it has only high and normal
        expected = [5, None, 3] if not broker.before(4, 3) else [5, 3, None]
    queue = declare(arguments)
    for priority in (3, None, 5):
        properties = pika.BasicProperties(priority=priority)
        channel.basic_publish("", queue, b"", properties)
    wait_for_message_count(3, channel, queue)
    assert [channel.basic_get(queue)[1].priority for _ in range(3)] == expected


def test_full_queue_drops_its_oldest_message_or_refuses_new_ones(channel, declare):
    channel.confirm_delivery()
    queue = declare({"x-max-length": 1})
    for body in (b"old", b"new"):
        channel.basic_publish("", queue, body)
    assert channel.basic_get(queue)[2] == b"new"
    queue = declare({"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.basic_publish("", queue, b"old")
    with pytest.raises(pika.exceptions.NackError):
        channel.basic_publish("", queue, b"new")


def test_single_active_consumer_gets_everything(channel, declare):
    queue = declare({"x-single-active-consumer": True})
    tags = []
    first, _ = (
        channel.basic_consume(
            queue, lambda c, method, *_: tags.append(method.consumer_tag)
        )
        for _ in range(2)
    )
    for _ in range(4):
        channel.basic_publish("", queue, b"x")
    while len(tags) < 4:
        channel.connection.process_data_events(time_limit=10)
    assert tags == [first] * 4


def test_message_over_16_mib_is_refused_since_4_0(broker, channel, queue):
    channel.confirm_delivery()
    refused = pytest.raises(pika.exceptions.ChannelClosedByBroker, match="message size")
    with refused if not broker.before(4) else contextlib.nullcontext():
        channel.basic_publish("", queue, bytes(2**24 + 1))


def test_client_and_broker_agree_on_limits(channel):
    agreed = channel.connection._impl.params
    assert (agreed.heartbeat, agreed.channel_max, agreed.frame_max) == (
        60,
        2047,
        131072,
    )
    options = pika.SSLOptions(ssl.create_default_context())
    assert pika.ConnectionParameters(ssl_options=options).port == 5671
