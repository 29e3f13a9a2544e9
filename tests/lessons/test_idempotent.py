"""advanced/idempotent: each order has one effect, whatever is killed and when."""

import contextlib
import random
import signal
import sqlite3
import time

import pika
import pytest

from tests.helpers import (
    QUORUM,
    SETTLED,
    connect,
    documented,
    edited,
    get,
    run_script,
    wait_for_message_count,
)
from tools.broker.base import free_port
from tools.common import wait_until

PRODUCER = "advanced/idempotent/producer.py"
CONSUMER = "advanced/idempotent/consumer.py"

# Lines of the producer, and of the consumer.
MESSAGE = 'database.execute("INSERT INTO outbox VALUES (?, ?)", row)'
DECLARE = 'channel.queue_declare(queue="purchases", durable=True, arguments=quorum)'
PUBLISH = "channel.basic_publish("
DELETE = 'database.execute("DELETE FROM outbox WHERE id = ?", [order_id])'
SENT = 'print(f" [x] Sent {item!r}")'
ID = 'database.execute("INSERT INTO handled VALUES (?)", [order_id])'
SALE = 'database.execute("INSERT INTO sales VALUES (?)", [item])'
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"

KILL = "os.kill(os.getpid(), 9)"


@pytest.fixture
def run(start, tmp_path):
    """run(CONSUMER) starts a script in the databases' folder, edit={...} a copy."""

    def run(script, *arguments, edit=None, **options):
        script = edited(tmp_path, script, edit) if edit else script
        return start(script, *arguments, cwd=tmp_path, **options)

    return run


def publish(channel, item, message_id):
    channel.queue_declare("purchases", durable=True, arguments=QUORUM)
    properties = pika.BasicProperties(message_id=message_id)
    channel.basic_publish("", "purchases", item.encode(), properties)


