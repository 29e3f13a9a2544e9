"""advanced/confirms: what its scripts and its page claim.

What its producer shares with advanced/reconnect is in test_reconnect.py.
"""

import re
import signal
import struct
from collections import Counter

import pytest

from tests.helpers import (
    SETTLED,
    connect,
    documented,
    edited,
    message_count,
    wait_for_message_count,
)
from tests.servers import proxy
from tools.common import wait_until

PRODUCER, CONSUMER = "advanced/confirms/producer.py", "advanced/confirms/consumer.py"
QUEUE = "confirms"
ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
WINDOW = 2000
PREFETCH = 1000
MANY = 10_000_000  # so that the producer is still busy when the test is
REFUSED = (
    " [!] The broker refused the message. "
    "Is the queue full, or are most of its nodes down?"
)
ACK = b"\x00\x3c\x00\x50"  # class and method, as they're on the wire
FIRST_BODY = b"1 ...."
# Lines of the scripts.
SILENCE = "SILENCE = 10  # after so many seconds without a confirm, print a line"
CHAIN = "numbers = itertools.chain(list(self.in_flight.values()), self.new)"
WORK = "work(body)"
PREFETCH_LINE = "channel.basic_qos(prefetch_count=1000)"


@pytest.fixture
def queue(channel):
    """The queue, as both scripts declare it."""
    channel.queue_declare(QUEUE, durable=True, arguments=ARGUMENTS)
    return QUEUE


@pytest.fixture
def proxied(broker):
    with proxy(broker.url) as proxied:
        yield proxied


def publish(start, *arguments):
    producer = start(PRODUCER, *arguments)
    assert producer.wait(60) == 0, producer
    return producer


def take_all(channel):
    """Take all messages out of the queue. Return (properties, body) of each."""
    count = message_count(channel, QUEUE)
    taken = []
    for method, properties, body in channel.consume(QUEUE, inactivity_timeout=30):
        assert method, f"Only {len(taken)} of {count} messages came"
        taken.append((properties, body))
        # A quorum queue delivers no more while thousands aren't acknowledged.
        if len(taken) % 1000 == 0 or len(taken) == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
        if len(taken) == count:
            break
    channel.cancel()
    return taken


def numbers(taken):
    return [int(body.split()[0]) for _, body in taken]


def confirmed_and_first(process):
    """Return how many messages it reports as confirmed, and the first that isn't."""
    (line,) = [line for line in process.output if " [x] " in line]
    confirmed = int(re.fullmatch(r" \[x\] Confirmed (\d+) in \d+\.\d\d s", line)[1])
    pattern = r" \[!\] Not confirmed: message (\d+) and (\d+) more"
    (found,) = filter(None, (re.fullmatch(pattern, line) for line in process.errors))
    return confirmed, int(found[1]), int(found[2])


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
    assert message_count(channel, QUEUE) == count


@pytest.mark.parametrize(
    ("count", "size", "window"), [(5000, 100, WINDOW), (12, 1_000_000, 10)]
)
def test_not_more_than_the_window_is_in_flight(
    start, proxied, channel, queue, tmp_path, count, size, window
):
    """Once it's silent, it waits for a confirm. The proxy keeps all of them."""
    proxied.keeps_after = FIRST_BODY
    script = edited(tmp_path, PRODUCER, {SILENCE: "SILENCE = 1"})
    producer = start(script, str(count), "--size", str(size), url=proxied.url)
    producer.wait_for(" [!] No confirm in 1 seconds. Still waiting.")
    wait_for_message_count(window, channel, queue)
    assert producer.output == []
    assert producer.stop(signal.SIGINT) == 130
    assert confirmed_and_first(producer) == (0, 1, count - 1)
    assert numbers(take_all(channel)) == list(range(1, window + 1))


def lose_what_is_in_flight(start, script, proxied, channel):
    """Start the producer, and break its first connection before any confirm."""
    proxied.keeps_after = FIRST_BODY
    producer = start(script, "5000", url=proxied.url)
    wait_for_message_count(WINDOW, channel, QUEUE)
    proxied.keeps_after = b""
    proxied.cut()
    return producer


def test_messages_in_flight_are_published_again_before_newer_ones(
    start, proxied, channel, queue
):
    producer = lose_what_is_in_flight(start, PRODUCER, proxied, channel)
    assert producer.wait() == 0, producer
    assert len(producer.errors) == 1
    assert producer.errors[0].endswith(" Retrying.")
    taken = take_all(channel)
    assert numbers(taken) == [*range(1, WINDOW + 1), *range(1, 5001)]
    # A duplicate has the same message_id.
    assert len({properties.message_id for properties, _ in taken}) == 5000


