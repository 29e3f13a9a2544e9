"""advanced/dead_letter: what its scripts and its page say.

Each test waits for its dead letters, so that none can reach the next test.
"""

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from tests.helpers import done, edited, get, received, wait_for_message_count
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
KILL = "os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out"
TIMEOUT = "dead_letter_worker_publisher_confirm_timeout"


def send(start, channel, *orders: str) -> list[str]:
    """Send orders while no consumer runs. Return what the producer prints."""
    start(CONSUMER).wait_until_ready().stop()  # it has declared the queue
    declare = channel.queue_declare
    wait_until(
        lambda: not declare("orders", passive=True).method.consumer_count,
        "no consumer",
    )
    producer = start(PRODUCER, *orders)
    assert producer.wait() == 0, producer
    return producer.output


def look(broker, folder: Path) -> list[str]:
    """Return what the page's look.py prints."""
    readme = blocks(["advanced/dead_letter/README.md"], "python")
    (block,) = [block for block in readme if not block.links]
    # Connect to the test's broker instead.
    line = "import pika\n"
    assert line in block.text
    port = f"{line}pika.connection.Parameters.DEFAULT_PORT = {broker.port}\n"
    (folder / "look.py").write_text(block.text.replace(line, port))
    command = [sys.executable, str(folder / "look.py")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted(output.splitlines())


def test_bad_orders_become_dead_letters_and_good_ones_are_done_once(
    start, broker, channel, tmp_path
):
    assert send(start, channel) == [f" [x] Sent {order!r}" for order in ORDERS]
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
    arguments = broker.get("queues/%2F/dead_orders?columns=arguments")["arguments"]
    assert arguments["x-delivery-limit"] == 1_000_000_000
    # The broker refuses it if it's a different one.
    channel.exchange_declare("dead_letters", "fanout", durable=True)

    # Once the bug is fixed, a dead letter can be moved back. A shovel does the same.
    consumers[-1].stop()
    letters = [get(channel, "dead_orders") for _ in range(2)]
    for _, properties, body in letters:
        assert properties.content_type == "application/json"
        channel.basic_publish("", "orders", body, properties)
    fixed = edited(tmp_path, CONSUMER, {'if item == "bomb":': "", KILL: ""})
    start(fixed).wait_for("Done 'bomb'").wait_for("Rejected")
    wait_for_message_count(1, channel, "dead_orders")


def test_without_prefetch_a_bomb_makes_a_dead_letter_of_a_good_order(
    start, channel, tmp_path
):
    greedy = edited(tmp_path, CONSUMER, {"channel.basic_qos(prefetch_count=1)": ""})
    send(start, channel, BOMB, '{"item": "milk"}')
    for _ in range(ATTEMPTS):
        # The broker has noticed the last crash.
        wait_for_message_count(2, channel, "orders")
        assert start(greedy).wait() == -signal.SIGKILL
    wait_for_message_count(2, channel, "dead_orders")


def test_dead_letter_without_a_queue_arrives_once_a_consumer_has_bound_it(
    start, broker, channel
):
    # The broker tries every second instead of every three minutes.
    broker.ctl("eval", f"application:set_env(rabbit, {TIMEOUT}, 1000).")
    try:
        consumer = start(CONSUMER).wait_until_ready()
        channel.queue_unbind("dead_orders", "dead_letters")
        start(PRODUCER, CUT_OFF)
        consumer.wait_for("Rejected")
        start(CONSUMER).wait_until_ready()
        wait_for_message_count(1, channel, "dead_orders")
    finally:
        broker.ctl("eval", f"application:set_env(rabbit, {TIMEOUT}, 180000).")
