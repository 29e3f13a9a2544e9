"""The README's reference: parameters against pika's signatures, losses against a real broker."""

from __future__ import annotations

import ast
import contextlib
import enum
import inspect
import re
import signal
import socket
import ssl
import time
from pathlib import Path

import pika
import pytest
from broker import wait_until
from conftest import starting, wait_for_messages, waiting
from pika.adapters.blocking_connection import BlockingChannel
from test_readme import CHINESE, ENDS, ENGLISH, PAGES, ROOT, sections

CALLS = {
    "ConnectionParameters": pika.ConnectionParameters.__init__,
    "BasicProperties": pika.BasicProperties.__init__,
} | {
    name: getattr(BlockingChannel, name)
    for name in (
        "queue_declare",
        "exchange_declare",
        "queue_bind",
        "basic_publish",
        "basic_consume",
        "basic_qos",
        "basic_ack",
        "basic_nack",
        "basic_reject",
    )
}
REQUIRED = {ENGLISH: "required", CHINESE: "必填"}
TITLE = {ENGLISH: "What survives what", CHINESE: "什么能留下"}


def table(page: str, title: str, number: int = 0) -> list[list[str]]:
    """Return the rows of a table of the section with that title, without its head."""
    (found,) = [section.tables[number] for section in sections(page) if section.title == title]
    return found[1:]


def default(call: str, parameter: inspect.Parameter) -> str | None:
    """Return a parameter's default as the tables write it; None if it has to be given."""
    if parameter.default is inspect.Parameter.empty:
        return None
    value = parameter.default
    if call == "ConnectionParameters":  # whose signature has a placeholder for each
        value = getattr(pika.ConnectionParameters(), parameter.name)
    if isinstance(value, pika.PlainCredentials):
        return f"`PlainCredentials({value.username!r}, {value.password!r})`"
    return f"`{value}`" if isinstance(value, enum.Enum) else f"`{value!r}`"


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("call", CALLS)
def test_a_table_has_the_parameters_of_the_signature_in_their_order(page, call):
    parameters = [
        parameter
        for parameter in inspect.signature(CALLS[call]).parameters.values()
        if parameter.name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    rows = table(page, call)
    assert [row[0] for row in rows] == [f"`{parameter.name}`" for parameter in parameters]
    assert [row[1] for row in rows] == [
        default(call, parameter) or REQUIRED[page] for parameter in parameters
    ]
    assert all(row[2] and row[3] for row in rows)


def uses(script: Path, call: str, name: str) -> bool:
    """Tell whether a script gives a call that parameter, or sets it afterwards as an attribute."""
    given = []
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(call):
            given += [keyword.arg for keyword in node.keywords]
        if isinstance(node, ast.Assign) and call in ("BasicProperties", "ConnectionParameters"):
            given += [target.attr for target in node.targets if isinstance(target, ast.Attribute)]
    return name in given


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("call", CALLS)
def test_the_lesson_named_for_a_parameter_gives_it_and_a_dash_means_that_none_does(page, call):
    lessons = [path for end in ENDS for path in ROOT.glob(f"*/{end}.py")]
    lessons += [path for end in ENDS for path in ROOT.glob(f"advanced/*/{end}.py")]
    for cell, *_, lesson in table(page, call):
        name = cell.strip("`")
        link = re.search(r"\((.+)\)", lesson)
        users = [path for path in lessons if uses(path, call, name)]
        assert ROOT / link[1] in users if link else (lesson, users) == ("—", []), (call, name)


# What survives what: each row of the two tables is done, with one restart of the broker for all.

WORDS = {
    ENGLISH: {"kept": True, "again": True, "lost": False},
    CHINESE: {"保留": True, "重新投递": True, "丢失": False},
}
KINDS = {"durable": "durable", "transient": "transient", "exclusive": "exclusive"} | {
    "持久": "durable",
    "非持久": "transient",
    "独占": "exclusive",
}
WAITING = [
    (kind, mode) for kind in ("quorum", "durable", "transient", "exclusive") for mode in ("2", "1")
]
GIVEN = [("quorum", "2"), ("quorum", "1"), ("durable", "2"), ("durable", "1")]


def permitted(broker) -> list[tuple[str, str]]:
    """Return the rows whose queues the broker permits: RabbitMQ 4.3 may refuse transient ones."""
    try:
        with connected(broker) as connection:
            channel = connection.channel()
            channel.queue_delete(fill(channel, "transient", "1", "permitted"))
    except pika.exceptions.ConnectionClosedByBroker as error:
        if "transient_nonexcl_queues" not in error.reply_text:
            raise
        return [row for row in WAITING if row[0] != "transient"]
    return WAITING


def fill(channel, kind: str, mode: str, name: str) -> str:
    """Declare a queue of a kind, and put one message of a delivery mode into it."""
    channel.queue_declare(
        name,
        durable=kind in ("quorum", "durable"),
        exclusive=kind == "exclusive",
        arguments={"x-queue-type": "quorum" if kind == "quorum" else "classic"},
    )
    properties = pika.BasicProperties(delivery_mode=int(mode))
    channel.basic_publish("", name, b"x", properties, mandatory=True)
    return name


def give(connection, channel, name: str, auto_ack: bool) -> None:
    """Have the message of a queue delivered to a consumer, which does nothing with it."""
    given = []
    channel.basic_consume(name, lambda *message: given.append(message), auto_ack=auto_ack)
    while not given:
        connection.process_data_events(time_limit=10)


def take(broker, name: str) -> bool | None:
    """Take the message of a queue and delete the queue; tell whether it was delivered before.

    None if there is no message, or no queue.
    """
    with connected(broker) as connection:
        channel = connection.channel()
        try:
            method, _, _ = channel.basic_get(name, auto_ack=True)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code != 404:
                raise
            return None
        channel.queue_delete(name)
        return method and method.redelivered


def connected(broker) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(broker.url))


