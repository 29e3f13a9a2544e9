"""advanced/dead_letter: what its scripts and its page say.

Each test waits for its dead letters, so that none can reach the next test.
"""

import signal
from collections import Counter

from tests.helpers import (
    done,
    edited,
    get,
    page_block,
    received,
    run_script,
    wait_for_message_count,
)
from tools.common import wait_until

PRODUCER = "advanced/dead_letter/producer.py"
CONSUMER = "advanced/dead_letter/consumer.py"
TEA, CUT_OFF, BOMB, COFFEE = ORDERS = [
    '{"item": "tea"}',
    '{"item": "cof',
    '{"item": "bomb"}',
    '{"item": "coffee"}',
]
ATTEMPTS = 4  # the first one, and one more after each of three crashes
# Lines of consumer.py.
HANDLER = "def on_message(channel, method, properties, body):"
KILL = "os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out"


def send(start, folder, *orders):
    """Send orders while no consumer runs. Return what the producer prints."""
    declare_only = edited(folder, CONSUMER, {HANDLER: f"return\n{HANDLER}"})
    run_script(start, declare_only)
    return run_script(start, PRODUCER, *orders)


def look(start, broker, folder):
    """Return what the page's look.py prints."""
    code = page_block("advanced/dead_letter/README.md", "BlockingConnection()")
    connection = f"BlockingConnection(pika.URLParameters({broker.url!r}))"
    code = code.replace("BlockingConnection()", connection)
    (folder / "look.py").write_text(code)
    return sorted(run_script(start, str(folder / "look.py")))


def test_bad_orders_become_dead_letters_and_good_ones_are_done_once(
    start, broker, channel, tmp_path
):
    """Steps 1 and 3."""
    assert send(start, tmp_path) == [f" [x] Sent {order!r}" for order in ORDERS]
    consumers = [start(CONSUMER).wait_for("bomb") for _ in range(ATTEMPTS)]
    assert [process.wait() for process in consumers] == [-signal.SIGKILL] * ATTEMPTS
    consumers.append(start(CONSUMER).wait_until_ready())
    wait_for_message_count(2, channel, "dead_orders")

    # The coffee can be done before the bomb's last attempt: while the broker notices
    # that a consumer was killed, the next one already gets the next order.
    wait_until(lambda: done(*consumers) == ["'tea'", "'coffee'"], consumers)
    attempts = {repr(TEA): 1, repr(CUT_OFF): 1, repr(BOMB): ATTEMPTS, repr(COFFEE): 1}
    assert Counter(received(*consumers)) == attempts
    assert consumers[0].errors == [" [!] Rejected: JSONDecodeError"]
    for _ in range(2):  # they're still there when we look again
        assert look(start, broker, tmp_path) == [
            f"{BOMB.encode()!r} delivery_limit",
            f"{CUT_OFF.encode()!r} rejected",
        ]
    queues = broker.get("queues/%2F?columns=name,arguments")
    arguments = {queue["name"]: queue["arguments"] for queue in queues}
    assert arguments["dead_orders"]["x-delivery-limit"] == 1_000_000_000
    # Without dead_orders, the broker would keep them: tests/facts/test_dead_letters.py.
    assert arguments["orders"]["x-dead-letter-strategy"] == "at-least-once"
    assert arguments["orders"]["x-overflow"] == "reject-publish"
    # The broker refuses it if it's a different one.
    channel.exchange_declare("dead_letters", "fanout", durable=True)

    # Once the bug is fixed, a dead letter can be moved back. A shovel does the same.
    consumers[-1].stop()
    for _ in range(2):
        _, properties, body = get(channel, "dead_orders")
        assert properties.content_type == "application/json"
        channel.basic_publish("", "orders", body, properties)
    fixed = edited(tmp_path, CONSUMER, {'if item == "bomb":': "", KILL: ""})
    start(fixed).wait_for("Done 'bomb'").wait_for("Rejected")
    wait_for_message_count(1, channel, "dead_orders")


def test_without_prefetch_a_bomb_makes_a_dead_letter_of_a_good_order(
    start, channel, tmp_path
):
    """Step 2."""
    send(start, tmp_path, BOMB, '{"item": "milk"}')
    greedy = edited(tmp_path, CONSUMER, {"channel.basic_qos(prefetch_count=1)": ""})
    for _ in range(ATTEMPTS):
        # The broker has noticed the last crash.
        wait_for_message_count(2, channel, "orders")
        assert start(greedy).wait() == -signal.SIGKILL
    wait_for_message_count(2, channel, "dead_orders")


def test_order_without_an_item_is_rejected(start, channel, tmp_path):
    send(start, tmp_path, '{"price": 3}')
    start(CONSUMER).wait_for("Rejected: KeyError")
    wait_for_message_count(1, channel, "dead_orders")


def test_order_that_raises_is_not_rejected(start, channel, tmp_path):
    send(start, tmp_path, BOMB)
    down = edited(tmp_path, CONSUMER, {KILL: 'raise OSError("database is down")'})
    consumer = start(down)
    assert consumer.wait() == 1
    assert not consumer.count("Rejected")
    wait_for_message_count(1, channel, "orders")
