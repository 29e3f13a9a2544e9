"""fanout/: what its comments and its page claim."""

from broker import wait_until
from conftest import received


def test_every_consumer_gets_its_own_copy(start):
    consumers = [start("fanout/consumer.py").wait_until_ready() for _ in range(3)]
    producer = start("fanout/producer.py")
    assert producer.wait() == 0
    assert producer.output == [" [x] Sent 'info: Hello World!'"]
    assert start("fanout/producer.py", "second").wait() == 0
    for consumer in consumers:
        consumer.wait_for("Received", times=2)
        assert received(consumer) == ["'info: Hello World!'", "'second'"]


def test_late_consumer_gets_only_what_is_published_from_then_on(start):
    early = start("fanout/consumer.py").wait_until_ready()
    start("fanout/producer.py", "before").wait()
    early.wait_for("before")
    late = start("fanout/consumer.py").wait_until_ready()
    start("fanout/producer.py", "after").wait()
    late.wait_for("after")
    assert received(late) == ["'after'"]


def test_unroutable_message_is_reported(start):
    producer = start("fanout/producer.py", "hello?")
    assert producer.wait() == 1
    assert producer.output == []
    assert producer.errors == [
        " [!] Not delivered: no queue is bound. Start consumer.py first."
    ]


def test_queue_is_deleted_when_its_consumer_exits(start, broker):
    consumer = start("fanout/consumer.py").wait_until_ready()
    assert broker.ctl("list_queues", "--silent", "name").startswith("amq.gen-")
    consumer.kill()
    wait_until(
        lambda: not broker.ctl("list_queues", "--silent", "name"), "no queue", 20
    )


def test_routing_key_is_ignored(start, channel):
    consumer = start("fanout/consumer.py").wait_until_ready()
    channel.basic_publish("logs", "any.key", b"with a key")
    consumer.wait_for("Received 'with a key'")