def die(connection) -> None:
    """End a connection without a goodbye to the broker, as when its process is killed."""
    connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def left(broker):
    """What is left of a message after all that the tables name. The keys are rows and columns."""
    left = {}
    waits = permitted(broker)
    with starting(broker) as start, connected(broker) as connection:
        channel = connection.channel()
        channel.confirm_delivery()

        # A consumer is killed: simple/ has auto_ack, work_queue/ acknowledges. One has been stopped
        # before, so that its socket has got the message, and the script has not.
        doomed = [start("simple/consumer.py").ready(), start("work_queue/consumer.py").ready()]
        doomed[0].process.send_signal(signal.SIGSTOP)
        start("simple/producer.py", "x", "1").end()
        start("work_queue/producer.py", "x" + "." * 60).end()
        wait_for_messages(0, channel, "hello")
        doomed[1].wait_for("Received")
        for end in doomed:
            end.kill()
        wait_for_messages(1, channel, "task_queue")
        left["kill", "quorum", "2", True] = take(broker, "hello")
        left["kill", "quorum", "2", False] = take(broker, "task_queue")

        # A channel is closed. When what was not acknowledged is back, so would be the rest.
        other = connection.channel()
        for auto in (True, False):
            give(connection, other, fill(channel, "quorum", "2", f"close-{auto}"), auto)
        other.close()
        wait_for_messages(1, channel, "close-False")
        for auto in (True, False):
            left["close", "quorum", "2", auto] = take(broker, f"close-{auto}")

        # The connection of a consumer dies, and messages wait that it has not been given.
        consumer = connected(broker)
        its = consumer.channel()
        its.confirm_delivery()
        for kind, mode in waits:
            fill(its, kind, mode, f"dies-{kind}-{mode}")
        die(consumer)
        exclusive = {"dies-exclusive-1", "dies-exclusive-2"}
        wait_until(lambda: not exclusive & queues(broker), "the exclusive queues to be gone", 20)
        for kind, mode in waits:
            left["dies", kind, mode] = take(broker, f"dies-{kind}-{mode}")

        # The broker restarts.
        for kind, mode in waits:
            fill(channel, kind, mode, f"waits-{kind}-{mode}")
        for kind, mode in GIVEN:
            for auto in (True, False):
                name = fill(channel, kind, mode, f"given-{kind}-{mode}-{auto}")
                give(connection, channel, name, auto)
        broker.restart()
        for kind, mode in waits:
            left["restart", kind, mode] = take(broker, f"waits-{kind}-{mode}")
        for kind, mode in GIVEN:
            for auto in (True, False):
                left["restart", kind, mode, auto] = take(broker, f"given-{kind}-{mode}-{auto}")
        with contextlib.suppress(pika.exceptions.AMQPError):
            connection.close()
    return left


def queues(broker) -> set[str]:
    return set(broker.ctl("list_queues", "--silent", "name").split())


def kind_of(cell: str) -> str:
    words = [kind for word, kind in KINDS.items() if cell.endswith(word)]
    return words[-1] if words else "quorum"


@pytest.mark.parametrize("page", PAGES)
def test_what_survives_while_it_waits_in_a_queue(page, left):
    rows = table(page, TITLE[page])
    assert [(kind_of(row[0]), row[1].strip("`")) for row in rows] == WAITING
    for queue, mode, dies, restarts, _ in rows:
        key = kind_of(queue), mode.strip("`")
        if ("dies", *key) not in left:
            continue  # the broker refuses such a queue
        assert WORDS[page][dies] == (left[("dies", *key)] is not None), key
        assert WORDS[page][restarts] == (left[("restart", *key)] is not None), key


