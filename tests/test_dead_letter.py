"""advanced/dead_letter/: what its comments and its section of the README claim."""

import re
import signal
from collections import Counter

import pika
import pytest
from broker import wait_until
from conftest import received, wait_for_messages, waiting
from end import End

PRODUCER = "advanced/dead_letter/producer.py"
CONSUMER = "advanced/dead_letter/consumer.py"
TEA, CUT_OFF, UNICORN, BOMB, COFFEE = ORDERS = [
    '{"item": "tea"}',
    '{"item": "cof',
    '{"item": "unicorn"}',
    '{"item": "bomb"}',
    '{"item": "coffee"}',
]
TRIES = 4  # a first one, and three after coming back


def send(start, *orders):
    producer = start(PRODUCER, *orders)
    assert producer.end() == 0, str(producer)
    return producer


def done(end):
    return [line.split("Done ", 1)[1] for line in end.lines if " [x] Done " in line]


def dead(start, *arguments):
    """Return what --dead shows of each: (message id, body, reason, tries, first queue)."""
    end = start(CONSUMER, "--dead", *arguments)
    assert end.end() == 0, str(end)
    assert end.errors == []
    found = re.findall(
        r" \[x\] Dead '(.*)': '(.*)'\n     reason '(\w+)', tries (\d), first queue '(\w+)'",
        "\n".join(end.lines),
    )
    assert len(found) == end.count("Dead"), str(end)
    return [(name, body, reason, int(tries), queue) for name, body, reason, tries, queue in found]


def deaths(start):
    """Return {body: (reason, tries)} of the dead orders."""
    return {body: (reason, tries) for _, body, reason, tries, _ in dead(start)}


def test_five_orders_by_default_persistent_and_each_with_an_id(start, channel):
    producer = send(start)
    assert producer.lines == [f" [x] Sent {order!r}" for order in ORDERS]
    messages = [channel.basic_get("orders", auto_ack=True) for _ in ORDERS]
    assert [body.decode() for _, _, body in messages] == ORDERS
    assert {properties.delivery_mode for _, properties, _ in messages} == {2}
    assert len({properties.message_id for _, properties, _ in messages}) == 5


def test_bad_orders_end_in_the_dead_letter_queue_and_good_ones_are_done_once(start, channel):
    send(start)
    killed = [start(CONSUMER).wait_for("bomb") for _ in range(TRIES)]
    survivor = start(CONSUMER).ready()
    wait_for_messages(3, channel, "dead_orders")
    consumers = [*killed, survivor]
    assert [end.end() for end in killed] == [-signal.SIGKILL] * TRIES
    End.wait_until(lambda: sum(end.count("Done") for end in consumers) == 2, consumers)
    assert survivor.stop() == 0

    assert [item for end in consumers for item in done(end)] == ["'tea'", "'coffee'"]
    tried = Counter(body.strip("'") for end in consumers for body in received(end))
    assert tried == {TEA: 1, CUT_OFF: 1, UNICORN: TRIES, BOMB: TRIES, COFFEE: 1}
    assert all(end.errors == [] for end in consumers)

    assert waiting(channel, "orders") == 0
    assert deaths(start) == {
        CUT_OFF: ("rejected", 1),
        UNICORN: ("delivery_limit", TRIES),
        BOMB: ("delivery_limit", TRIES),
    }
    assert {queue for *_, queue in dead(start)} == {"orders"}


def test_an_order_that_fails_is_not_tried_for_ever_and_the_next_one_is_done(start):
    send(start, UNICORN, TEA)
    consumer = start(CONSUMER).wait_for("Done")
    assert [body.strip("'") for body in received(consumer)] == [UNICORN] * TRIES + [TEA]
    assert consumer.count("Failed: LookupError") == TRIES
    assert consumer.stop() == 0


def test_what_cannot_be_read_is_dead_at_once(start, channel):
    bodies = [b"", b"\xff\xfe\x1b[2J", b"null", b"[]", b"[" * 100_000, b"{}", b'"item"']
    consumer = start(CONSUMER).ready()
    for body in bodies:
        channel.basic_publish("", "orders", body)
    send(start, TEA)
    consumer.wait_for("Done 'tea'")
    wait_for_messages(len(bodies), channel, "dead_orders")
    assert consumer.count("Received") == len(bodies) + 1
    assert consumer.count("Rejected") == len(bodies)
    assert consumer.stop() == 0
    assert consumer.errors == []
    dead = [channel.basic_get("dead_orders", auto_ack=True) for _ in bodies]
    assert [body for _, _, body in dead] == bodies
    assert {properties.headers["x-death"][0]["reason"] for _, properties, _ in dead} == {"rejected"}


def test_while_one_consumer_is_dead_another_goes_on(start):
    consumers = [start(CONSUMER).ready() for _ in range(TRIES + 1)]
    send(start, BOMB, *[f'{{"item": "cup {i}"}}' for i in range(20)])
    End.wait_until(lambda: sum(end.count("Done") for end in consumers) == 20, consumers)
    End.wait_until(lambda: sum(end.process.poll() is not None for end in consumers) == TRIES, "")
    for end in consumers:
        end.stop()
    cups = sorted(item for end in consumers for item in done(end))
    assert cups == sorted(f"'cup {i}'" for i in range(20))


