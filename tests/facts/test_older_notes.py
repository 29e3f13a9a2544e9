"""docs/older-notes.md: four misconceptions, and calls that no longer work."""

import contextlib

import pika
import pytest
from pika import spec

from tests.helpers import connect, message_count


def test_durable_keeps_no_copy_of_what_a_consumer_takes(channel, declare):
    durable = declare()
    channel.basic_publish("", durable, b"x", pika.BasicProperties(delivery_mode=2))
    consumer = channel.connection.channel()
    messages = []
    consumer.basic_consume(durable, lambda *m: messages.append(m), auto_ack=True)
    while not messages:
        channel.connection.process_data_events(time_limit=10)
    consumer.close()
    assert message_count(channel, durable) == 0


def test_default_exchange_has_a_binding_for_each_queue(broker, channel, queue):
    exchanges = broker.ctl("list_exchanges", "--silent", "name", "type").splitlines()
    assert "\tdirect" in exchanges  # its name is empty
    columns = "source_name", "destination_name", "routing_key"
    bindings = broker.ctl("list_bindings", "--silent", *columns).splitlines()
    assert f"\t{queue}\t{queue}" in bindings
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("", "no such queue", b"", mandatory=True)


def test_routing_key_is_not_a_queue_and_can_be_empty(channel, queue):
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("amq.direct", queue, b"", mandatory=True)
    channel.queue_bind(queue, "amq.direct", "")
    channel.basic_publish("amq.direct", "", b"x", mandatory=True)
    assert channel.basic_get(queue, auto_ack=True)[2] == b"x"


def test_headers_is_a_fourth_type_of_exchange(channel, queue):
    arguments = {"x-match": "all", "paper": "A4"}
    channel.queue_bind(queue, "amq.headers", arguments=arguments)
    for paper in ("A3", "A4"):
        properties = pika.BasicProperties(headers={"paper": paper})
        channel.basic_publish("amq.headers", "any key", paper.encode(), properties)
    assert channel.basic_get(queue, auto_ack=True)[2] == b"A4"
    assert channel.basic_get(queue, auto_ack=True)[2] is None


@pytest.mark.parametrize(
    "call",
    [
        lambda channel: channel.basic_consume(print, queue="hello"),
        lambda channel: channel.basic_consume("hello", print, no_ack=True),
        lambda channel: channel.basic_publish("", "hello", b"", immediate=True),
        lambda channel: channel.exchange_declare("logs", type="fanout"),
        lambda channel: pika.ConnectionParameters(ssl=True),
        lambda channel: pika.ConnectionParameters(heartbeat_interval=60),
        lambda channel: pika.ConnectionParameters(backpressure_detection=True),
    ],
)
def test_older_call_raises_type_error(channel, call):
    with pytest.raises(TypeError):
        call(channel)


def test_broker_refuses_immediate(broker):
    connection = connect(broker)
    publish = spec.Basic.Publish(exchange="", routing_key="x", immediate=True)
    connection.channel()._impl._send_method(publish, (pika.BasicProperties(), b""))
    with pytest.raises(
        pika.exceptions.ConnectionClosedByBroker, match="immediate=true"
    ):
        connection.sleep(10)  # until the broker closes the connection


def test_expiration_0_discards_or_dead_letters_what_nobody_takes(channel, queue):
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
    first = channel.queue_declare("", exclusive=True, arguments=arguments).method.queue
    channel.confirm_delivery()
    properties = pika.BasicProperties(expiration="0")
    channel.basic_publish("", first, b"x", properties, mandatory=True)
    assert channel.basic_get(first, auto_ack=True)[2] is None
    method, _, body = next(channel.consume(queue, inactivity_timeout=10))
    assert (method.routing_key, body) == (queue, b"x")


def test_transient_shared_queue_is_refused_only_since_4_3(broker, channel):
    refusal = pika.exceptions.ConnectionClosedByBroker
    refused = refusal if broker.version >= (4, 3) else ()
    with contextlib.suppress(refused):  # Debian's 4.3 allows it
        channel.queue_declare("old-hello")
        channel.queue_delete("old-hello")
