"""advanced/confirms/: what its comments and its section of the README claim."""

import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter

import pika
import pytest
from broker import wait_until
from conftest import waiting
from end import ROOT

PRODUCER = "advanced/confirms/producer.py"
CONSUMER = "advanced/confirms/consumer.py"
QUEUE = "confirms"
ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}


@pytest.fixture(autouse=True)
def no_queue_left(broker):
    yield
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        connection.channel().queue_delete(QUEUE)


@pytest.fixture
def queue(channel):
    """The queue, declared as both ends declare it."""
    channel.queue_declare(QUEUE, durable=True, arguments=ARGUMENTS)
    return QUEUE


def messages(broker):
    """Return how many messages are in the queue; 0 if there is none, or no broker just now."""
    try:
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            return waiting(connection.channel(), QUEUE)
    except (pika.exceptions.AMQPError, OSError):
        return 0


def take_all(channel):
    """Take all messages out of the queue; return their (properties, body)."""
    count = waiting(channel, QUEUE)
    taken = []
    if not count:
        return taken
    for method, properties, body in channel.consume(QUEUE, inactivity_timeout=30):
        assert method, f"{len(taken)} of {count} messages came"
        taken.append((properties, body))
        if len(taken) % 500 == 0 or len(taken) == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if len(taken) == count:
            channel.cancel()
            return taken


def numbers(taken):
    return Counter(int(body.split()[0]) for _, body in taken)


def test_all_messages_arrive_once_in_order_with_their_ids_and_sizes(start, channel):
    producer = start(PRODUCER, "5000", "--size", "300")
    assert producer.end() == 0
    assert re.fullmatch(r" \[x\] Confirmed 5000 of 5000 in .* s, \d+/s", producer.lines[-1])
    assert producer.errors == []
    taken = take_all(channel)
    assert [int(body.split()[0]) for _, body in taken] == list(range(1, 5001))
    assert {len(body) for _, body in taken} == {300}
    assert {properties.delivery_mode for properties, _ in taken} == {2}
    assert len({properties.message_id for properties, _ in taken}) == 5000


@pytest.mark.parametrize("arguments", [["0"], ["1"], ["1001"], ["3", "--size", "20000000"]])
def test_any_count_and_any_size_up_to_the_brokers(start, broker, arguments):
    # RabbitMQ 4 refuses messages of more than 16 MiB, RabbitMQ 3 of more than 128.
    producer = start(PRODUCER, *arguments)
    if "--size" in arguments and not broker.version.startswith("3."):
        assert producer.end() == 1
        assert "PRECONDITION_FAILED" in producer.errors[-1]
        assert len(producer.errors) == 1
    else:
        assert producer.end() == 0
        assert messages(broker) == int(arguments[0])


@pytest.mark.timeout(150)
def test_what_comes_back_unroutable_is_reported(start, broker, channel):
    producer = start(PRODUCER, "1000000")
    wait_until(lambda: messages(broker) > 20_000, "messages in the queue", 30)
    channel.queue_delete(QUEUE)
    code = producer.end(timeout=75)
    (line,) = producer.errors
    if broker.version.startswith("3.10.") and re.search("no confirm came|INTERNAL_ERROR", line):
        return  # it neither confirms nor returns what was in flight, or closes the connection
    assert code == 1, str(producer)
    said = re.search(
        r"Confirmed (\d+) of .*; number (\d+) is the first that is not\. "
        r"Unroutable, as the queue is gone: [1-9]\d*$",
        line,
    )
    assert said, line
    assert int(said[1]) >= int(said[2]) - 1  # all before the first


@pytest.mark.faults
def test_a_consumer_may_stop_any_number_of_times(start, broker):
    # Each gives back what it has not handled, which RabbitMQ 4 would put up with 20 times.
    assert start(PRODUCER, "100").end() == 0
    for _ in range(25):
        assert start(CONSUMER, "1").end() == 0
    wait_until(lambda: messages(broker) == 75, "the other 75 messages", 20)


def test_nacked_messages_are_published_again(start, broker, channel, tmp_path):
    # A queue that is full, and told to refuse rather than to drop, nacks what comes.
    script = tmp_path / "producer.py"
    full = '"x-max-length": 100, "x-overflow": "reject-publish"'
    source = (ROOT / PRODUCER).read_text()
    script.write_text(source.replace('"x-delivery-limit": 1_000_000_000', full))
    producer = start(str(script), "2000")
    wait_until(lambda: messages(broker) >= 100, "a full queue", 30)
    assert producer.process.poll() is None
    seen = Counter()
    for method, _, body in channel.consume(QUEUE, inactivity_timeout=30):
        assert method, f"{len(seen)} of 2000 came"
        seen[int(body.split()[0])] += 1
        channel.basic_ack(method.delivery_tag)
        if len(seen) == 2000:
            break
    assert producer.end() == 0, str(producer)
    assert set(seen.values()) == {1}


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_broker_killed_three_times_costs_no_message(start, broker, channel):
    channel.connection.close()
    producer = start(PRODUCER, "200000")
    # Not at once: killed within a second of its making, a quorum queue of RabbitMQ 3.10 may stay
    # without a leader, as in https://github.com/rabbitmq/rabbitmq-server/issues/10070.
    least = 60_000
    for kill in range(3):
        wait_until(lambda least=least: messages(broker) > least, f"{least} messages, kill {kill}")
        least = messages(broker) + 10_000  # more than the broker has when it is back
        assert producer.process.poll() is None, str(producer)
        broker.kill()
        producer.wait_for("Lost the broker", times=kill + 1)
        broker.start()
    assert producer.end(timeout=120) == 0, str(producer)
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        taken = take_all(connection.channel())
    assert set(numbers(taken)) == set(range(1, 200_001))
    # A duplicate, if there is one, has the message_id of the first.
    assert len({properties.message_id for properties, _ in taken}) == 200_000


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_producer_that_is_stopped_says_what_is_confirmed(start, broker, channel, number):
    producer = start(PRODUCER, "10000000")
    wait_until(lambda: messages(broker), "messages in the queue", 30)
    assert producer.stop(number) == 0
    assert producer.errors == []
    said = re.search(r"Confirmed (\d+) of 10000000 in .*; number (\d+) is the", producer.lines[-1])
    confirmed, first = int(said[1]), int(said[2])
    assert set(numbers(take_all(channel))) >= set(range(1, first))
    assert confirmed >= first - 1


