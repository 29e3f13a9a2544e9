"""direct/: what its comments and its page claim."""

import pika
from conftest import received


def test_message_goes_to_the_queues_bound_with_exactly_its_key(start, channel):
    bindings = [["error"], [], ["info", "debug"], ["Error"], [""]]
    consumers = [
        start("direct/consumer.py", *keys).wait_until_ready() for keys in bindings
    ]
    bound = [binding or ["info", "warning", "error"] for binding in bindings]
    keys = ["info", "warning", "error", "debug", "Error", "", "errors", "#"]
    for key in keys:
        channel.basic_publish("direct_logs", key, f"with {key}".encode())
    for binding, consumer in zip(bound, consumers, strict=True):
        expected = [f"{key}: 'with {key}'" for key in keys if key in binding]
        consumer.wait_for("Received", times=len(expected))
        assert received(consumer) == expected


def test_message_that_no_queue_is_bound_for_is_reported(start):
    consumer = start("direct/consumer.py", "error").wait_until_ready()
    assert start("direct/producer.py", "error", "kept").wait() == 0
    consumer.wait_for("Received error: 'kept'")
    producer = start("direct/producer.py", "errors", "lost")
    assert producer.wait() == 1, producer
    assert producer.output == []
    assert producer.errors == [" [!] Not delivered: no queue is bound with 'errors'."]


def test_severity_is_info_unless_it_is_given(start):
    consumer = start("direct/consumer.py").wait_until_ready()
    producer = start("direct/producer.py")
    assert producer.wait() == 0
    assert producer.output == [" [x] Sent 'info': 'Hello World!'"]
    consumer.wait_for("Received info: 'Hello World!'")


def test_queue_bound_twice_with_a_key_gets_one_copy(start):
    consumer = start("direct/consumer.py", "info", "info").wait_until_ready()
    start("direct/producer.py", "info", "once").wait()
    start("direct/producer.py", "info", "last").wait()
    consumer.wait_for("last")
    assert received(consumer) == ["info: 'once'", "info: 'last'"]


def test_received_key_is_printed_escaped(start, channel):
    """A sender can put any text into it, with the header CC."""
    consumer = start("direct/consumer.py").wait_until_ready()
    properties = pika.BasicProperties(headers={"CC": ["info"]})
    channel.basic_publish("direct_logs", "\x1b[2J", b"x", properties)
    consumer.wait_for(r"Received \x1b[2J: 'x'")
