"""simple/: what its comments and its page claim."""

import signal

import pytest

from tests.helpers import (
    QUORUM,
    documented,
    edited,
    message_count,
    received,
    run_script,
)
from tools.common import wait_until

CONSUMER, PRODUCER = "simple/consumer.py", "simple/producer.py"
CONNECT = "connection = pika.BlockingConnection(parameters)"
PUBLISH = 'channel.basic_publish(exchange="", routing_key="hello", body=body)'
BODY = 'body = f"{args.text}{i}".encode()  # bytes'
DECLARE = 'channel.queue_declare(queue="hello", durable=True, arguments=quorum)'
CONSUME = (
    'channel.basic_consume(queue="hello", on_message_callback=on_message'
    ", auto_ack=True)"
)
PRINT = "print(f\" [x] Received {body.decode(errors='replace')!r}\")"


def test_queue_is_a_durable_quorum_queue_and_keeps_the_messages(start, channel):
    """Step 1. Declared with other arguments, the queue would be refused here."""
    run_script(start, PRODUCER, "Hello", "2")
    channel.queue_declare("hello", durable=True, arguments=QUORUM)
    assert message_count(channel, "hello") == 2
    consumer = start(CONSUMER).wait_for("Received", times=2)
    assert received(consumer) == ["'Hello0'", "'Hello1'"]


def test_two_consumers_share_the_messages(start, channel):
    """Step 2."""
    consumers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    for i in range(10):
        channel.basic_publish("", "hello", str(i).encode())
    wait_until(lambda: len(received(*consumers)) == 10, consumers)
    assert [len(received(consumer)) for consumer in consumers] == [5, 5]


@pytest.mark.parametrize("script", [PRODUCER, CONSUMER])
@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        (None, "host=localhost port=5672 virtual_host=/ ssl=False>, 'guest', 'guest'"),
        ("amqps://u:p%2F@h:1/v", "host=h port=1 virtual_host=v ssl=True>, 'u', 'p/'"),
    ],
)
def test_amqp_url_names_the_broker(
    start, tmp_path, monkeypatch, script, url, parameters
):
    monkeypatch.delenv("AMQP_URL", raising=False)
    show = "c = parameters.credentials\nsys.exit((parameters, c.username, c.password))"
    process = start(edited(tmp_path, script, {CONNECT: show}), url=url)
    assert process.wait() == 1
    assert process.errors == [f"(<ConnectionParameters {parameters})"]


def test_consumer_that_does_not_declare_the_queue_exits(start, tmp_path):
    consumer = start(edited(tmp_path, CONSUMER, {DECLARE: ""}))
    assert consumer.wait() == 1
    assert documented("NOT_FOUND - no queue") in consumer.errors[0]


@pytest.mark.parametrize("auto_ack", [True, False])
def test_stopped_consumer_loses_messages_only_with_auto_ack(start, tmp_path, auto_ack):
    """Step 3. A message that's on its way to the consumer exists nowhere else."""
    lines = {PRINT: f"{PRINT}\nimport time; time.sleep(0.01)"}
    if not auto_ack:
        lines[CONSUME] = CONSUME.replace(", auto_ack=True", "")
    consumer = edited(tmp_path, CONSUMER, lines)
    run_script(start, PRODUCER, "Hello", "2000")
    stopped = start(consumer).wait_for("Received")
    assert stopped.stop(signal.SIGINT) == 0
    assert stopped.errors == []
    assert len(received(stopped)) < 2000
    other = start(consumer).wait_until_ready()
    run_script(start, PRODUCER, "last", "1")
    other.wait_for("Received")
    assert received(other)[0] == ("'last0'" if auto_ack else "'Hello0'")


def test_message_that_is_too_large_is_not_called_sent(start, broker, tmp_path):
    limit = 2**24 if broker.version >= (4,) else 2**27
    huge = edited(tmp_path, PRODUCER, {BODY: f"body = bytes({limit} + 1)"})
    producer = start(huge, "Hello", "1")
    assert producer.wait() == 1
    assert producer.output == []
    text = documented("PRECONDITION_FAILED - message size …")
    assert text in producer.errors[0]


def test_missing_exchange_is_noticed_before_the_producer_prints_sent(start, tmp_path):
    """Step 4."""
    nowhere = {PUBLISH: PUBLISH.replace('exchange=""', 'exchange="nowhere"')}
    producer = start(edited(tmp_path, PRODUCER, nowhere), "Hello", "1")
    assert producer.wait() == 1
    assert producer.output == []
    assert "NOT_FOUND - no exchange 'nowhere'" in producer.errors[0]
    barrier = 'channel.queue_declare(queue="hello", passive=True)'
    careless = edited(tmp_path, PRODUCER, nowhere | {barrier: ""})
    assert run_script(start, careless, "Hello", "1") == [" [x] Sent 'Hello' * 1"]
