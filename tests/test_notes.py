"""What older notes say of pika and RabbitMQ, and what is so: the README's section on it."""

import pika
import pytest
from conftest import waiting
from pika import spec


def test_durable_keeps_no_copy_of_what_a_consumer_takes(channel):
    channel.queue_declare("hello", durable=True, arguments={"x-queue-type": "quorum"})
    try:
        channel.basic_publish("", "hello", b"x", pika.BasicProperties(delivery_mode=2))
        consumer = channel.connection.channel()
        got = []
        consumer.basic_consume("hello", lambda *message: got.append(message), auto_ack=True)
        while not got:
            channel.connection.process_data_events(time_limit=10)
        consumer.close()
        assert waiting(channel, "hello") == 0
    finally:
        channel.queue_delete("hello")


def test_the_empty_name_is_an_exchange_with_bindings(broker, channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    exchanges = broker.ctl("list_exchanges", "--silent", "name", "type").splitlines()
    assert "\tdirect" in exchanges
    bindings = broker.ctl(
        "list_bindings", "--silent", "source_name", "destination_name", "routing_key"
    )
    assert f"\t{name}\t{name}" in bindings.splitlines()
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):  # as at any exchange: no binding, no queue
        channel.basic_publish("", "no such queue", b"", mandatory=True)


def test_a_routing_key_names_no_queue_and_may_be_empty(channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):  # the queue's name, at another exchange
        channel.basic_publish("amq.direct", name, b"", mandatory=True)
    channel.queue_bind(name, "amq.direct", "")
    channel.basic_publish("amq.direct", "", b"x", mandatory=True)
    assert channel.basic_get(name, auto_ack=True)[2] == b"x"


def test_there_is_a_fourth_type_of_exchange(channel):
    name = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(name, "amq.headers", arguments={"x-match": "all", "paper": "A4"})
    for paper in ("A3", "A4"):
        properties = pika.BasicProperties(headers={"paper": paper})
        channel.basic_publish("amq.headers", "whatever", paper.encode(), properties)
    assert channel.basic_get(name, auto_ack=True)[2] == b"A4"
    assert channel.basic_get(name, auto_ack=True) == (None, None, None)


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
def test_an_older_call_is_a_type_error(channel, call):
    with pytest.raises(TypeError):
        call(channel)


def test_immediate_is_refused_by_the_broker_too(broker):
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    publish = spec.Basic.Publish(exchange="", routing_key="x", immediate=True)
    connection.channel()._impl._send_method(publish, (pika.BasicProperties(), b""))
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="immediate=true"):
        connection.sleep(10)  # serves the connection until it is closed, and no longer than that


def test_a_transient_shared_queue_is_deprecated(broker, channel):
    # RabbitMQ 3.10 has nothing against it; 4.3 warns, or names the feature in its refusal.
    said = ""
    try:
        channel.queue_declare("old-hello")
        channel.queue_delete("old-hello")
    except pika.exceptions.AMQPError as error:
        said = str(error)
    deprecated = "`transient_nonexcl_queues` is deprecated" in said + broker.log()
    assert deprecated == (not broker.version.startswith("3.10."))