@pytest.mark.faults
def test_a_broker_short_of_memory_is_named_and_waited_for(start, broker, channel):
    channel.connection.close()
    limit = broker.ctl("eval", "vm_memory_monitor:get_vm_memory_high_watermark().").strip()
    producer = start(PRODUCER, "300000")
    wait_until(lambda: messages(broker), "messages in the queue", 30)
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        producer.wait_for("takes no messages for now: low on memory")
        assert producer.process.poll() is None
    finally:
        broker.ctl("set_vm_memory_high_watermark", limit)
    assert producer.end(timeout=60) == 0
    assert messages(broker) == 300_000


def all_acknowledged(broker):
    """Tell whether the queue is empty, and no consumer holds a message unacknowledged."""
    if messages(broker):
        return False
    held = broker.ctl("list_channels", "--silent", "messages_unacknowledged").split()
    return not any(int(number) for number in held if number.isdigit())


def test_a_consumer_acks_the_last_incomplete_batch_while_idle(start, broker):
    assert start(PRODUCER, "1234").end() == 0
    consumer = start(CONSUMER).ready()
    # Killed now, it would leave in the queue whatever it has not acknowledged.
    wait_until(lambda: all_acknowledged(broker), "all acknowledged", 30)
    consumer.kill()
    assert messages(broker) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_consumer_that_is_stopped_leaves_nothing_handled_unacknowledged(
    start, broker, channel, number
):
    assert start(PRODUCER, "30000").end() == 0
    consumer = start(CONSUMER).ready()
    wait_until(lambda: messages(broker) < 29_000, "some are taken", 30)
    assert consumer.stop(number) == 0
    said = re.search(r"Received (\d+) in", consumer.lines[-1])
    # What it had been given and not handled comes back to the queue a moment later.
    wait_until(lambda: messages(broker) == 30_000 - int(said[1]), "the others in the queue", 20)
    left = numbers(take_all(channel))
    assert set(left) == set(range(int(said[1]) + 1, 30_001))
    assert consumer.errors == []


def test_a_consumer_takes_no_more_than_its_count(start, broker, channel):
    assert start(PRODUCER, "3000").end() == 0
    consumer = start(CONSUMER, "1777")
    assert consumer.end() == 0
    assert "Received 1777 in" in consumer.lines[-1]
    wait_until(lambda: messages(broker) == 3000 - 1777, "the others in the queue", 20)
    assert min(numbers(take_all(channel))) == 1778


@pytest.mark.faults
def test_a_consumer_goes_on_when_the_broker_is_back(start, broker, channel):
    channel.connection.close()
    consumer = start(CONSUMER).ready()
    assert start(PRODUCER, "60000").end() == 0  # see above: a queue that is no longer new
    wait_until(lambda: all_acknowledged(broker), "all acknowledged", 30)
    broker.kill()
    consumer.wait_for("Lost the broker")
    broker.start()
    consumer.wait_for("Waiting for messages", times=2, timeout=60)
    assert start(PRODUCER, "700").end() == 0
    wait_until(lambda: all_acknowledged(broker), "all acknowledged", 30)
    assert consumer.stop() == 0
    assert "Received 60700 in" in consumer.lines[-1]


def test_a_deleted_queue_ends_the_consumer(start, channel, queue):
    consumer = start(CONSUMER).ready()
    channel.queue_delete(queue)
    assert consumer.end() == 1
    assert consumer.errors == [
        " [!] The queue confirms was deleted, or a message outlasted consumer_timeout"
    ]


@pytest.mark.parametrize("script", [PRODUCER, CONSUMER])
def test_progress_is_shown_on_a_terminal_alone(start, broker, script):
    if script == CONSUMER:
        assert start(PRODUCER, "30000").end() == 0
    here, there = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, ROOT / script, "30000"],
        env=os.environ | {"AMQP_URL": broker.url},
        stdout=subprocess.DEVNULL,
        stderr=there,
    )
    os.close(there)
    shown = b""
    try:
        while more := os.read(here, 4096):
            shown += more
    except OSError:  # how Linux says that the other end is closed
        pass
    finally:
        os.close(here)
    assert process.wait(30) == 0
    assert re.search(rb" \[\.\] \d+ \w+\r", shown)
