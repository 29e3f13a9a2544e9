"""advanced/ordered/: what its comments and its page claim."""

from __future__ import annotations

import functools
import random
import signal
from collections import defaultdict

import pytest

from tests.helpers import (
    edited,
    received,
    wait_for_message_count,
)
from tools.common import wait_until

CONSUMER = "advanced/ordered/consumer.py"
PRODUCER = "advanced/ordered/producer.py"
QUEUES = ["shipments_0", "shipments_1"]
UPDATES = ["packed", "sent", "delivered"]

# Lines of the scripts that tests replace.
ORDERED = 'ordered = {"x-queue-type": "quorum", "x-single-active-consumer": True}'
UNORDERED = {ORDERED: 'ordered = {"x-queue-type": "quorum"}'}
PRINT = "print(f\" [x] Received {body.decode(errors='replace')!r}\")"
WORK = "time.sleep(1)  # the work"
PREFETCH = "channel.basic_qos(prefetch_count=1)"
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
LOOP = 'for update in ["packed", "sent", "delivered"]:'
CONSUMING = "channel.start_consuming()"


def send(start, *customers, script=PRODUCER, **options):
    producer = start(script, *customers, **options)
    assert producer.wait() == 0, producer
    return producer.output


def updates(customer):
    return [f"'{customer} {update}'" for update in UPDATES]


# The producer.


def test_each_customer_has_one_queue_that_is_the_same_in_every_process(start, channel):
    customers = {QUEUES[0]: ["bob", "dave", "erin"], QUEUES[1]: ["alice", "carol"]}
    names = [*customers[QUEUES[0]], *customers[QUEUES[1]]]
    output = send(start, *names, PYTHONHASHSEED="1")
    assert send(start, *names, PYTHONHASHSEED="2") == output
    assert output[:5] == [
        f" [x] Sent '{name} packed' to {queue}"
        for queue in QUEUES
        for name in customers[queue]
    ]
    for queue in QUEUES:
        expected = [f"{name} {u}" for u in UPDATES for name in customers[queue]] * 2
        deliveries = zip(expected, channel.consume(queue, auto_ack=True), strict=False)
        for update, (_, properties, body) in deliveries:
            assert (body.decode(), properties.delivery_mode) == (update, 2)
        channel.cancel()


def test_with_hash_a_customers_queue_changes(start, tmp_path):
    line = "queue = QUEUES[zlib.crc32(customer.encode()) % len(QUEUES)]"
    lines = {line: "queue = QUEUES[hash(customer) % len(QUEUES)]"}
    script = edited(tmp_path, PRODUCER, lines)
    customers = "alice", "bob", "carol", "dave", "erin"
    outputs = [
        send(start, *customers, script=script, PYTHONHASHSEED=seed) for seed in "12"
    ]
    assert outputs[0] != outputs[1]


def test_with_a_third_queue_some_customers_queue_changes(start, channel, tmp_path):
    line = 'QUEUES = ["shipments_0", "shipments_1"]'
    more = 'QUEUES = ["shipments_0", "shipments_1", "shipments_2"]'
    script = edited(tmp_path, PRODUCER, {line: more})
    try:
        before, after = send(start), send(start, script=script)
    finally:
        channel.queue_delete("shipments_2")
    changed = {
        old.split()[2] for old, new in zip(before, after, strict=True) if old != new
    }
    assert changed


# The consumer.


@pytest.fixture
def fast(tmp_path):
    """A copy of the consumer whose work takes no time."""
    (tmp_path / "fast").mkdir()
    return edited(tmp_path / "fast", CONSUMER, {WORK: ""})


def test_each_queue_has_one_active_consumer_and_they_share_the_work(
    start, channel, fast
):
    first = start(fast, "shipments_1").wait_until_ready()
    second = start(fast).wait_until_ready()
    send(start)
    first.wait_for("Received", times=6)
    second.wait_for("Received", times=3)
    expected = [f"'{name} {u}'" for u in UPDATES for name in ("alice", "carol")]
    assert received(first) == expected
    assert received(second) == updates("bob")
    for queue in QUEUES:
        wait_for_message_count(0, channel, queue)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_another_consumer_takes_over_with_the_unfinished_update(start, fast, signum):
    first = start(CONSUMER, "shipments_0").wait_until_ready()
    second = start(fast).wait_until_ready()
    send(start, "bob")
    first.wait_for("Received 'bob sent'")
    assert received(second) == []
    assert first.stop(signum) == (0 if signum == signal.SIGINT else -signum)
    second.wait_for("Received", times=2)
    assert received(second) == updates("bob")[1:]

    # The first one is back, but on standby.
    first = start(CONSUMER, "shipments_0").wait_until_ready()
    send(start, "bob")
    second.wait_for("Received", times=5)
    assert received(first) == []
    second.stop(signum)
    send(start, "bob")
    first.wait_for("Received 'bob packed'")


def test_without_a_single_active_consumer_two_work_on_one_customer(start, tmp_path):
    script = edited(tmp_path, CONSUMER, UNORDERED)
    first, second = (start(script).wait_until_ready() for _ in range(2))
    send(start, "bob", script=edited(tmp_path, PRODUCER, UNORDERED))
    first.wait_for("Received")
    second.wait_for("Received")
    assert received(first)[0] == "'bob packed'"
    assert received(second)[0] == "'bob sent'"


def test_several_unfinished_updates_come_again_in_order(start, tmp_path, fast):
    lines = {PREFETCH: "channel.basic_qos(prefetch_count=5)", WORK: "", ACK: "pass"}
    holder = start(edited(tmp_path, CONSUMER, lines)).wait_until_ready()
    second = start(fast).wait_until_ready()
    send(start, "alice", "carol")
    holder.wait_for("Received", times=5)
    holder.kill()
    second.wait_for("Received", times=6)
    assert received(second)[:5] == received(holder)