def test_looking_at_the_dead_more_than_20_times_does_not_drop_them(start, channel):
    start(CONSUMER).ready()
    send(start, CUT_OFF)
    wait_for_messages(1, channel, "dead_orders")
    for _ in range(25):
        method, _, _ = next(channel.consume("dead_orders", inactivity_timeout=10))
        channel.basic_reject(method.delivery_tag, requeue=True)
        channel.cancel()
    wait_for_messages(1, channel, "dead_orders")
    assert deaths(start) == {CUT_OFF: ("rejected", 1)}
    wait_for_messages(1, channel, "dead_orders")
    assert deaths(start) == {CUT_OFF: ("rejected", 1)}


def test_a_dead_order_can_be_put_back_alone_and_begins_anew(start, channel):
    consumer = start(CONSUMER).ready()
    send(start, UNICORN, CUT_OFF)
    wait_for_messages(2, channel, "dead_orders")
    assert consumer.stop() == 0
    names = {body: name for name, body, *_ in dead(start)}
    wait_for_messages(2, channel, "dead_orders")

    end = start(CONSUMER, "--requeue", names[UNICORN])
    assert end.end() == 0, str(end)
    assert end.lines[-1] == f" [x] Put back {names[UNICORN]!r}"
    wait_for_messages(1, channel, "dead_orders")
    method, properties, body = channel.basic_get("orders")
    assert (body.decode(), properties.message_id) == (UNICORN, names[UNICORN])
    assert properties.delivery_mode == 2
    assert set(properties.headers or {}) <= {"x-delivery-count"}  # 3.10 has it from the beginning
    channel.basic_reject(method.delivery_tag, requeue=True)

    consumer = start(CONSUMER).ready()
    wait_for_messages(2, channel, "dead_orders")
    assert consumer.stop() == 0
    assert consumer.count("Received") == TRIES - 1  # one was the test's
    assert deaths(start) == {UNICORN: ("delivery_limit", TRIES), CUT_OFF: ("rejected", 1)}


def test_a_dead_order_keeps_the_headers_that_are_its_own(start, channel):
    start(CONSUMER).ready()
    properties = pika.BasicProperties(message_id="mine", headers={"shop": "Lyon"})
    channel.basic_publish("", "orders", b"?", properties)
    wait_for_messages(1, channel, "dead_orders")
    other = start(CONSUMER, "--requeue", "mine")
    assert other.end() == 0
    wait_for_messages(1, channel, "dead_orders")  # it is as unreadable as before
    _, properties, _ = channel.basic_get("dead_orders", auto_ack=True)
    assert properties.headers["shop"] == "Lyon"
    assert properties.headers["x-death"][0]["count"] == 1


def test_an_id_that_no_dead_order_has_is_an_error(start):
    end = start(CONSUMER, "--dead", "--requeue", "nobody")
    assert end.end() == 1
    assert end.errors == [" [!] No dead order has the message id 'nobody'"]


@pytest.mark.parametrize(
    ("limit", "in_3", "in_4"),
    [(3, TRIES, TRIES), (-1, 1, 50), (1_000_000_000, 50, 50), (None, 50, 21)],
)
def test_how_often_a_quorum_queue_delivers_what_is_rejected(broker, channel, limit, in_3, in_4):
    arguments = {"x-queue-type": "quorum"} | ({} if limit is None else {"x-delivery-limit": limit})
    channel.queue_declare("rejects", durable=True, arguments=arguments)
    try:
        channel.basic_publish("", "rejects", b"x")
        tries = 0
        for method, _, _ in channel.consume("rejects", inactivity_timeout=1):
            if method is None or tries == 50:
                break
            channel.basic_reject(method.delivery_tag, requeue=True)
            tries += 1
        channel.cancel()
    finally:
        channel.queue_delete("rejects")
    assert tries == (in_3 if broker.version.startswith("3.") else in_4)


def test_a_nack_counts_up_to_4_2_and_no_more_since_4_3(start, broker, channel):
    counts = tuple(map(int, broker.version.split(".")[:2])) < (4, 3)
    assert start(CONSUMER, "--dead").end() == 0  # declares where the dead are to go
    send(start, TEA)
    nacks = 0
    for method, _, _ in channel.consume("orders", inactivity_timeout=1):
        if method is None or nacks == 10 * TRIES:
            break
        channel.basic_nack(method.delivery_tag, requeue=True)
        nacks += 1
    channel.cancel()
    assert nacks == (TRIES if counts else 10 * TRIES)
    wait_for_messages(1 if counts else 0, channel, "dead_orders")


def test_an_order_that_has_nowhere_to_go_stays_where_it_is(start, broker, channel):
    consumer = start(CONSUMER).ready()
    channel.queue_unbind("dead_orders", "dead_letters")
    send(start, CUT_OFF)
    consumer.wait_for("Rejected")
    assert consumer.stop() == 0

    def listed():  # the broker brings these figures up to date every few seconds
        return sorted(broker.ctl("list_queues", "--silent", "name", "messages").splitlines())

    wait_until(lambda: listed() == ["dead_orders\t0", "orders\t1"], "the order in orders", 20)


def test_a_higher_prefetch_would_let_good_orders_die_of_their_neighbour(start, broker, channel):
    start(CONSUMER, "--dead").end()
    send(start, BOMB, TEA)
    for _ in range(TRIES):
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            greedy = connection.channel()
            deliveries = greedy.consume("orders", inactivity_timeout=10)
            assert [next(deliveries)[2].decode() for _ in range(2)] == [BOMB, TEA]
    wait_for_messages(2, channel, "dead_orders")


def test_a_consumer_whose_queue_is_deleted_says_so(start, channel):
    consumer = start(CONSUMER).ready()
    channel.queue_delete("orders")
    assert consumer.end() == 1
    assert consumer.errors[0].startswith(" [!] The queue orders was deleted")
