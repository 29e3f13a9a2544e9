"""advanced/dead_letter: what its scripts and its page say."""

import signal
from collections import Counter

import pika
import pytest
from broker import wait_until
from conftest import done, edited, get, message_count, received, wait_for_message_count
from script import ScriptProcess

PRODUCER = "advanced/dead_letter/producer.py"
CONSUMER = "advanced/dead_letter/consumer.py"
TEA, CUT_OFF, UNICORN, BOMB, COFFEE = ORDERS = [
    '{"item": "tea"}',
    '{"item": "cof',
    '{"item": "unicorn"}',
    '{"item": "bomb"}',
    '{"item": "coffee"}',
]
WORK = 'if item == "unicorn":'  # the first line of fill_order()
ATTEMPTS = 4  # the first one, and one more after each of three returns


def send(start, *orders):
    producer = start(PRODUCER, *orders)
    assert producer.wait() == 0, producer
    return producer


def dead(start):
    """Return the lines that --dead prints, without their beginning."""
    process = start(CONSUMER, "--dead")
    assert process.wait() == 0, process
    assert process.errors == []
    return [line.removeprefix(" [x] Dead ") for line in process.output]


def test_producer_sends_five_orders_by_default(start, channel):
    producer = send(start)
    assert producer.output == [f" [x] Sent {order!r}" for order in ORDERS]
    messages = [channel.basic_get("orders", auto_ack=True) for _ in ORDERS]
    assert [body.decode() for _, _, body in messages] == ORDERS
    types = {properties.content_type for _, properties, _ in messages}
    assert types == {"application/json"}


def test_bad_orders_become_dead_letters_and_good_ones_are_done_once(start, channel):
    send(start)
    killed = [start(CONSUMER).wait_for("bomb") for _ in range(ATTEMPTS)]
    survivor = start(CONSUMER).wait_until_ready()
    consumers = [*killed, survivor]
    assert [process.wait() for process in killed] == [-signal.SIGKILL] * ATTEMPTS
    wait_for_message_count(3, channel, "dead_orders")

    # The coffee can be done before the bomb's last attempt: while the broker notices
    # that a consumer was killed, the next one already gets the next order.
    def finished():
        return len(done(*consumers)) == 2

    ScriptProcess.wait_until(finished, consumers)
    assert survivor.stop(signal.SIGINT) == 0

    assert done(*consumers) == ["'tea'", "'coffee'"]
    attempts = Counter(body for process in consumers for body in received(process))
    assert attempts == {
        repr(TEA): 1,
        repr(CUT_OFF): 1,
        repr(UNICORN): ATTEMPTS,
        repr(BOMB): ATTEMPTS,
        repr(COFFEE): 1,
    }
    requeued = " [!] Requeued: OutOfStock('there are no unicorns')"
    assert killed[0].errors == [
        " [!] Rejected: JSONDecodeError",
        *[requeued] * ATTEMPTS,
    ]
    assert message_count(channel, "orders") == 0
    assert sorted(dead(start)) == [
        f"{BOMB!r}: delivery_limit",
        f"{CUT_OFF!r}: rejected",
        f"{UNICORN!r}: delivery_limit",
    ]
    wait_for_message_count(3, channel, "dead_orders")


def test_failing_order_does_not_block_the_next_one(start):
    send(start, UNICORN, TEA)
    consumer = start(CONSUMER).wait_for("Done 'tea'")
    assert received(consumer) == [repr(UNICORN)] * ATTEMPTS + [repr(TEA)]
    assert consumer.stop(signal.SIGINT) == 0