def test_producer_that_forgets_what_was_in_flight_never_finishes(
    start, proxied, channel, queue, tmp_path
):
    lines = {CHAIN: "numbers = self.new", SILENCE: "SILENCE = 1"}
    script = edited(tmp_path, PRODUCER, lines)
    producer = lose_what_is_in_flight(start, script, proxied, channel)
    wait_for_message_count(5000, channel, queue)
    producer.wait_for("No confirm in", times=producer.count("No confirm in") + 1)
    assert producer.stop(signal.SIGINT) == 130
    assert confirmed_and_first(producer)[0] == 5000 - WINDOW


def test_full_queue_refuses_a_message(start, broker, channel, queue):
    documented("The broker refused the message")
    documented("Not confirmed: …")
    policy = '{"max-length": 1000, "overflow": "reject-publish"}'
    broker.ctl("set_policy", "full", f"^{queue}$", policy, "--apply-to", "queues")
    try:
        producer = start(PRODUCER, "5000")
        assert producer.wait() == 1
    finally:
        broker.ctl("clear_policy", "full")
    confirmed, first, more = confirmed_and_first(producer)
    assert producer.errors[1:] == [REFUSED]
    stored = numbers(take_all(channel))
    assert set(range(1, first)) <= set(stored)
    assert 0 < confirmed <= len(stored)
    assert more == 5000 - confirmed - 1


def test_user_without_permission_gets_the_brokers_reason(start, user):
    producer = start(PRODUCER, "10", url=user("^$"))
    assert producer.wait() == 1
    assert confirmed_and_first(producer) == (0, 1, 9)
    assert "ACCESS_REFUSED" in producer.errors[1]
    assert len(producer.errors) == 2


def test_deleted_queue_ends_the_producer(start, channel, broker):
    """On 3.10, it might wait instead. On 3.10 and 4.0, it might reconnect."""
    documented("Not delivered: …")
    producer = start(PRODUCER, str(MANY)).wait_for("Confirmed 10000")
    channel.queue_delete(QUEUE)
    silence = documented("No confirm in 10 seconds")
    producer.wait_for(silence, "Not delivered", REFUSED, "INTERNAL_ERROR")
    if not producer.count("Not delivered", REFUSED):
        assert broker.version < (4, 3)
        assert producer.stop(signal.SIGINT, timeout=5) == 130
        assert producer.count("Not confirmed: message") == 1
        return
    assert producer.wait() == 1
    confirmed, first, more = confirmed_and_first(producer)
    assert first <= confirmed + 1
    assert more == MANY - confirmed - 1
    # The broker might refuse what was in flight before it returns a message.
    not_delivered = " [!] Not delivered: no queue 'confirms'. Was it deleted?"
    assert producer.errors[1:] in ([not_delivered], [REFUSED])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_producer_prints_what_is_not_confirmed(start, channel, signum):
    producer = start(PRODUCER, str(MANY)).wait_for("Confirmed 10000")
    assert producer.stop(signum, timeout=5) == 128 + signum
    confirmed, first, more = confirmed_and_first(producer)
    assert confirmed >= 10_000
    assert more == MANY - confirmed - 1
    assert message_count(channel, QUEUE) >= first - 1
    assert len(producer.errors) == 1


def test_producer_waits_while_the_broker_is_low_on_memory(start, broker, channel):
    documented("The broker is low on …")
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        producer = start(PRODUCER, "3000")
        producer.wait_for(" [!] The broker is low on memory. Waiting.")
        assert producer.process.poll() is None
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert producer.wait() == 0, producer
    assert message_count(channel, QUEUE) == 3000


@pytest.mark.parametrize(
    "line",
    ["del self.in_flight[tag]", "last = confirm.delivery_tag", "confirms.clear()"],
)
def test_bug_in_the_producer_is_a_traceback(start, tmp_path, line):
    """Pika would report an exception in one of its callbacks as a lost connection."""
    script = edited(tmp_path, PRODUCER, {line: f"{line}; open('no-file')"})
    producer = start(script, "10")
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


def acknowledge(start, script, count, proxied):
    """Start a consumer. Return how many acknowledgements it needs for all messages."""
    publish(start, str(count))
    consumer = start(script, url=proxied.url)
    last = ACK + struct.pack(">QB", count, 1)  # 1: multiple
    wait_until(lambda: proxied.sent and last in proxied.sent[0], "the last ack")
    assert consumer.stop(signal.SIGINT) == 0
    return proxied.sent[0].count(ACK)


def test_consumer_acknowledges_many_messages_in_one_batch(start, proxied, channel):
    """It acknowledges everything while it waits for more."""
    assert 3 <= acknowledge(start, CONSUMER, 2345, proxied) <= 300
    wait_until_it_has_exited(channel)
    assert message_count(channel, QUEUE) == 0


