"""docs/older-notes.md: four misconceptions, and calls that no longer work."""

import pika
import pytest

from tests.helpers import message_count


def test_durable_keeps_no_copy_of_what_a_consumer_takes(channel, declare):
    durable = declare()
    channel.basic_publish("", durable, b"x", pika.BasicProperties(delivery_mode=2))
    consumer = channel.connection.channel()
    next(consumer.consume(durable, auto_ack=True))
    consumer.close()
    assert message_count(channel, durable) == 0


def test_default_exchange_is_a_direct_exchange_with_a_binding_for_each_queue(
    broker, channel, queue
):
    types = {e["name"]: e["type"] for e in broker.get("exchanges/%2F")}
    assert types[""] == "direct"
    assert {*types.values()} == {"direct", "fanout", "topic", "headers"}
    (binding,) = broker.get(f"queues/%2F/{queue}/bindings")
    assert (binding["source"], binding["routing_key"]) == ("", queue)
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("", "no such queue", b"", mandatory=True)


def test_routing_key_is_not_a_queue_and_can_be_empty(channel, queue):
    channel.confirm_delivery()
    with pytest.raises(pika.exceptions.UnroutableError):
        channel.basic_publish("amq.direct", queue, b"", mandatory=True)
    channel.queue_bind(queue, "amq.direct", "")
    channel.basic_publish("amq.direct", "", b"x", mandatory=True)
    assert message_count(channel, queue) == 1


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


def test_expiration_0_discards_or_dead_letters_what_nobody_takes(channel, queue):
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
    first = channel.queue_declare("", exclusive=True, arguments=arguments).method.queue
    channel.confirm_delivery()
    properties = pika.BasicProperties(expiration="0")
    channel.basic_publish("", first, b"x", properties, mandatory=True)
    assert channel.basic_get(first, auto_ack=True)[2] is None
    method, _, body = next(channel.consume(queue, inactivity_timeout=10))
    assert (method.routing_key, body) == (queue, b"x")
