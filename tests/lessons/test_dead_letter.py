"""advanced/dead_letter: what its scripts and its page say.

Each test waits for its dead letters, so that none can reach the next test.
"""

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pika

from tests.helpers import (
    crash_with_message,
    done,
    edited,
    get,
    received,
    wait_for_message_count,
)
from tools.common import wait_until
from tools.pages import blocks

PRODUCER = "advanced/dead_letter/producer.py"
CONSUMER = "advanced/dead_letter/consumer.py"
TEA, CUT_OFF, BOMB, COFFEE = ORDERS = [
    '{"item": "tea"}',
    '{"item": "cof',
    '{"item": "bomb"}',
    '{"item": "coffee"}',
]
ATTEMPTS = 4  # the first one, and one more after each of three crashes
WORK = "fill_order(item)"  # a line of on_message()
TIMEOUT = "dead_letter_worker_publisher_confirm_timeout"


def send(start, *orders):
    producer = start(PRODUCER, *orders)
    assert producer.wait() == 0, producer
    return producer


def look(broker, folder: Path) -> list[str]:
    """Return what the page's look.py prints."""
    (block,) = [
        block
        for block in blocks(["advanced/dead_letter/README.md"], "python")
        if not block.links
    ]
    # Connect to the test's broker instead.
    line = "import pika\n"
    assert line in block.text
    port = f"{line}pika.connection.Parameters.DEFAULT_PORT = {broker.port}\n"
    (folder / "look.py").write_text(block.text.replace(line, port))
    command = [sys.executable, str(folder / "look.py")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(output.splitlines())


def test_producer_sends_four_orders_by_default(start, channel):
    assert send(start).output == [f" [x] Sent {order!r}" for order in ORDERS]
    messages = [channel.basic_get("orders", auto_ack=True) for _ in ORDERS]
    assert [body.decode() for _, _, body in messages] == ORDERS
    types = {properties.content_type for _, properties, _ in messages}
    assert types == {"application/json"}


def test_bad_orders_become_dead_letters_and_good_ones_are_done_once(
    start, broker, channel, tmp_path
):
    send(start)
    consumers = [start(CONSUMER).wait_for("bomb") for _ in range(ATTEMPTS)]
    assert [process.wait() for process in consumers] == [-signal.SIGKILL] * ATTEMPTS
    consumers.append(start(CONSUMER).wait_until_ready())
    wait_for_message_count(2, channel, "dead_orders")

    # The coffee can be done before the bomb's last attempt: while the broker notices
    # that a consumer was killed, the next one already gets the next order.
    wait_until(lambda: len(done(*consumers)) == 2, "both done")
    assert done(*consumers) == ["'tea'", "'coffee'"]
    attempts = Counter(body for process in consumers for body in received(process))
    expected = {TEA: 1, CUT_OFF: 1, BOMB: ATTEMPTS, COFFEE: 1}
    assert attempts == {repr(order): count for order, count in expected.items()}
    assert consumers[0].errors == [" [!] Rejected: JSONDecodeError"]
    for _ in range(2):  # they're still there when we look again
        assert look(broker, tmp_path) == [
            f"{BOMB.encode()!r} delivery_limit",
            f"{CUT_OFF.encode()!r} rejected",
        ]


def test_without_prefetch_a_bomb_makes_a_dead_letter_of_a_good_order(
    start, channel, tmp_path
):
    greedy = edited(tmp_path, CONSUMER, {"channel.basic_qos(prefetch_count=1)": ""})
    send(start, BOMB, '{"item": "milk"}')
    for _ in range(ATTEMPTS):
        # The broker has noticed the last crash.
        wait_for_message_count(2, channel, "orders")
        assert start(greedy).wait() == -signal.SIGKILL
    wait_for_message_count(2, channel, "dead_orders")


def test_dead_letter_that_is_moved_back_is_filled_once_the_bug_is_fixed(
    start, channel, tmp_path
):
    send(start, BOMB)
    for _ in range(ATTEMPTS):
        assert start(CONSUMER).wait() == -signal.SIGKILL
    # A shovel does the same: it publishes the message with its headers.
    method, properties, body = get(channel, "dead_orders")
    channel.confirm_delivery()
    channel.basic_publish("", "orders", body, properties, mandatory=True)
    channel.basic_ack(method.delivery_tag)
    kill = "os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out"
    fixed = edited(tmp_path, CONSUMER, {'if item == "bomb":': "", kill: ""})
    start(fixed).wait_for("Done 'bomb'")


def test_order_that_is_not_valid_becomes_a_dead_letter_immediately(start, channel):
    bodies = [b"", b"\xff\xfe\x1b[2J", b"null", b"[]", b"[" * 99_999, b"{}", b'"item"']
    consumer = start(CONSUMER).wait_until_ready()
    for body in bodies:
        channel.basic_publish("", "orders", body)
    send(start, TEA)
    consumer.wait_for("Done 'tea'")
    assert len(received(consumer)) == len(bodies) + 1
    assert len(consumer.errors) == len(bodies)
    assert all(line.startswith(" [!] Rejected: ") for line in consumer.errors)
    assert all(line.isprintable() for line in consumer.errors + consumer.output)
    wait_for_message_count(len(bodies), channel, "dead_orders")


def test_order_that_raises_each_time_becomes_a_dead_letter(start, channel, tmp_path):
    failing = edited(tmp_path, CONSUMER, {WORK: 'open("no-file")'})
    send(start, TEA)
    for _ in range(ATTEMPTS):
        consumer = start(failing)
        assert consumer.wait() == 1
        assert consumer.count("Traceback", 'open("no-file")') == 2
        assert not consumer.count("RabbitMQ")
    wait_for_message_count(1, channel, "dead_orders")


def test_order_that_takes_too_long_counts_as_a_crash(start, broker, channel, tmp_path):
    slow = edited(tmp_path, CONSUMER, {WORK: "__import__('time').sleep(7)"})
    send(start, TEA)
    consumer = start(slow, url=f"{broker.url}?heartbeat=1")
    assert consumer.wait() == 1
    (error,) = consumer.errors
    assert "StreamLostError" in error or "ConnectionResetError" in error
    assert get(channel, "orders")[1].headers["x-delivery-count"] == 1


def test_consumer_declares_a_durable_exchange(start, channel):
    start(CONSUMER).wait_until_ready()
    # The broker refuses it if it's a different one.
    channel.exchange_declare("dead_letters", "fanout", durable=True)


def test_dead_letter_survives_more_looks_than_the_default_limit_allows(
    start, broker, channel
):
    start(CONSUMER).wait_until_ready()
    channel.confirm_delivery()
    channel.basic_publish("", "dead_orders", b"x", pika.BasicProperties())
    for _ in range(22):
        crash_with_message(broker, "dead_orders")
    wait_for_message_count(1, channel, "dead_orders")


def test_dead_letter_without_a_queue_arrives_once_the_consumer_has_bound_it(
    start, broker, channel
):
    # The broker tries every second instead of every three minutes.
    broker.ctl("eval", f"application:set_env(rabbit, {TIMEOUT}, 1000).")
    try:
        consumer = start(CONSUMER).wait_until_ready()
        channel.queue_unbind("dead_orders", "dead_letters")
        send(start, CUT_OFF)
        consumer.wait_for("Rejected")
        assert consumer.stop(signal.SIGINT) == 0
        start(CONSUMER).wait_until_ready()
        wait_for_message_count(1, channel, "dead_orders")
    finally:
        broker.ctl("eval", f"application:set_env(rabbit, {TIMEOUT}, 180000).")
