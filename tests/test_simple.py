"""simple/: what its comments and its page claim."""

import signal

import pika
import pytest
from conftest import received, wait_for_message_count
from script import ROOT, ScriptProcess

QUORUM = {"x-queue-type": "quorum"}


def check_received(consumer, expected, channel, broker):
    """Check that a consumer receives the expected messages, in order, and no others.

    RabbitMQ 3.10 can drop the last messages of a producer that disconnects without
    confirms: docs/reliability.md. So there, the last ones needn't arrive.
    """
    channel.confirm_delivery()
    channel.basic_publish("", "hello", b"last", mandatory=True)
    consumer.wait_for("Received 'last'")
    messages = received(consumer)[:-1]
    if broker.before(3, 11):
        assert messages
        expected = expected[: len(messages)]
    assert messages == expected


@pytest.mark.parametrize("first", ["consumer", "producer"])
def test_ten_messages_arrive_in_order_whichever_script_starts_first(
    start, channel, broker, first
):
    consumer = None
    if first == "consumer":
        consumer = start("simple/consumer.py").wait_until_ready()
    producer = start("simple/producer.py")
    assert producer.wait() == 0
    assert producer.output == [" [x] Sent '兔子' * 10"]
    consumer = consumer or start("simple/consumer.py").wait_until_ready()
    check_received(consumer, [f"'兔子{i}'" for i in range(10)], channel, broker)
    assert producer.errors == consumer.errors == []


def test_text_and_count_are_arguments(start, channel, broker):
    consumer = start("simple/consumer.py").wait_until_ready()
    producer = start("simple/producer.py", "Hello", "3")
    assert producer.wait() == 0
    assert producer.output == [" [x] Sent 'Hello' * 3"]
    check_received(consumer, ["'Hello0'", "'Hello1'", "'Hello2'"], channel, broker)


def test_invalid_count_is_a_usage_error(start):
    producer = start("simple/producer.py", "x", "many")
    assert producer.wait() == 2
    assert "argument count: invalid int value: 'many'" in producer.errors[-1]


def test_two_consumers_share_the_messages(start, channel):
    consumers = [start("simple/consumer.py").wait_until_ready() for _ in range(2)]
    for i in range(20):
        channel.basic_publish("", "hello", str(i).encode())
    ScriptProcess.wait_until(
        lambda: sum(len(received(consumer)) for consumer in consumers) == 20, consumers
    )
    # Round-robin: each gets every second message.
    assert sorted(map(len, map(received, consumers))) == [10, 10]
    assert not set(received(consumers[0])) & set(received(consumers[1]))


def test_connection_parameters_say_where_the_broker_is_unless_amqp_url_is_set(
    start, broker, tmp_path
):
    node = pika.URLParameters(broker.url)
    for script in ("consumer", "producer"):
        source = (ROOT / f"simple/{script}.py").read_text()
        for old, new in {
            'host="localhost"': f"host={node.host!r}",
            "port=5672": f"port={node.port}",
        }.items():
            assert old in source
            source = source.replace(old, new)
        (tmp_path / f"{script}.py").write_text(source)
    consumer = start(str(tmp_path / "consumer.py"), url="").wait_until_ready()
    assert start(str(tmp_path / "producer.py"), url="").wait() == 0
    consumer.wait_for("Received")


def test_auto_ack_loses_the_messages_on_their_way_to_a_killed_consumer(start, channel):
    killed = start("simple/consumer.py").wait_until_ready()
    killed.process.send_signal(signal.SIGSTOP)  # its socket still receives
    start("simple/producer.py").wait()
    wait_for_message_count(0, channel, "hello")
    killed.kill()
    assert received(killed) == []
    other = start("simple/consumer.py").wait_until_ready()
    channel.basic_publish("", "hello", b"last")
    other.wait_for("Received")
    assert received(other) == ["'last'"]


def test_refused_messages_are_not_called_sent(start, user):
    start("simple/consumer.py").wait_until_ready()
    producer = start("simple/producer.py", "x", "1", url=user("^$"))
    assert producer.wait() == 1
    assert producer.output == []
    assert "ACCESS_REFUSED" in producer.errors[0]


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        # Sent isn't received: the broker drops these, and the script can't tell.
        ('routing_key="hello"', 'routing_key="typo"', 0),
        # But it notices that the queue doesn't exist in the end.
        ("    for i in", "    channel.queue_delete('hello')\n    for i in", 1),
    ],
    ids=["typo", "deleted"],
)
def test_lost_messages(start, channel, tmp_path, old, new, status):
    source = (ROOT / "simple/producer.py").read_text()
    assert source.count(old) == 1
    (tmp_path / "producer.py").write_text(source.replace(old, new))
    producer = start(str(tmp_path / "producer.py"))
    assert producer.wait() == status
    assert producer.count("Sent") == 1 - status
    assert producer.count("NOT_FOUND - no queue 'hello'") == status
    declared = channel.queue_declare("hello", durable=True, arguments=QUORUM)
    assert declared.method.message_count == 0