def test_order_that_is_not_valid_becomes_a_dead_letter_immediately(start, channel):
    bodies = [b"", b"\xff\xfe\x1b[2J", b"null", b"[]", b"[" * 99_999, b"{}", b'"item"']
    consumer = start(CONSUMER).wait_until_ready()
    for body in bodies:
        channel.basic_publish("", "orders", body)
    send(start, TEA)
    consumer.wait_for("Done 'tea'")
    wait_for_message_count(len(bodies), channel, "dead_orders")
    assert len(received(consumer)) == len(bodies) + 1
    assert all(line.startswith(" [!] Rejected: ") for line in consumer.errors)
    assert len(consumer.errors) == len(bodies)
    assert all(line.isprintable() for line in consumer.errors + consumer.output)
    assert consumer.stop(signal.SIGINT) == 0
    messages = [channel.basic_get("dead_orders", auto_ack=True) for _ in bodies]
    assert [body for _, _, body in messages] == bodies
    deaths = [properties.headers["x-death"][0] for _, properties, _ in messages]
    assert {(death["reason"], death["queue"]) for death in deaths} == {
        ("rejected", "orders")
    }


def test_other_consumers_continue_while_an_order_kills_some(start):
    consumers = [start(CONSUMER).wait_until_ready() for _ in range(ATTEMPTS + 1)]
    cups = [f"cup {i}" for i in range(20)]
    send(start, BOMB, *[f'{{"item": "{cup}"}}' for cup in cups])

    def finished():
        killed = [process for process in consumers if not process.running]
        return len(killed) == ATTEMPTS and len(done(*consumers)) == 20

    ScriptProcess.wait_until(finished, consumers)
    assert sorted(done(*consumers)) == sorted(map(repr, cups))


def test_bug_is_a_traceback_and_its_order_becomes_a_dead_letter_in_the_end(
    start, channel, tmp_path
):
    script = edited(tmp_path, CONSUMER, WORK, 'open("no-file")', WORK)
    send(start, TEA)
    for _ in range(ATTEMPTS):
        consumer = start(script)
        assert consumer.wait() == 1
        assert consumer.count("Traceback", 'open("no-file")') == 2
        assert not consumer.count("RabbitMQ")
    wait_for_message_count(1, channel, "dead_orders")


def test_slow_order_loses_the_connection_and_that_counts_as_an_attempt(
    start, broker, channel, tmp_path
):
    slow = "__import__('time').sleep(7)"
    script = edited(tmp_path, CONSUMER, WORK, slow, WORK)
    send(start, TEA)
    consumer = start(script, url=f"{broker.url}?heartbeat=1")
    assert consumer.wait() == 1
    (error,) = consumer.errors
    assert "StreamLostError" in error or "ConnectionResetError" in error
    _, properties, _ = get(channel, "orders")
    assert properties.headers["x-delivery-count"] == 1


# Dead letters.


def test_only_ten_dead_letters_are_printed_however_many_there_are(
    start, broker, channel
):
    dead(start)  # declares the queue
    channel.confirm_delivery()
    for i in range(30):
        channel.basic_publish("", "dead_orders", str(i).encode())
    channel.basic_publish("", "dead_orders", b"last")
    assert dead(start) == [f"'{i}': None" for i in range(10)]
    wait_for_message_count(31, channel, "dead_orders")


@pytest.mark.faults
def test_20_000_dead_letters_are_no_problem(start, broker, channel):
    dead(start)
    empty = pika.BasicProperties()
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        fast = connection.channel()  # without confirms, so 3.10 can drop some
        for _ in range(20_000):
            fast.basic_publish("", "dead_orders", b"{}", empty)
        fast.queue_declare("dead_orders", passive=True)

    def many():
        return message_count(channel, "dead_orders") > 19_000

    wait_until(many, "19,000 messages", 60)
    assert len(dead(start)) == 10
    wait_until(many, "19,000 messages", 60)


