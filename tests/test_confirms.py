"""advanced/confirms: what its scripts and its page say."""

import contextlib
import re
import signal
import socket
import struct
import threading
from collections import Counter

import pika
import pytest
from broker import wait_until
from conftest import edited, message_count, wait_for_message_count
from script import ROOT
from test_pages import documented

PRODUCER, CONSUMER = "advanced/confirms/producer.py", "advanced/confirms/consumer.py"
QUEUE = "confirms"
ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
WINDOW = 2000
PREFETCH = 1000
REFUSED = " [!] The broker refused a message. Is the queue full or deleted?"
ACK = b"\x00\x3c\x00\x50"  # class and method, as they're on the wire
FIRST_BODY = b"\x00\x00\x00\x641 ...."  # message 1, if it has 100 bytes


def publish(start, *arguments):
    producer = start(PRODUCER, *arguments)
    assert producer.wait(60) == 0, producer
    return producer


@pytest.fixture
def queue(channel):
    """The queue, as both scripts declare it."""
    channel.queue_declare(QUEUE, durable=True, arguments=ARGUMENTS)
    return QUEUE


@pytest.fixture
def limit_queue(broker, queue):
    """limit_queue(5) makes the queue refuse messages while it has more than five."""

    def limit_queue(count):
        policy = f'{{"max-length": {count}, "overflow": "reject-publish"}}'
        broker.ctl("set_policy", "full", f"^{queue}$", policy, "--apply-to", "queues")

    yield limit_queue
    broker.ctl("clear_policy", "full")


def take(count, channel):
    """Take that many messages out of the queue. Return (properties, body) of each."""
    taken = []
    for method, properties, body in channel.consume(QUEUE, inactivity_timeout=30):
        assert method, f"Only {len(taken)} of {count} messages came"
        taken.append((properties, body))
        if len(taken) % 500 == 0 or not channel.get_waiting_message_count():
            channel.basic_ack(method.delivery_tag, multiple=True)
        if len(taken) == count:
            break
    channel.cancel()
    return taken


def take_all(channel):
    count = message_count(channel, QUEUE)
    return take(count, channel) if count else []


def numbers(taken):
    return [int(body.split()[0]) for _, body in taken]


def confirmed_and_first(process):
    """Return how many messages it reports as confirmed, and the first that isn't."""
    (line,) = [line for line in process.output if " [x] " in line]
    confirmed = int(re.fullmatch(r" \[x\] Confirmed (\d+) in \d+\.\d\d s", line)[1])
    pattern = r" \[!\] Not confirmed: message (\d+) and (\d+) more"
    (found,) = filter(None, (re.fullmatch(pattern, line) for line in process.errors))
    return confirmed, int(found[1]), int(found[2])


