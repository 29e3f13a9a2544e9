"""direct: what its comments and its page claim."""

import signal

import pika

from tests.helpers import edited, received, run_script

PRODUCER, CONSUMER = "direct/producer.py", "direct/consumer.py"
# Lines of consumer.py.
DECLARE = 'result = channel.queue_declare(queue="", exclusive=True)'
NAME = "queue = result.method.queue"


def test_consumers_get_the_severities_that_they_name(start):
    everything = start(CONSUMER).wait_until_ready()
    errors = start(CONSUMER, "error").wait_until_ready()
    capital = start(CONSUMER, "error", "Error").wait_until_ready()
    assert run_script(start, PRODUCER) == [" [x] Sent 'info': 'Hello World!'"]
    run_script(start, PRODUCER, "warning", "almost")
    run_script(start, PRODUCER, "Error", "capital")
    run_script(start, PRODUCER, "error", "full")
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
        run_script(start, PRODUCER, "info", "old")
        consumer.wait_for("Received 'info': 'old'")
        channel.queue_unbind("log_archive", "direct_logs", "info")
        assert start(PRODUCER, "info", "unbound").wait() == 1
    finally:
        channel.queue_delete("log_archive")
