"""advanced/confirms. What its producer shares with reconnect: test_reconnect.py."""

import itertools
import re
import signal
import time

import pytest

from tests.helpers import (
    SETTLED,
    connect,
    documented,
    edited,
    get,
    message_count,
    run_script,
    wait_for_message_count,
)

PRODUCER, CONSUMER = "advanced/confirms/producer.py", "advanced/confirms/consumer.py"
QUEUE = "confirms"
MANY = 10_000_000  # so that the producer is still busy when the test is
# Lines of the scripts.
RECORD = "confirms.append(frame.method)"
SILENCE = "SILENCE = 10  # after so many seconds without a confirm, print a line"
TAGS = "tags = itertools.count(1)"
CHAIN = "numbers = itertools.chain(list(self.in_flight.values()), self.new)"
WORK = "work(body)"
PREFETCH = "channel.basic_qos(prefetch_count=1000)"
IF_ALL_ARE_DONE = "if channel.get_waiting_message_count() == 0:"


def take_all(channel):
    """Take all messages out of the queue. Return their numbers and message IDs."""
    messages = channel.consume(QUEUE, auto_ack=True, inactivity_timeout=30)
    taken = list(itertools.islice(messages, message_count(channel, QUEUE)))
    numbers = [int(body.split()[0]) for _, _, body in taken]
    return numbers, [properties.message_id for _, properties, _ in taken]


def check_not_confirmed(process, count):
    """Return how many messages are confirmed, and the first that isn't."""
    documented("Not confirmed: …")
    printed = repr(process)
    confirmed = int(re.search(r" \[x\] Confirmed (\d+) in \d+\.\d\d s\n", printed)[1])
    pattern = r" \[!\] Not confirmed: message (\d+) and (\d+) more"
    first, more = map(int, re.search(pattern, printed).groups())
    assert confirmed + 1 + more == count
    assert first <= confirmed + 1
    return confirmed, first


def lose_in_flight(start, broker, folder, in_flight, lines, *arguments):
    """Run the producer until so many messages are in flight, and break its connection.

    It gets no confirm before that, and all after it.
    """
    ignore = {RECORD: f"if os.path.exists('confirm'): {RECORD}"}
    script = edited(folder, PRODUCER, ignore | lines)
    producer = start(script, *arguments, cwd=folder).wait_for("No confirm in")
    with connect(broker) as connection:
        wait_for_message_count(in_flight, connection.channel(), QUEUE)
    (folder / "confirm").touch()
    broker.ctl("close_all_connections", "a test")
    return producer


def test_messages_in_flight_are_published_again_before_newer_ones(
    start, broker, tmp_path
):
    arguments = "5000", "--size", "300"
    producer = lose_in_flight(start, broker, tmp_path, 2000, {}, *arguments)
    assert producer.wait() == 0, producer
    silence, retrying = producer.errors
    assert documented("No confirm in 10 seconds") in silence
    assert retrying.endswith("'CONNECTION_FORCED - a test'. Retrying.")
    with connect(broker) as connection:
        _, properties, body = get(connection.channel(), QUEUE)
        numbers, ids = take_all(connection.channel())
    assert (len(body), properties.delivery_mode) == (300, 2)
    assert numbers == [*range(2, 2001), *range(1, 5001)]
    assert len(set(ids)) == 5000  # a duplicate has the same message_id
    run_script(start, PRODUCER, "1")
    with connect(broker) as connection:
        assert take_all(connection.channel())[1][-1] not in ids


def test_producer_that_forgets_what_was_in_flight_never_finishes(
    start, broker, tmp_path
):
    large = "12", "--size", "1000000"  # of which only 10 are in flight
    lines = {CHAIN: "numbers = self.new", SILENCE: "SILENCE = 1"}
    producer = lose_in_flight(start, broker, tmp_path, 10, lines, *large)
    producer.wait_for("No confirm in", times=2)
    assert producer.stop(signal.SIGINT) == 130
    assert check_not_confirmed(producer, 12)[0] <= 2


def test_message_larger_than_the_window_is_sent(start):
    run_script(start, PRODUCER, "2", "--size", "10000001")