class Proxy:
    """Forwards connections to the broker. It can keep what the broker sends.

    `sent` has everything that the clients sent, one bytearray for each connection.
    Once a client has sent `keeps_after`, the proxy keeps what the broker sends.
    """

    def __init__(self, broker):
        self._target = pika.URLParameters(broker.url)
        self._server = socket.create_server(("127.0.0.1", 0))
        port = self._server.getsockname()[1]
        self.url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
        self.sent = []
        self.keeps_after = None
        self._sockets = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                address = self._target.host, self._target.port
                broker = socket.create_connection(address)
                self._sockets += [client, broker]
                sent = bytearray()
                self.sent.append(sent)
                for pair in ((client, broker, sent), (broker, client, None)):
                    threading.Thread(
                        target=self._forward, args=(*pair, sent), daemon=True
                    ).start()

    def _forward(self, source, target, record, sent):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if record is not None:
                    record += data
                elif self.keeps_after and self.keeps_after in sent:
                    continue
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Close all connections."""
        while self._sockets:
            with contextlib.suppress(OSError):
                self._sockets.pop().shutdown(socket.SHUT_RDWR)

    def close(self):
        self._server.close()
        self.cut()


@pytest.fixture
def proxy(broker):
    proxy = Proxy(broker)
    yield proxy
    proxy.close()


# The producer.


def test_all_messages_arrive_once_in_order(start, channel):
    producer = publish(start, "10001", "--size", "300")
    assert producer.output[0] == " [.] Confirmed 10000"
    assert re.fullmatch(r" \[x\] Confirmed 10001 in \d+\.\d\d s", producer.output[1])
    assert len(producer.output) == 2
    assert producer.errors == []
    taken = take_all(channel)
    assert numbers(taken) == list(range(1, 10_002))
    assert {len(body) for _, body in taken} == {300}
    assert {properties.delivery_mode for properties, _ in taken} == {2}
    assert len({properties.message_id for properties, _ in taken}) == 10_001


@pytest.mark.parametrize("count", [0, 1, WINDOW, WINDOW + 1])
def test_any_number_of_messages_can_be_sent(start, channel, count):
    publish(start, str(count))
    assert numbers(take_all(channel)) == list(range(1, count + 1))


def test_message_over_the_size_limit_is_refused(start, broker, channel):
    """It's 16 MiB since RabbitMQ 4.0, and 128 MiB before."""
    assert publish(start, "2", "--size", str(2**24)).errors == []
    producer = start(PRODUCER, "3", "--size", str(2**24 + 1))
    if broker.before(4):
        assert producer.wait() == 0
        assert message_count(channel, QUEUE) == 5
        return
    assert producer.wait() == 1
    assert confirmed_and_first(producer) == (0, 1, 2)
    assert "PRECONDITION_FAILED - message size 16777217" in producer.errors[1]
    assert len(producer.errors) == 2
    assert message_count(channel, QUEUE) == 2


def test_not_more_than_the_window_is_in_flight(start, proxy, channel, queue):
    proxy.keeps_after = FIRST_BODY
    producer = start(PRODUCER, "5000", url=proxy.url)
    wait_for_message_count(WINDOW, channel, queue)
    assert producer.process.poll() is None
    assert producer.output == []
    assert producer.stop(signal.SIGINT) == 130
    assert confirmed_and_first(producer) == (0, 1, 4999)
    assert numbers(take_all(channel)) == list(range(1, WINDOW + 1))


def test_messages_in_flight_are_published_again_in_order_before_newer_ones(
    start, proxy, channel, queue
):
    proxy.keeps_after = FIRST_BODY
    producer = start(PRODUCER, "5000", url=proxy.url)
    wait_for_message_count(WINDOW, channel, queue)
    proxy.keeps_after = None
    proxy.cut()
    assert producer.wait() == 0, producer
    assert len(producer.errors) == 1
    assert producer.errors[0].endswith(" Retrying.")
    taken = take_all(channel)
    assert numbers(taken) == [*range(1, WINDOW + 1), *range(1, 5001)]
    # A duplicate has the same message_id.
    assert len({properties.message_id for properties, _ in taken}) == 5000


def test_refused_message_is_one_line(start, channel, limit_queue):
    limit_queue(1000)
    producer = start(PRODUCER, "5000")
    assert producer.wait() == 1
    confirmed, first, more = confirmed_and_first(producer)
    assert producer.errors[1:] == [REFUSED]
    stored = numbers(take_all(channel))
    assert set(range(1, first)) <= set(stored)
    assert 0 < confirmed <= len(stored)
    assert more == 5000 - confirmed - 1