@pytest.mark.parametrize("page", PAGES)
def test_what_survives_at_a_consumer(page, left):
    rows = table(page, TITLE[page], 1)
    events = ["kill", "close", "restart", "restart", "restart", "restart"]
    seen = []
    for event, (_, queue, mode, auto, manual) in zip(events, rows, strict=True):
        key = event, kind_of(queue), mode.strip("`")
        seen.append(key[1:])
        assert WORDS[page][auto] == (left[(*key, True)] is not None), key
        assert WORDS[page][manual] == (left[(*key, False)] is not None), key
    assert seen[2:] == GIVEN


def test_what_comes_again_says_so(left):
    assert left["kill", "quorum", "2", False] is True
    assert left["close", "quorum", "2", False] is True
    assert left["restart", "quorum", "2", False] is True


# What single cells of the tables say.


def test_rabbitmq_has_no_limit_in_bytes(broker):
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="NOT_IMPLEMENTED"):
        connected(broker).channel().basic_qos(prefetch_size=1)


def test_prefetch_has_no_meaning_with_auto_ack(channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    for _ in range(5):
        channel.basic_publish("", name, b"x")
    got = []
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(name, lambda *message: got.append(message), auto_ack=True)
    while len(got) < 5:
        channel.connection.process_data_events(time_limit=10)


def test_one_limit_for_a_channel_is_one_for_each_consumer_since_4_3(broker, channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    for _ in range(9):
        channel.basic_publish("", name, b"x")
    channel.basic_qos(prefetch_count=2, global_qos=True)
    for _ in range(2):
        channel.basic_consume(name, lambda *_: None)
    each = tuple(map(int, broker.version.split(".")[:2])) >= (4, 3)
    wait_for_messages(9 - 4 if each else 9 - 2, channel, name)


def test_the_broker_gives_up_after_two_or_three_heartbeats_in_silence(broker):
    url = f"{broker.url}?heartbeat=1"
    socket = pika.BlockingConnection(pika.URLParameters(url))._impl._transport._sock
    socket.settimeout(10)
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while socket.recv(4096):  # its heartbeats
            pass
    assert 1.9 < time.monotonic() - began < 4.5


def test_the_broker_checks_user_id(channel):
    channel.confirm_delivery()
    properties = pika.BasicProperties(user_id="somebody else")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="user_id"):
        channel.basic_publish("amq.fanout", "", b"", properties)


def test_only_a_str_is_an_expiration(channel):
    with pytest.raises(AssertionError):
        channel.basic_publish("", "x", b"", pika.BasicProperties(expiration=1000))


def test_nothing_can_be_bound_to_the_default_exchange(channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="default exchange"):
        channel.queue_bind(name, "", "x")


def test_a_tag_belongs_to_the_channel_of_the_delivery_and_counts_once(channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_publish("", name, b"x")
    method, _, _ = channel.basic_get(name)
    channel.basic_ack(method.delivery_tag)
    channel.basic_ack(method.delivery_tag)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="unknown delivery tag"):
        channel.queue_declare(name, passive=True)


def test_auto_delete_waits_for_a_first_consumer(channel):
    channel.queue_declare("temporary", auto_delete=True, exclusive=True)
    assert waiting(channel, "temporary") == 0
    channel.basic_cancel(channel.basic_consume("temporary", print))
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        channel.queue_declare("temporary", passive=True)


@pytest.mark.parametrize("more", [{"durable": False}, {"exclusive": True}, {"auto_delete": True}])
def test_a_quorum_queue_is_durable_shared_and_stays(channel, more):
    arguments = {"durable": True, "arguments": {"x-queue-type": "quorum"}} | more
    closed = (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker)
    with pytest.raises(closed, match=r"invalid property|transient_nonexcl_queues"):
        channel.queue_declare("impossible", **arguments)


def test_a_binding_without_a_key_has_the_queue_s_name_for_one(channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(name, "amq.direct")
    channel.basic_publish("amq.direct", name, b"x")
    assert channel.basic_get(name, auto_ack=True)[2] == b"x"


def test_requeue_brings_it_back_and_no_requeue_drops_it(channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_publish("", name, b"x")
    method, _, _ = channel.basic_get(name)
    channel.basic_nack(method.delivery_tag)
    method, _, _ = channel.basic_get(name)
    assert method.redelivered
    channel.basic_reject(method.delivery_tag, requeue=False)
    assert channel.basic_get(name) == (None, None, None)


def test_what_the_connection_agrees_on_with_the_broker(channel):
    agreed = channel.connection._impl.params
    assert agreed.heartbeat == 60
    assert agreed.channel_max == 2047
    assert agreed.frame_max == 131072


def test_port_5671_with_tls():
    options = pika.SSLOptions(ssl.create_default_context())
    assert pika.ConnectionParameters(ssl_options=options).port == 5671
