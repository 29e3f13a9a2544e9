"""simple/: what its comments and its page claim."""

import os
import signal
import subprocess
import sys

import pytest

from tests.helpers import (
    QUORUM,
    documented,
    edited,
    message_count,
    received,
    wait_for_message_count,
)
from tools.common import wait_until

CONSUMER, PRODUCER = "simple/consumer.py", "simple/producer.py"
CONNECT = "connection = pika.BlockingConnection(parameters)"
PUBLISH = 'channel.basic_publish(exchange="", routing_key="hello", body=body)'
BODY = 'body = f"{arguments.text}{i}".encode()  # bytes'
DECLARE = 'channel.queue_declare(queue="hello", durable=True, arguments=quorum)'
CONSUME = (
    'channel.basic_consume(queue="hello", on_message_callback=on_message'
    ", auto_ack=True)"
)
PRINT = "print(f\" [x] Received {body.decode(errors='replace')!r}\")"


def test_ten_messages_arrive_in_order(start, channel, broker):
    consumer = start(CONSUMER).wait_until_ready()
    producer = start(PRODUCER)
    assert producer.wait() == 0
    assert producer.output == [" [x] Sent '兔子' * 10"]
    channel.confirm_delivery()
    channel.basic_publish("", "hello", b"last", mandatory=True)
    consumer.wait_for("Received 'last'")
    messages = received(consumer)[:-1]
    expected = [f"'兔子{i}'" for i in range(10)]
    if broker.version < (3, 11):
        # It can drop the last messages of a producer that disconnects without
        # confirms: docs/reliability.md.
        assert messages
        expected = expected[: len(messages)]
    assert messages == expected
    assert producer.errors == consumer.errors == []


def test_queue_is_a_durable_quorum_queue_and_keeps_the_messages(start, channel):
    """Step 1. Declared with other arguments, the queue would be refused here."""
    assert start(PRODUCER, "Hello", "2").wait() == 0
    channel.queue_declare("hello", durable=True, arguments=QUORUM)
    assert message_count(channel, "hello") == 2
    start(CONSUMER).wait_for("Received 'Hello0'").wait_for("Received 'Hello1'")


def test_two_consumers_share_the_messages(start, channel):
    """Step 2."""
    consumers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    for i in range(10):
        channel.basic_publish("", "hello", str(i).encode())
    wait_until(lambda: sum(map(len, map(received, consumers))) == 10, consumers)
    assert [len(received(consumer)) for consumer in consumers] == [5, 5]
    assert not set(received(consumers[0])) & set(received(consumers[1]))


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        (None, ("localhost", 5672, "guest", "guest", "/", False)),
        ("amqp://u:p%2F@h:1/v", ("h", 1, "u", "p/", "v", False)),
        ("amqps://u:p@h:1/%2Fv", ("h", 1, "u", "p", "/v", True)),
    ],
)
def test_amqp_url_names_the_broker(tmp_path, url, parameters):
    show = """c = parameters.credentials
print((parameters.host, parameters.port, c.username, c.password,
    parameters.virtual_host, parameters.ssl_options is not None))
sys.exit()"""
    environment = {k: v for k, v in os.environ.items() if k != "AMQP_URL"}
    if url:
        environment["AMQP_URL"] = url
    for script in (PRODUCER, CONSUMER):
        copy = edited(tmp_path, script, {CONNECT: show})
        command = [sys.executable, copy]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert run.stdout == f"{parameters}\n", run.stderr


def test_consumer_that_does_not_declare_the_queue_exits(start, tmp_path):
    consumer = start(edited(tmp_path, CONSUMER, {DECLARE: ""}))
    assert consumer.wait() == 1
    assert documented("NOT_FOUND - no queue") in consumer.errors[0]


def test_dict_travels_as_json(start, tmp_path):
    producer = {BODY: 'import json; body = json.dumps({"page": 5}).encode()'}
    consumer = {PRINT: "import json; print(json.loads(body)['page'] + 1)"}
    consumer = start(edited(tmp_path, CONSUMER, consumer)).wait_until_ready()
    start(edited(tmp_path, PRODUCER, producer), "x", "1").wait()
    consumer.wait_for("6")


# With auto_ack, a message that's on its way to the consumer exists nowhere else.


def test_broker_sends_to_a_slow_consumer_without_a_limit(start, channel):
    slow = start(CONSUMER).wait_until_ready()
    slow.process.send_signal(signal.SIGSTOP)  # its socket still receives
    channel.confirm_delivery()
    for _ in range(300):
        channel.basic_publish("", "hello", b"x" * 100_000)
    wait_for_message_count(0, channel, "hello")
    slow.kill()
    assert received(slow) == []
    other = start(CONSUMER).wait_until_ready()
    channel.basic_publish("", "hello", b"last")
    other.wait_for("Received")
    assert received(other) == ["'last'"]


@pytest.mark.parametrize("auto_ack", [True, False])
def test_stopped_consumer_loses_messages_only_with_auto_ack(start, tmp_path, auto_ack):
    """Step 3."""
    lines = {PRINT: f"{PRINT}\nimport time; time.sleep(0.01)"}
    if not auto_ack:
        lines[CONSUME] = CONSUME.replace(", auto_ack=True", "")
    consumer = edited(tmp_path, CONSUMER, lines)
    assert start(PRODUCER, "Hello", "2000").wait() == 0
    stopped = start(consumer).wait_for("Received")
    assert stopped.stop(signal.SIGINT) == 0
    assert stopped.errors == []
    assert len(received(stopped)) < 2000
    other = start(consumer).wait_until_ready()
    start(PRODUCER, "last", "1").wait()
    other.wait_for("Received")
    assert received(other)[0] == ("'last0'" if auto_ack else "'Hello0'")


# "Sent" means that the broker has handled our calls. It doesn't mean more.


def test_message_that_is_too_large_is_not_called_sent(start, broker, tmp_path):
    size = 2**24 if broker.version >= (4, 0) else 2**27
    producer = start(edited(tmp_path, PRODUCER, {BODY: f"body = bytes({size} + 1)"}))
    assert producer.wait() == 1
    assert producer.output == []
    text = documented("PRECONDITION_FAILED - message size …").removesuffix(" …")
    assert text in producer.errors[0]


def test_missing_exchange_is_noticed_when_the_channel_closes(start, tmp_path):
    """Step 4."""
    nowhere = {PUBLISH: PUBLISH.replace('exchange=""', 'exchange="nowhere"')}
    producer = start(edited(tmp_path, PRODUCER, nowhere), "Hello", "1")
    assert producer.wait() == 1
    assert producer.output == []
    assert "NOT_FOUND - no exchange 'nowhere'" in producer.errors[0]
    nowhere["channel.close()"] = ""
    producer = start(edited(tmp_path, PRODUCER, nowhere), "Hello", "1")
    assert producer.wait() == 0
    assert producer.output == [" [x] Sent 'Hello' * 1"]


def test_mistyped_queue_loses_messages_that_are_called_sent(start, channel, tmp_path):
    typo = {PUBLISH: PUBLISH.replace('key="hello"', 'key="helo"')}
    producer = start(edited(tmp_path, PRODUCER, typo))
    assert producer.wait() == 0
    assert producer.output == [" [x] Sent '兔子' * 10"]
    assert message_count(channel, "hello") == 0