def table(folder, name):
    """Return the items in a table, sorted."""
    file = folder / ("sales.db" if name == "sales" else "orders.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        return sorted(item for (item,) in database.execute(f"SELECT item FROM {name}"))


def test_redelivered_is_false_for_a_duplicate_that_the_producer_sent(run, channel):
    assert run(PRODUCER, "book", edit={DELETE: KILL}).wait() == -signal.SIGKILL
    run_script(run, PRODUCER)
    methods = [get(channel, "purchases")[0] for _ in range(2)]
    assert [method.redelivered for method in methods] == [False, False]
    channel.basic_nack(0, multiple=True)
    # Without the ids, the consumer sells it twice.
    run(CONSUMER, edit={ID: ""}).wait_for("Sold 'book'", times=2)


def test_order_is_stored_while_the_broker_is_down_and_sent_later(run):
    producer = run(PRODUCER, "pen", "book", url=f"amqp://localhost:{free_port()}")
    assert producer.wait() == 1
    assert producer.output == [" [x] Orders stored: 2"]
    sent = run_script(run, PRODUCER)
    assert sent == [" [x] Orders stored: 0", " [x] Sent 'pen'", " [x] Sent 'book'"]


def test_unroutable_order_stays_in_the_outbox(run):
    no_queue = {DECLARE: f'{DECLARE}\nchannel.queue_delete("purchases")'}
    producer = run(PRODUCER, "vase", edit=no_queue)
    assert producer.wait() == 1
    assert producer.errors[0].startswith(" [!] UnroutableError")
    assert run_script(run, PRODUCER)[1:] == [" [x] Sent 'vase'"]

    # The page's last step: delete it before it's confirmed, and it's lost.
    delete_first = {PUBLISH: f"with database:\n    {DELETE}\n{PUBLISH}"}
    producer = run(PRODUCER, "vase", edit=no_queue | delete_first)
    assert producer.wait() == 1
    assert run_script(run, PRODUCER)[1:] == []


def test_message_without_an_id_is_rejected(run, tmp_path, broker, channel, queue):
    dead_letters = {"dead-letter-exchange": "", "dead-letter-routing-key": queue}
    broker.put("policies/%2F/dead", pattern="^purchases$", definition=dead_letters)
    try:
        for item, message_id in [("book", None), ("book", ""), ("pen", "1")]:
            publish(channel, item, message_id)
        consumer = run(CONSUMER).wait_for("Sold 'pen'")
        assert get(channel, queue)[2] == b"book"
    finally:
        broker.delete("policies/%2F/dead")
    assert consumer.errors == [" [!] Rejected 'book': it has no message_id"] * 2
    assert table(tmp_path, "sales") == ["pen"]


def test_order_is_sold_once_wherever_the_consumer_is_killed(run, tmp_path, channel):
    stops = {  # an edit, and what the next run prints
        "between id and sale": ({SALE: f"{KILL}\n{SALE}"}, "Sold"),
        "before the commit": ({SALE: f"{SALE}\n{KILL}"}, "Sold"),
        "after it": ({ACK: f"{KILL}\n{ACK}"}, "Skipped duplicate"),
    }
    for item, (edit, then) in stops.items():
        publish(channel, item, item)
        assert run(CONSUMER, edit=edit).wait() == -signal.SIGKILL
        # The next run is killed, too, but after the acknowledgement.
        consumer = run(CONSUMER, edit={ACK: f"{ACK}\n{KILL}"})
        assert consumer.wait() == -signal.SIGKILL
        assert consumer.output[1:] == [f" [x] {then} {item!r}"]
    wait_for_message_count(0, channel, "purchases")
    assert table(tmp_path, "sales") == sorted(stops)


def test_order_is_sent_wherever_the_producer_is_killed(run, tmp_path):
    # Before which line, and how many of its two orders the next run sends.
    stops = {MESSAGE: 0, DECLARE: 2, SENT: 1, DELETE: 2}
    for line, sent in stops.items():
        producer = run(PRODUCER, "pen", "pen", edit={line: f"{KILL}\n{line}"})
        assert producer.wait() == -signal.SIGKILL
        assert run_script(run, PRODUCER)[1:] == [" [x] Sent 'pen'"] * sent
    consumer = run(CONSUMER).wait_for("Sold", "Skipped", times=7)
    assert consumer.count("Skipped") == 1  # killed between the confirm and the deletion
    assert table(tmp_path, "sales") == table(tmp_path, "orders") == ["pen"] * 6


@pytest.mark.faults
def test_locked_database_ends_the_consumer_and_loses_nothing(run, tmp_path, channel):
    consumer = run(CONSUMER).wait_until_ready()
    with contextlib.closing(sqlite3.connect(tmp_path / "sales.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        publish(channel, "lamp", "1")
        publish(channel, "lamp", "2")
        wait_for_message_count(1, channel, "purchases")  # it takes one at a time
        assert consumer.wait() == 1
    assert consumer.errors[0].startswith("Traceback")
    assert documented("database is locked") in consumer.errors[-1]
    assert not consumer.count("[!]")
    run(CONSUMER).wait_for("Sold 'lamp'", times=2)


@pytest.mark.faults
def test_random_kills_lose_no_order_and_sell_none_twice(run, tmp_path, broker, report):
    run_script(run, PRODUCER)  # it declares the queue
    time.sleep(SETTLED)
    for i in range(5):
        consumers = [run(CONSUMER).wait_until_ready() for _ in range(2)]
        producer = run(PRODUCER, *(f"item {i}.{j}" for j in range(20)))
        producer.wait_for("[x]", times=random.randint(1, 20))
        if i == 2:
            broker.kill()
            broker.start()
        for script in random.sample([producer, *consumers], 3):
            script.kill()
    run_script(run, PRODUCER)
    consumer = run(CONSUMER)
    orders = table(tmp_path, "orders")
    wait_until(lambda: len(table(tmp_path, "sales")) >= len(orders), consumer)
    with connect(broker) as connection:
        wait_for_message_count(0, connection.channel(), "purchases")
    assert table(tmp_path, "sales") == orders
    report(f"16 kills, one of them of the broker: {len(orders)} orders sold once")