def test_dead_letter_that_is_moved_back_gets_as_many_attempts_again(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    send(start, UNICORN)
    wait_for_message_count(1, channel, "dead_orders")
    # A shovel does the same: it publishes the message with its headers.
    method, properties, body = channel.basic_get("dead_orders")
    channel.confirm_delivery()
    channel.basic_publish("", "orders", body, properties, mandatory=True)
    channel.basic_ack(method.delivery_tag)
    wait_for_message_count(1, channel, "dead_orders")
    assert received(consumer) == [repr(UNICORN)] * ATTEMPTS * 2
    assert dead(start) == [f"{UNICORN!r}: delivery_limit"]


def listed(broker):
    """Return the lines "queue, number of messages". They can be some seconds old."""
    return sorted(broker.ctl("list_queues", "--silent", "name", "messages").split("\n"))


def test_dead_letter_without_a_place_to_go_stays_in_its_queue(start, broker, channel):
    consumer = start(CONSUMER).wait_until_ready()
    channel.queue_unbind("dead_orders", "dead_letters")
    send(start, CUT_OFF)
    consumer.wait_for("Rejected")
    assert consumer.stop(signal.SIGINT) == 0

    expected = ["", "dead_orders\t0", "orders\t1"]
    wait_until(lambda: listed(broker) == expected, "the order", 20, interval=2)


@pytest.mark.usefixtures("start")
def test_at_most_once_deletes_a_dead_letter_without_a_place_to_go(broker, channel):
    arguments = {"x-queue-type": "quorum", "x-dead-letter-exchange": "amq.fanout"}
    channel.queue_declare("orders", durable=True, arguments=arguments)
    channel.basic_publish("", "orders", b"x")
    method, _, _ = get(channel, "orders")
    channel.basic_reject(method.delivery_tag, requeue=False)
    wait_until(lambda: listed(broker) == ["", "orders\t0"], "no order", 20, interval=2)


# What RabbitMQ does, on each version.


@pytest.mark.parametrize(
    ("limit", "in_3", "in_4"),
    [(3, 4, 4), (-1, 1, 50), (1_000_000_000, 50, 50), (None, 50, 21)],
)
def test_delivery_limit_of_rejected_messages(broker, channel, limit, in_3, in_4):
    arguments = {"x-queue-type": "quorum"}
    if limit is not None:
        arguments["x-delivery-limit"] = limit
    channel.queue_declare("rejects", durable=True, arguments=arguments)
    try:
        channel.basic_publish("", "rejects", b"x")
        attempts = 0
        for method, _, _ in channel.consume("rejects", inactivity_timeout=2):
            if method is None or attempts == 50:
                break
            channel.basic_reject(method.delivery_tag, requeue=True)
            attempts += 1
        channel.cancel()
    finally:
        channel.queue_delete("rejects")
    assert attempts == (in_3 if broker.before(4) else in_4)


def test_nack_counts_towards_the_delivery_limit_only_before_4_3(start, broker, channel):
    dead(start)  # declares the queues
    send(start, TEA)
    nacks = 0
    for method, _, _ in channel.consume("orders", inactivity_timeout=2):
        if method is None or nacks == 10 * ATTEMPTS:
            break
        channel.basic_nack(method.delivery_tag, requeue=True)
        nacks += 1
    channel.cancel()
    counts = broker.before(4, 3)
    assert nacks == (ATTEMPTS if counts else 10 * ATTEMPTS)
    wait_for_message_count(int(counts), channel, "dead_orders")


def test_prefetch_above_1_makes_dead_letters_of_good_orders_too(start, broker, channel):
    dead(start)
    send(start, BOMB, TEA)
    for _ in range(ATTEMPTS):
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            greedy = connection.channel()
            deliveries = greedy.consume("orders", inactivity_timeout=20)
            assert [next(deliveries)[2].decode() for _ in range(2)] == [BOMB, TEA]
    wait_for_message_count(2, channel, "dead_orders")


def test_consumer_takes_one_order_at_a_time(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    send(start, COFFEE)
    consumer.wait_for("Done 'coffee'")
    consumer.process.send_signal(signal.SIGSTOP)
    send(start, TEA, TEA, TEA)
    wait_for_message_count(2, channel, "orders")
