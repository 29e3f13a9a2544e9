"""advanced/ordered/: what its comments and its page claim."""

import random
import signal

import pytest

from tests.helpers import edited, received, run_script, wait_for_message_count
from tools.common import wait_until

CONSUMER = "advanced/ordered/consumer.py"
PRODUCER = "advanced/ordered/producer.py"
UPDATES = ["packed", "sent", "delivered"]

# Lines of the scripts that tests replace.
ORDERED = 'ordered = {"x-queue-type": "quorum", "x-single-active-consumer": True}'
UNORDERED = {ORDERED: 'ordered = {"x-queue-type": "quorum"}'}
PRINT = "print(f\" [x] Received {body.decode(errors='replace')!r}\")"
WORK = "time.sleep(1)  # the work"
FAST = {WORK: ""}
PREFETCH = "channel.basic_qos(prefetch_count=1)"
CHOICE = "queue = QUEUES[zlib.crc32(customer.encode()) % len(QUEUES)]"
LOOP = 'for update in ["packed", "sent", "delivered"]:'
CONSUMING = "channel.start_consuming()"


def updates(customer):
    return [f"'{customer} {update}'" for update in UPDATES]


def test_each_customer_has_one_queue_in_every_process(start, channel, tmp_path):
    def choices(seed, lines=None):
        """Return the queue of each of 9 customers, as pairs."""
        script = edited(tmp_path, PRODUCER, lines or {})
        customers = map(str, range(9))
        output = run_script(start, script, *customers, PYTHONHASHSEED=seed)
        return {(line.split()[2], line.split()[-1]) for line in output}

    chosen = choices("1")
    assert choices("2") == chosen
    assert len(chosen) == 9
    assert next(channel.consume("shipments_0"))[1].delivery_mode == 2

    by_hash = {CHOICE: "queue = QUEUES[hash(customer) % len(QUEUES)]"}
    assert choices("1", by_hash) != choices("2", by_hash)


def test_another_consumer_takes_over_with_the_unfinished_update(start, tmp_path):
    failing = edited(tmp_path, CONSUMER, {WORK: "assert b'sent' not in body"})
    first = start(failing, "shipments_0").wait_until_ready()
    second = start(edited(tmp_path, CONSUMER, FAST)).wait_until_ready()
    run_script(start, PRODUCER, "bob")
    assert first.wait() == 1
    assert first.errors[-1] == "AssertionError"
    second.wait_for("Received", times=2)
    assert received(second) == updates("bob")[1:]

    # The first one is back, but on standby.
    first = start(CONSUMER, "shipments_0").wait_until_ready()
    run_script(start, PRODUCER, "bob")
    second.wait_for("Received", times=5)
    assert received(first) == []
    assert second.stop(signal.SIGINT) == 0
    run_script(start, PRODUCER, "bob")
    first.wait_for("Received 'bob packed'")


def test_without_a_single_active_consumer_two_work_on_one_customer(
    start, channel, tmp_path
):
    script = edited(tmp_path, CONSUMER, UNORDERED | {WORK: "time.sleep(60)"})
    first, second = (start(script).wait_until_ready() for _ in range(2))
    run_script(start, edited(tmp_path, PRODUCER, UNORDERED), "bob")
    first.wait_for("Received 'bob packed'")
    second.wait_for("Received 'bob sent'")
    wait_for_message_count(1, channel, "shipments_0")  # each takes one at a time


@pytest.mark.parametrize("prefetch", [1, 4])
def test_requeued_update_is_overtaken(start, broker, tmp_path, prefetch):
    # The consumer rejects the second update once.
    reject = "if b'sent' in body and not method.redelivered:\n"
    reject += "    return channel.basic_nack(method.delivery_tag)"
    lines = {PREFETCH: f"channel.basic_qos(prefetch_count={prefetch})", WORK: reject}
    run_script(start, PRODUCER, "alice")
    consumer = start(edited(tmp_path, CONSUMER, lines))
    consumer.wait_for("Received", times=4)
    packed, sent, delivered = updates("alice")
    kept = prefetch == 1 and broker.version >= (4, 0)
    expected = [sent, delivered] if kept else [delivered, sent]
    assert received(consumer) == [packed, sent, *expected]


def test_producer_sends_nothing_after_a_refused_update(start, tmp_path):
    publish = "channel.basic_publish("
    refuse = {publish: f"raise pika.exceptions.NackError([])\n{publish}"}
    producer = start(edited(tmp_path, PRODUCER, refuse), "bob")
    assert producer.wait() == 1
    assert (producer.output, len(producer.errors)) == ([], 1)


def test_updates_of_a_consumer_that_closes_its_connection_are_overtaken(
    start, tmp_path
):
    lines = {
        PREFETCH: "channel.basic_qos(prefetch_count=4)",
        WORK: "time.sleep(60)",
        CONSUMING: f"try:\n    {CONSUMING}\nfinally:\n    connection.close()",
    }
    closing = start(edited(tmp_path, CONSUMER, lines)).wait_until_ready()
    second = start(edited(tmp_path, CONSUMER, FAST)).wait_until_ready()
    sent = run_script(start, PRODUCER, "alice", "carol", "frank")
    closing.wait_for("Received")
    assert closing.stop(signal.SIGINT) == 0
    second.wait_for("Received", times=9)
    in_order = [line.removeprefix(" [x] Sent ").split(" to ")[0] for line in sent]
    assert received(second) != in_order


@pytest.mark.faults
def test_suspended_consumer_still_works_on_what_another_took_over(
    start, broker, tmp_path
):
    script = edited(tmp_path, CONSUMER, {WORK: f"{WORK}\nprint(' [x] Done')"})
    first = start(script, url=f"{broker.url}?heartbeat=2").wait_until_ready()
    second = start(CONSUMER).wait_until_ready()
    run_script(start, PRODUCER, "alice")
    first.wait_for("Received").process.send_signal(signal.SIGSTOP)
    second.wait_for("Received")  # the broker has missed two heartbeats
    first.process.send_signal(signal.SIGCONT)
    first.wait_for("Done")
    assert first.wait() == 1
    assert received(first) == received(second)[:1] == updates("alice")[:1]


@pytest.mark.faults
def test_kills_do_not_change_the_order_of_a_customers_updates(start, tmp_path, report):
    arrived = []  # time, customer and number of each update
    lines = {
        # A crash brings several unfinished updates back, and these in order, too.
        PREFETCH: "channel.basic_qos(prefetch_count=5)",
        PRINT: "print(time.monotonic_ns(), body.decode())",
        WORK: "import random; time.sleep(random.random() / 50)",
    }
    script = edited(tmp_path, CONSUMER, lines)

    def on_line(line):
        if line[0].isdecimal():
            arrived.append(tuple(map(int, line.split())))

    def first_arrivals():
        return dict.fromkeys((customer, n) for _, customer, n in sorted(arrived))

    consumers = [start(script, on_line=on_line).wait_until_ready() for _ in range(3)]
    producer = edited(tmp_path, PRODUCER, {LOOP: "for update in range(50):"})
    producer = start(producer, *map(str, range(6)))
    for moment in sorted(random.sample(range(10, 300), 20)):
        wait_until(lambda n=moment: len(first_arrivals()) >= n, producer, 60)
        i = random.randrange(len(consumers))
        consumers[i].kill()
        consumers[i] = start(script, on_line=on_line)
    wait_until(lambda: len(first_arrivals()) == 300, producer, 60)
    for customer in range(6):
        numbers = [n for who, n in first_arrivals() if who == customer]
        assert numbers == list(range(50))
    report(f"20 kills, {len(arrived) - 300} updates arrived again, none out of order")