def test_failing_work_stops_the_consumer_and_nothing_overtakes(start, tmp_path, fast):
    lines = {WORK: "assert b'sent' not in body"}
    failing = start(edited(tmp_path, CONSUMER, lines)).wait_until_ready()
    second = start(fast).wait_until_ready()
    send(start, "alice")
    assert failing.wait() == 1
    assert failing.errors[-1] == "AssertionError"
    second.wait_for("Received", times=2)
    assert received(second) == updates("alice")[1:]


@pytest.mark.parametrize("prefetch", [1, 4])
def test_requeued_update_is_overtaken(start, broker, tmp_path, prefetch):
    # The consumer rejects the second update once.
    reject = "if b'sent' in body and not method.redelivered:\n"
    reject += "    return channel.basic_nack(method.delivery_tag)"
    lines = {PREFETCH: f"channel.basic_qos(prefetch_count={prefetch})", WORK: reject}
    send(start, "alice")
    consumer = start(edited(tmp_path, CONSUMER, lines))
    consumer.wait_for("Received", times=4)
    packed, sent, delivered = updates("alice")
    kept = prefetch == 1 and broker.version >= (4, 0)
    expected = [sent, delivered] if kept else [delivered, sent]
    assert received(consumer) == [packed, sent, *expected]


def test_updates_of_a_consumer_that_closes_its_connection_are_overtaken(
    start, tmp_path, fast
):
    lines = {
        PREFETCH: "channel.basic_qos(prefetch_count=4)",
        CONSUMING: f"try:\n    {CONSUMING}\nfinally:\n    connection.close()",
    }
    closing = start(edited(tmp_path, CONSUMER, lines)).wait_until_ready()
    second = start(fast).wait_until_ready()
    sent = [line.split("'")[1] for line in send(start, "alice", "carol", "frank")]
    closing.wait_for("Received")
    assert closing.stop(signal.SIGINT) == 0
    second.wait_for("Received", times=9)
    assert received(second) != [f"'{update}'" for update in sent]


def test_queue_declared_without_the_argument_is_refused(start, channel, tmp_path):
    start(CONSUMER).wait_until_ready()
    for script in (CONSUMER, PRODUCER):
        other = start(edited(tmp_path, script, UNORDERED))
        assert other.wait() == 1
        (line,) = other.errors
        assert "PRECONDITION_FAILED" in line
        assert "x-single-active-consumer" in line


@pytest.mark.faults
def test_suspended_consumer_still_works_on_what_another_took_over(
    start, broker, tmp_path
):
    done = f"{WORK}\nprint(' [x] Done', flush=True)"
    url = f"{broker.url}?heartbeat=2"
    first = start(edited(tmp_path, CONSUMER, {WORK: done}), url=url).wait_until_ready()
    second = start(CONSUMER).wait_until_ready()
    send(start, "alice")
    first.wait_for("Received")
    first.process.send_signal(signal.SIGSTOP)
    second.wait_for("Received")  # the broker has missed two heartbeats
    first.process.send_signal(signal.SIGCONT)
    first.wait_for("Done")
    assert first.wait() == 1
    assert received(first) == received(second)[:1] == updates("alice")[:1]


# Many updates, and consumers that are killed.

CUSTOMERS = "alice", "bob", "carol", "dave", "erin", "frank"
COUNT = 50  # updates for each customer
IN_ORDER = {customer: list(range(COUNT)) for customer in CUSTOMERS}
TIMED = {
    # The lines of several processes are sorted by time.
    PRINT: "print(time.monotonic_ns(), body.decode())",
    WORK: "import random; time.sleep(random.random() / 50)",
}


def work(start, folder, kills, lines):
    """Handle many updates, and kill a consumer now and then.

    Return how often one arrived again, and each customer's first ones in their order.
    """
    arrived = []

    def on_line(line):
        time, _, update = line.partition(" ")
        if time.isdecimal():
            arrived.append((int(time), *update.split()))

    def consumer():
        return start(script, on_line=on_line)

    def has_arrived(count):
        return len({(customer, n) for _, customer, n in arrived}) >= count

    def first_ones():
        customers = defaultdict(dict)  # the keys of a dict are in order of arrival
        for _, customer, n in sorted(arrived):
            customers[customer].setdefault(int(n))
        return {customer: list(numbers) for customer, numbers in customers.items()}

    script = edited(folder, CONSUMER, TIMED | lines)
    many = {LOOP: f"for update in range({COUNT}):"}
    consumers = [consumer().wait_until_ready() for _ in range(3)]
    producer = start(edited(folder, PRODUCER, many | lines), *CUSTOMERS)
    total = len(CUSTOMERS) * COUNT
    for moment in sorted(random.sample(range(10, total), kills)):
        wait_until(functools.partial(has_arrived, moment), producer, 60)
        i = random.randrange(len(consumers))
        consumers[i].kill()
        consumers[i] = consumer()
    complete = dict.fromkeys(CUSTOMERS, COUNT)
    wait_until(
        lambda: {c: len(n) for c, n in first_ones().items()} == complete, producer, 60
    )
    return len(arrived) - total, first_ones()


@pytest.mark.faults
def test_kills_do_not_change_the_order_of_a_customers_updates(start, tmp_path, report):
    again, updates = work(start, tmp_path, 20, {})
    assert updates == IN_ORDER
    report(f"20 kills, {again} updates arrived again, none out of order")


@pytest.mark.faults
def test_without_a_single_active_consumer_updates_are_out_of_order(start, tmp_path):
    _, updates = work(start, tmp_path, 0, UNORDERED)
    assert updates != IN_ORDER