def test_full_queue_refuses_a_message(start, broker, channel):
    limit = {"max-length": 1000, "overflow": "reject-publish"}
    broker.put("policies/%2F/full", pattern=f"^{QUEUE}$", definition=limit)
    try:
        producer = start(PRODUCER, "5000")
        assert producer.wait() == 1
    finally:
        broker.delete("policies/%2F/full")
    confirmed, first = check_not_confirmed(producer, 5000)
    assert documented("The broker refused the message") in producer.errors[1]
    stored, _ = take_all(channel)
    assert set(range(1, first)) <= set(stored)
    assert 0 < confirmed <= len(stored)


def test_message_that_no_queue_gets_is_returned(start, tmp_path):
    delete = f"{TAGS}\nchannel.queue_delete(queue='confirms')"
    producer = start(edited(tmp_path, PRODUCER, {TAGS: delete}), "10")
    assert producer.wait() == 1
    assert check_not_confirmed(producer, 10) == (0, 1)
    assert " [!] Not delivered: no queue 'confirms'. Was it deleted?" in producer.errors


def test_deleted_queue_is_noticed(start, broker, channel):
    """Before RabbitMQ 4.3, the producer might wait or reconnect instead."""
    producer = start(PRODUCER, str(MANY)).wait_for("Confirmed 10000")
    channel.queue_delete(QUEUE)
    # The broker might refuse what was in flight before it returns a message.
    lines = ["Not delivered", "The broker refused the message"]
    if broker.version < (4, 3):
        lines += ["No confirm in 10 seconds", documented("INTERNAL_ERROR")]
    producer.wait_for(*lines)


def test_producer_waits_while_the_broker_is_low_on_memory(start, broker):
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        producer = start(PRODUCER, "3000")
        producer.wait_for(" [!] The broker is low on memory. Waiting.")
        assert producer.running
    finally:
        broker.ctl("set_vm_memory_high_watermark", "absolute", "600MB")
    assert producer.wait() == 0, producer


@pytest.mark.parametrize(("prefetch", "count"), [("1000", "2000"), ("1", "1000")])
def test_acknowledgement_is_for_many_messages_unless_the_prefetch_is_1(
    start, tmp_path, prefetch, count
):
    # More than the prefetch: it wouldn't get all if some weren't acknowledged.
    run_script(start, PRODUCER, count)
    lines = {
        IF_ALL_ARE_DONE: f"{IF_ALL_ARE_DONE}\n    print('ack')",
        PREFETCH: PREFETCH.replace("1000", prefetch),
    }
    consumer = start(edited(tmp_path, CONSUMER, lines))
    consumer.wait_for(f"Received {count}")
    assert (consumer.count("ack") < 500) == (prefetch == "1000")


def test_consumer_takes_1000_messages_in_advance_and_acknowledges_after_the_work(
    start, channel, tmp_path
):
    run_script(start, PRODUCER, "1")
    lines = {WORK: "print('working')\n__import__('time').sleep(60)"}
    consumer = start(edited(tmp_path, CONSUMER, lines)).wait_for("working")
    run_script(start, PRODUCER, "3000")
    wait_for_message_count(2001, channel, QUEUE)
    consumer.kill()
    wait_for_message_count(3001, channel, QUEUE)


@pytest.mark.faults
def test_no_message_is_lost_when_the_broker_is_killed(start, broker, report):
    run_script(start, PRODUCER, "0")  # it declares the queue
    time.sleep(SETTLED)
    producer = start(PRODUCER, "30000").wait_for("Confirmed 10000")
    broker.kill()
    broker.start()
    assert producer.wait(60) == 0, producer
    assert producer.count("Retrying") >= 1
    with connect(broker) as connection:
        numbers, ids = take_all(connection.channel())
    assert set(numbers) == set(range(1, 30_001))
    assert len(set(ids)) == 30_000
    report(f"30,000 messages, a SIGKILL: 0 lost, {len(ids) - 30_000} twice")


@pytest.mark.faults
def test_heartbeats_wait_until_all_that_have_arrived_are_done(start, broker, tmp_path):
    """1000 x 5 ms is longer than two heartbeats, and 10 x 5 ms isn't."""
    url = f"{broker.url}?heartbeat=1"
    lines = {WORK: "__import__('time').sleep(0.005)"}
    run_script(start, PRODUCER, "1000")
    consumer = start(edited(tmp_path, CONSUMER, lines), url=url)
    assert consumer.wait() == 1
    # The broker might have received some acknowledgements.
    run_script(start, PRODUCER, "1000")
    lines[PREFETCH] = PREFETCH.replace("1000", "10")
    consumer = start(edited(tmp_path, CONSUMER, lines), url=url)
    consumer.wait_for("Received 1000", timeout=60)