def test_messages_are_reported_as_unroutable_when_the_queue_is_deleted(
    start, channel, broker
):
    producer = start(PRODUCER, "10000000").wait_for("Confirmed 10000")
    channel.queue_delete(QUEUE)
    silence = documented("No confirm in 10 seconds")
    producer.wait_for(silence, "Not delivered", REFUSED, "INTERNAL_ERROR")
    if not producer.count("Not delivered", REFUSED):
        # 3.10 might neither return nor confirm what was in flight. 4.0 might close the
        # connection. Then, the producer declares the queue again.
        assert broker.before(4, 3)
        assert producer.stop(signal.SIGINT, timeout=5) == 130
        assert producer.count("Not confirmed: message") == 1
        return
    assert producer.wait() == 1
    confirmed, first, more = confirmed_and_first(producer)
    assert confirmed >= 10_000
    assert first <= confirmed + 1
    assert more == 10_000_000 - confirmed - 1
    # The broker might refuse what was in flight before it returns a message.
    not_delivered = " [!] Not delivered: no queue 'confirms'. Was it deleted?"
    assert producer.errors[1:] in ([not_delivered], [REFUSED])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_producer_prints_what_is_not_confirmed(start, channel, signum):
    producer = start(PRODUCER, "10000000").wait_for("Confirmed 10000")
    assert producer.stop(signum, timeout=5) == 128 + signum
    confirmed, first, more = confirmed_and_first(producer)
    assert confirmed >= 10_000
    assert more == 10_000_000 - confirmed - 1
    assert set(range(1, first)) <= set(numbers(take_all(channel)))
    assert len(producer.errors) == 1


@pytest.mark.parametrize(
    "line", ["del self.in_flight[tag]", "last = answer.delivery_tag", "loop.start()"]
)
def test_bug_in_the_producer_is_a_traceback(start, broker, tmp_path, line):
    """Pika would report an exception in one of its callbacks as a lost connection."""
    script = tmp_path / "producer.py"
    source = (ROOT / PRODUCER).read_text()
    script.write_text(source.replace(line, f"{line}; open('no-file')", 1))
    producer = start(str(script), "10")
    assert producer.wait() == 1
    assert producer.count("Traceback") == 1
    assert producer.count("open('no-file')")
    assert not producer.count("RabbitMQ", "Retrying")


# The consumer.