def test_consumer_with_a_prefetch_of_1_acknowledges_each(start, proxied, tmp_path):
    one = PREFETCH_LINE.replace("1000", "1")
    script = edited(tmp_path, CONSUMER, {PREFETCH_LINE: one})
    assert acknowledge(start, script, 500, proxied) == 500


def test_consumer_takes_not_more_than_1000_messages_in_advance(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    publish(start, "1")
    wait_for_message_count(0, channel, QUEUE)  # so it's consuming
    consumer.process.send_signal(signal.SIGSTOP)
    publish(start, "3000")
    wait_for_message_count(3000 - PREFETCH, channel, QUEUE)


def test_message_is_acknowledged_after_the_work(start, channel, tmp_path):
    publish(start, "1")
    crash = f"os.kill(os.getpid(), 9)\n{WORK}"
    consumer = start(edited(tmp_path, CONSUMER, {WORK: crash}))
    assert consumer.wait() == -signal.SIGKILL
    wait_for_message_count(1, channel, QUEUE)


def wait_until_it_has_exited(channel):
    """Wait until the broker has noticed that the consumer has exited."""

    def noticed():
        return not channel.queue_declare(QUEUE, passive=True).method.consumer_count

    wait_until(noticed, "no consumer", 20)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_messages_that_are_not_done_are_requeued_when_the_consumer_exits(
    start, channel, tmp_path, signum
):
    publish(start, "5000")
    script = edited(tmp_path, CONSUMER, {WORK: f"{WORK}; print(body.split()[0])"})
    consumer = start(script).wait_for("Received 2000")
    status = consumer.stop(signum)
    assert status == (0 if signum == signal.SIGINT else -signum)
    # The last line might be incomplete.
    handled = [int(line[2:-1]) for line in consumer.output if re.match("b'.*'$", line)]
    assert handled == list(range(1, len(handled) + 1))
    wait_until_it_has_exited(channel)
    remaining = numbers(take_all(channel))
    assert sorted(remaining) == list(range(5001 - len(remaining), 5001))
    # It had not acknowledged more messages than it holds in advance.
    assert len(remaining) - (5000 - len(handled)) <= PREFETCH


# Faults: a few minutes.


@pytest.mark.faults
@pytest.mark.timeout(400)
def test_no_message_is_lost_when_the_broker_is_killed_twice(
    start, broker, channel, queue, report
):
    channel.connection.sleep(SETTLED)
    channel.connection.close()
    producer = start(PRODUCER, "50000")
    for kill in range(2):
        producer.wait_for(f"Confirmed {10_000 + kill * 20_000}", timeout=60)
        broker.kill()
        producer.wait_for("Retrying", times=producer.count("Retrying") + 1)
        broker.start()
    assert producer.wait(120) == 0, producer
    assert not producer.count("No confirm in 10 seconds")
    with connect(broker) as connection:
        taken = take_all(connection.channel())
    counts = Counter(numbers(taken))
    assert set(counts) == set(range(1, 50_001))
    assert len({properties.message_id for properties, _ in taken}) == 50_000
    report(f"50,000 messages, 2 SIGKILLs: 0 lost, {len(taken) - 50_000} twice")


@pytest.mark.faults
def test_silent_broker_is_noticed_and_replaced(start, broker):
    url = f"{broker.url}?heartbeat=2&stack_timeout=1"
    producer = start(PRODUCER, "50000", url=url).wait_for("Confirmed 10000")
    # Docker can't pause a broker that's very busy.
    producer.process.send_signal(signal.SIGSTOP)
    with broker.frozen():
        producer.process.send_signal(signal.SIGCONT)
        producer.wait_for("Retrying", times=3, timeout=40)
    assert producer.wait(60) == 0, producer
    with connect(broker) as connection:
        assert message_count(connection.channel(), QUEUE) >= 50_000


@pytest.mark.faults
@pytest.mark.parametrize("prefetch", [PREFETCH, 10])
def test_heartbeats_wait_until_all_that_have_arrived_are_done(
    start, broker, tmp_path, prefetch
):
    """1000 x 10 ms is longer than two heartbeats, and 10 x 10 ms isn't."""
    publish(start, str(PREFETCH))
    lines = {
        WORK: "__import__('time').sleep(0.01)",
        PREFETCH_LINE: PREFETCH_LINE.replace("1000", str(prefetch)),
    }
    script = edited(tmp_path, CONSUMER, lines)
    consumer = start(script, url=f"{broker.url}?heartbeat=1")
    if prefetch == PREFETCH:
        assert consumer.wait() == 1
        assert not consumer.count("Received 1000")
    else:
        consumer.wait_for("Received 1000")
        assert consumer.stop(signal.SIGINT) == 0
