"""direct: what its comments and its page claim."""

import signal

import pika
import pytest

from tests.helpers import edited, received

PRODUCER, CONSUMER = "direct/producer.py", "direct/consumer.py"
# Lines of consumer.py.
DECLARE = 'result = channel.queue_declare(queue="", exclusive=True)'
NAME = "queue = result.method.queue"
START = "channel.start_consuming()"


def publish(start, *arguments):
    producer = start(PRODUCER, *arguments)
    assert producer.wait() == 0, producer
    return producer.output


def test_consumers_get_the_severities_that_they_name(start):
    everything = start(CONSUMER).wait_until_ready()
    errors = start(CONSUMER, "error").wait_until_ready()
    capital = start(CONSUMER, "error", "Error").wait_until_ready()
    assert publish(start) == [" [x] Sent 'info': 'Hello World!'"]
    publish(start, "warning", "almost")
    publish(start, "Error", "capital")
    publish(start, "error", "full")
    everything.wait_for("full")
    errors.wait_for("full")
    capital.wait_for("full")
    assert received(everything) == [
        "'info': 'Hello World!'",
        "'warning': 'almost'",
        "'error': 'full'",
    ]
    assert received(errors) == ["'error': 'full'"]
    assert received(capital) == ["'Error': 'capital'", "'error': 'full'"]


def test_misspelled_severity_is_reported_thanks_to_mandatory(start, tmp_path):
    start(CONSUMER, "error").wait_until_ready()
    producer = start(PRODUCER, "eror", "lost")
    assert producer.wait() == 1
    assert producer.output == []
    assert producer.errors == [" [!] Not delivered: no queue is bound with 'eror'."]
    copy = edited(tmp_path, PRODUCER, {"mandatory=True,": ""})
    without = start(copy, "eror", "lost")
    assert without.wait() == 0
    assert without.output == [" [x] Sent 'eror': 'lost'"]


def test_received_key_is_printed_escaped(start, channel):
    """A sender can put any text into it, with the header CC."""
    consumer = start(CONSUMER).wait_until_ready()
    properties = pika.BasicProperties(headers={"CC": ["info"]})
    channel.basic_publish("direct_logs", "\x1b[2J", b"x", properties)
    consumer.wait_for(r"Received '\x1b[2J': 'x'")


def test_durable_subscriber_keeps_its_old_bindings(start, channel, tmp_path):
    lines = 'queue = "log_archive"\nchannel.queue_declare(queue=queue, durable=True)'
    subscriber = edited(tmp_path, CONSUMER, {DECLARE: lines, NAME: ""})
    try:
        start(subscriber, "info", "error").wait_until_ready().stop(signal.SIGINT)
        consumer = start(subscriber, "error").wait_until_ready()
        publish(start, "info", "old")
        consumer.wait_for("Received 'info': 'old'")
        channel.queue_unbind("log_archive", "direct_logs", "info")
        assert start(PRODUCER, "info", "unbound").wait() == 1
    finally:
        channel.queue_delete("log_archive")


def test_consumer_of_a_deleted_queue_exits_with_one_line(start, tmp_path):
    delete = f"channel.queue_delete(queue=queue)\n{START}"  # only its owner can do that
    consumer = start(edited(tmp_path, CONSUMER, {START: delete}))
    assert consumer.wait() == 1
    (line,) = consumer.errors
    assert "cancelled our consumer" in line


def test_exchange_is_transient_as_in_the_official_tutorials(start, channel):
    start(CONSUMER).wait_until_ready()
    channel.exchange_declare("direct_logs", "direct")
    transient = "received 'true' but current is 'false'"
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=transient):
        channel.exchange_declare("direct_logs", "direct", durable=True)


def test_producer_reports_a_missing_permission(start, user):
    producer = start(PRODUCER, url=user("^$"))
    assert producer.wait() == 1
    (line,) = producer.errors
    assert "ACCESS_REFUSED" in line