def test_consumer_prints_a_line_for_every_1000_messages(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    publish(start, "2999")
    wait_for_message_count(0, channel, QUEUE)
    consumer.wait_for("[x] Received 2000")
    publish(start, "1")
    consumer.wait_for("[x] Received 3000")
    assert consumer.stop(signal.SIGINT) == 0
    waiting = " [*] Waiting for messages. To exit press CTRL+C"
    assert consumer.output == [waiting, *(f" [x] Received {n}000" for n in (1, 2, 3))]
    assert consumer.errors == []


def wait_until_acknowledged(tag, proxy):
    """Wait until the consumer has sent an acknowledgement for all up to this tag."""
    frame = ACK + struct.pack(">QB", tag, 1)  # 1: multiple
    wait_until(lambda: frame in proxy.sent[0], f"an acknowledgement for {tag}", 30)


def wait_until_noticed(channel):
    """Wait until the broker has noticed that the consumer has exited."""

    def noticed():
        return not channel.queue_declare(QUEUE, passive=True).method.consumer_count

    wait_until(noticed, "no consumer", 20)


def test_consumer_acknowledges_everything_while_it_waits(start, proxy, channel):
    publish(start, "1234")
    consumer = start(CONSUMER, url=proxy.url).wait_for("Received 1000")
    wait_until_acknowledged(1234, proxy)
    wait_for_message_count(0, channel, QUEUE)
    assert consumer.stop(signal.SIGINT) == 0
    wait_until_noticed(channel)
    assert message_count(channel, QUEUE) == 0


def test_consumer_acknowledges_many_messages_with_one_acknowledgement(start, proxy):
    publish(start, "5000")
    consumer = start(CONSUMER, url=proxy.url).wait_for("Received 5000")
    wait_until_acknowledged(5000, proxy)
    assert consumer.stop(signal.SIGINT) == 0
    assert 5 <= proxy.sent[0].count(ACK) <= 500


def test_consumer_takes_not_more_than_1000_messages_in_advance(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    publish(start, "1")
    wait_for_message_count(0, channel, QUEUE)  # so it's consuming
    consumer.process.send_signal(signal.SIGSTOP)
    publish(start, "3000")
    wait_for_message_count(3000 - PREFETCH, channel, QUEUE)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_message_that_is_not_handled_returns_when_the_consumer_exits(
    start, channel, tmp_path, signum
):
    publish(start, "5000")
    script = edited(
        tmp_path, CONSUMER, "work(body)", "work(body); print(body.split()[0])"
    )
    consumer = start(script).wait_for("Received 2000")
    status = consumer.stop(signum)
    assert status == (0 if signum == signal.SIGINT else -signum)
    # The last line might be incomplete.
    handled = [int(line[2:-1]) for line in consumer.output if re.match("b'.*'$", line)]
    assert handled == list(range(1, len(handled) + 1))

    wait_until_noticed(channel)
    remaining = numbers(take_all(channel))
    assert sorted(remaining) == list(range(5001 - len(remaining), 5001))
    # It had not acknowledged more messages than it holds in advance.
    assert len(remaining) - (5000 - len(handled)) <= PREFETCH


def test_acknowledging_twice_prints_the_brokers_reason(start, tmp_path):
    publish(start, "1")
    line = "channel.basic_ack(delivery_tag=method.delivery_tag, multiple=True)"
    consumer = start(edited(tmp_path, CONSUMER, line, line, line))
    assert consumer.wait() == 1
    (error,) = consumer.errors
    assert "PRECONDITION_FAILED - unknown delivery tag 1" in error


# Faults: some minutes.


def messages(broker):
    """Return how many messages the queue has, or 0 if we can't see that now."""
    errors = pika.exceptions.AMQPError, OSError, ValueError
    parameters = pika.URLParameters(broker.url)
    with (
        contextlib.suppress(*errors),
        pika.BlockingConnection(parameters) as connection,
    ):
        return message_count(connection.channel(), QUEUE)
    return 0


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_no_message_is_lost_when_the_broker_is_killed_twice(
    start, broker, channel, report
):
    channel.connection.close()
    producer = start(PRODUCER, "120000")
    # Not immediately: a queue that's younger than some seconds can lose messages.
    for kill in range(2):
        producer.wait_for(f"Confirmed {60_000 + kill * 30_000}", timeout=60)
        broker.kill()
        producer.wait_for("Retrying", times=producer.count("Retrying") + 1)
        broker.start()
    assert producer.wait(120) == 0, producer
    assert not producer.count("No confirm in 10 seconds")
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        taken = take_all(connection.channel())
    counts = Counter(numbers(taken))
    assert set(counts) == set(range(1, 120_001))
    assert len({properties.message_id for properties, _ in taken}) == 120_000
    report(f"120,000 messages, 2 SIGKILLs: 0 lost, {len(taken) - 120_000} twice")


@pytest.mark.faults
def test_silent_broker_is_noticed_and_replaced(start, broker, channel):
    channel.connection.close()
    url = f"{broker.url}?heartbeat=2&stack_timeout=1"
    producer = start(PRODUCER, "50000", url=url).wait_for("Confirmed 10000")
    # Docker can't pause a broker that's very busy.
    producer.process.send_signal(signal.SIGSTOP)
    broker.freeze()
    producer.process.send_signal(signal.SIGCONT)
    try:
        producer.wait_for("Retrying", times=3, timeout=40)
    finally:
        broker.thaw()
    assert producer.wait(60) == 0, producer
    assert messages(broker) >= 50_000


@pytest.mark.faults
def test_producer_waits_while_the_broker_is_short_of_memory(start, broker, channel):
    channel.connection.close()
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        producer = start(PRODUCER, "30000")
        producer.wait_for(" [!] The broker is low on memory. Waiting.")
        assert producer.process.poll() is None
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert producer.wait(60) == 0, producer
    assert messages(broker) == 30_000
