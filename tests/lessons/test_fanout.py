"""fanout: what its comments and its page claim."""

import signal

from tests.helpers import documented, edited, received, run_script
from tools.common import wait_until
from tools.pages import blocks

PRODUCER, CONSUMER = "fanout/producer.py", "fanout/consumer.py"
# Lines of consumer.py.
DECLARE = 'result = channel.queue_declare(queue="", exclusive=True)'
NAME = "queue = result.method.queue"
BIND = 'channel.queue_bind(queue=queue, exchange="logs")'


def test_every_consumer_gets_its_own_copy(start):
    consumers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    assert run_script(start, PRODUCER) == [" [x] Sent 'info: Hello World!'"]
    run_script(start, PRODUCER, "second")
    for consumer in consumers:
        consumer.wait_for("Received", times=2)
        assert received(consumer) == ["'info: Hello World!'", "'second'"]


def test_routing_key_is_ignored(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    channel.basic_publish("logs", "any.key", b"with a key")
    consumer.wait_for("Received 'with a key'")


def test_queue_gets_nothing_without_a_binding(start, broker, channel, tmp_path):
    unbound = start(edited(tmp_path, CONSUMER, {BIND: ""})).wait_until_ready()
    (queue,) = broker.queues()
    bound = start(CONSUMER).wait_until_ready()
    run_script(start, PRODUCER, "copied")
    bound.wait_for("copied")
    channel.basic_publish("", queue, b"sent to the queue")
    unbound.wait_for("sent to the queue")
    assert received(unbound) == ["'sent to the queue'"]


def test_late_consumer_gets_only_what_is_published_from_then_on(start):
    early = start(CONSUMER).wait_until_ready()
    run_script(start, PRODUCER, "before")
    late = start(CONSUMER).wait_until_ready()
    run_script(start, PRODUCER, "after")
    late.wait_for("after")
    assert received(late) == ["'after'"]
    early.wait_for("after")
    assert received(early) == ["'before'", "'after'"]


def test_message_for_nobody_is_reported_thanks_to_mandatory(start, tmp_path):
    producer = start(PRODUCER, "lost")
    assert producer.wait() == 1
    assert producer.output == []
    line = " [!] Not delivered: no queue is bound. Start consumer.py first."
    assert producer.errors == [line]
    assert line[5:].startswith(documented("Not delivered: …").rstrip("…"))
    without = start(edited(tmp_path, PRODUCER, {"mandatory=True,": ""}), "lost")
    assert without.wait() == 0
    assert without.output == [" [x] Sent 'lost'"]


def test_durable_subscriber_misses_nothing_and_can_share(start, channel, tmp_path):
    page = blocks(["fanout/README.md"], "python")
    (lines,) = [block.text for block in page if not block.links]
    subscriber = edited(tmp_path, CONSUMER, {DECLARE: lines, NAME: ""})

    def consumer_count():
        return channel.queue_declare("log_archive", passive=True).method.consumer_count

    try:
        start(subscriber).wait_until_ready().stop(signal.SIGINT)
        wait_until(lambda: consumer_count() == 0, "no consumer")
        run_script(start, PRODUCER, "warning: disk full")
        first = start(subscriber).wait_for("Received 'warning: disk full'")
        second = start(subscriber).wait_until_ready()
        run_script(start, PRODUCER, "one")
        run_script(start, PRODUCER, "two")
        first.wait_for("Received", times=2)
        second.wait_for("Received", times=1)
    finally:
        channel.queue_delete("log_archive")
