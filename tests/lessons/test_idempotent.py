"""advanced/idempotent: each order has one effect, whatever is killed and when."""

import contextlib
import random
import signal
import socket
import sqlite3
import time
from pathlib import Path

import pika
import pytest

from tests.helpers import (
    QUORUM,
    SETTLED,
    documented,
    edited,
    starting,
    wait_for_message_count,
)
from tools.broker import temporary_broker
from tools.common import wait_until

PRODUCER = "advanced/idempotent/producer.py"
CONSUMER = "advanced/idempotent/consumer.py"
KILL = "os.kill(os.getpid(), 9)"
CTRL_C = "raise KeyboardInterrupt"

# At random moments, with 20 orders for each. 100 kills take a few minutes.
KILLS = 24


@pytest.fixture
def run(start, tmp_path):
    """Start a script in the folder that gets the databases."""
    return lambda script, *arguments, **options: start(
        script, *arguments, cwd=tmp_path, **options
    )


def send(run, *items):
    producer = run(PRODUCER, *items)
    assert producer.wait() == 0, producer
    return producer


def select(folder, database, table):
    """Return the rows of a table, or [] if it doesn't exist yet."""
    with contextlib.closing(sqlite3.connect(Path(folder, database))) as connection:
        exists = connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = ?", [table]
        ).fetchall()
        return connection.execute(f"SELECT * FROM {table}").fetchall() if exists else []


def sales(folder):
    return sorted(item for (item,) in select(folder, "sales.db", "sales"))


def orders(folder):
    return sorted(item for _, item in select(folder, "orders.db", "orders"))


def outbox(folder):
    return select(folder, "orders.db", "outbox")


def fill_outbox_again(folder):
    """Do what a crash does between the confirm and the deletion from the outbox."""
    with contextlib.closing(sqlite3.connect(Path(folder, "orders.db"))) as connection:
        connection.execute("INSERT INTO outbox SELECT * FROM orders")
        connection.commit()


def test_each_order_is_stored_and_sold_once(run, tmp_path):
    consumer = run(CONSUMER).wait_until_ready()
    send(run, "book", "pen", "book")
    consumer.wait_for("Sold", times=3)
    assert orders(tmp_path) == sales(tmp_path) == ["book", "book", "pen"]
    assert outbox(tmp_path) == []
    ids = {row[0] for row in select(tmp_path, "orders.db", "orders")}
    assert {row[0] for row in select(tmp_path, "sales.db", "handled")} == ids


def test_order_is_stored_while_the_broker_is_down_and_sent_later(run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}/%2F"
    producer = run(PRODUCER, "book", "pen", url=closed)
    assert producer.wait() == 1
    assert producer.output == [" [x] Orders stored: 2"]
    assert len(outbox(tmp_path)) == 2

    sent = send(run).output
    assert sent == [" [x] Orders stored: 0", " [x] Sent 'book'", " [x] Sent 'pen'"]


def test_duplicate_is_skipped_and_acknowledged(run, tmp_path, channel):
    consumer = run(CONSUMER).wait_until_ready()
    send(run, "book", "pen")
    fill_outbox_again(tmp_path)
    send(run)
    consumer.wait_for("Skipped duplicate 'book'").wait_for("Skipped duplicate 'pen'")
    assert sales(tmp_path) == ["book", "pen"]
    assert consumer.stop(signal.SIGINT) == 0
    wait_for_message_count(0, channel, "purchases")


def test_duplicate_is_sold_again_without_the_ids(run, tmp_path):
    handled = 'database.execute("INSERT INTO handled VALUES (?)", [order_id])'
    consumer = run(edited(tmp_path, CONSUMER, {handled: ""})).wait_until_ready()
    send(run, "book")
    fill_outbox_again(tmp_path)
    send(run)
    consumer.wait_for("Sold 'book'", times=2)


def test_redelivered_is_false_for_a_duplicate_that_the_producer_sent(
    run, tmp_path, channel
):
    send(run, "book")
    fill_outbox_again(tmp_path)
    send(run)
    wait_for_message_count(2, channel, "purchases")
    messages = [channel.basic_get("purchases") for _ in range(2)]
    assert len({properties.message_id for _, properties, _ in messages}) == 1
    assert [method.redelivered for method, _, _ in messages] == [False, False]


def test_message_without_an_id_is_rejected_and_deleted(run, tmp_path, channel):
    consumer = run(CONSUMER).wait_until_ready()
    for message_id in (None, ""):
        properties = pika.BasicProperties(message_id=message_id)
        channel.basic_publish("", "purchases", b"book", properties)
    consumer.wait_for("[!]", times=2)
    assert consumer.errors == [" [!] Rejected 'book': it has no message_id"] * 2
    assert sales(tmp_path) == []
    assert consumer.stop(signal.SIGINT) == 0
    wait_for_message_count(0, channel, "purchases")


def test_two_consumers_share_a_database(run, tmp_path):
    consumers = [run(CONSUMER).wait_until_ready() for _ in range(2)]
    items = sorted(f"item {i}" for i in range(40))
    send(run, *items)
    fill_outbox_again(tmp_path)
    send(run)
    wait_until(
        lambda: sum(consumer.count("Sold", "Skipped") for consumer in consumers) == 80,
        "80 messages handled",
    )
    assert all(consumer.count("Sold", "Skipped") for consumer in consumers)
    assert sales(tmp_path) == items


TRANSACTION = "with database:"
SALE = 'database.execute("INSERT INTO sales VALUES (?)", [item])'
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
MESSAGE = 'database.execute("INSERT INTO outbox VALUES (?, ?)", row)'
CONFIRMS = "channel.confirm_delivery()"
PUBLISH = "channel.basic_publish("
DELETE = 'database.execute("DELETE FROM outbox WHERE id = ?", [order_id])'
SENT = 'print(f" [x] Sent {item!r}")'


def test_unroutable_order_stays_in_the_outbox(run, tmp_path):
    no_queue = {CONFIRMS: f'{CONFIRMS}\nchannel.queue_delete("purchases")'}
    producer = run(edited(tmp_path, PRODUCER, no_queue), "vase")
    assert producer.wait() == 1
    (line,) = producer.errors
    assert line.startswith(" [!] UnroutableError")
    assert send(run).count("Sent 'vase'") == 1

    # The page's last step: delete it before it's confirmed, and it's lost.
    delete_first = {PUBLISH: f"with database:\n    {DELETE}\n{PUBLISH}"}
    producer = run(edited(tmp_path, PRODUCER, no_queue | delete_first), "vase")
    assert producer.wait() == 1
    assert send(run).count("Sent") == 0
    assert orders(tmp_path) == ["vase", "vase"]


# Where to stop a script: before a line, or after it. And what its next run does.
CONSUMER_STEPS = {
    "before the transaction": (TRANSACTION, "before", "Sold"),
    "between id and sale": (SALE, "before", "Sold"),
    "after the sale, before the commit": (SALE, "after", "Sold"),
    "between commit and acknowledgement": (ACK, "before", "Skipped duplicate"),
    "after the acknowledgement": (ACK, "after", None),
}
PRODUCER_STEPS = {
    "between order and message": (MESSAGE, "before", 0),
    "between commit and publishing": (CONFIRMS, "before", 1),
    "between confirm and deletion": (DELETE, "before", 2),
    "after the deletion": (SENT, "before", 1),
}

STOPS = pytest.mark.parametrize(
    ("stop", "statuses"),
    [
        pytest.param(KILL, (-9, -9), id="kill"),
        pytest.param(CTRL_C, (0, 130), id="Ctrl+C", marks=pytest.mark.faults),
    ],
)


def interrupted(folder, script, line, where, stop):
    new = f"{stop}\n{line}" if where == "before" else f"{line}\n{stop}"
    return edited(folder, script, {line: new})


@STOPS
@pytest.mark.parametrize("step", CONSUMER_STEPS)
def test_order_is_sold_once_when_the_consumer_is_stopped(
    run, tmp_path, channel, step, stop, statuses
):
    line, where, then = CONSUMER_STEPS[step]
    consumer = run(interrupted(tmp_path, CONSUMER, line, where, stop))
    consumer.wait_until_ready()
    send(run, "book")
    assert consumer.wait() == statuses[0], consumer
    assert consumer.errors == []

    consumer = run(CONSUMER).wait_until_ready()
    if then:
        consumer.wait_for(f"{then} 'book'")
    last = pika.BasicProperties(message_id="last")
    channel.basic_publish("", "purchases", b"pen", last)
    consumer.wait_for("Sold 'pen'")
    assert consumer.count("'book'") == (1 if then else 0)
    assert sales(tmp_path) == ["book", "pen"]


@STOPS
@pytest.mark.parametrize("step", PRODUCER_STEPS)
def test_order_is_sent_when_the_producer_is_stopped(
    run, tmp_path, channel, step, stop, statuses
):
    line, where, messages = PRODUCER_STEPS[step]
    channel.queue_declare("purchases", durable=True, arguments=QUORUM)
    producer = run(interrupted(tmp_path, PRODUCER, line, where, stop), "book")
    assert producer.wait() == statuses[1], producer
    assert producer.errors == []

    send(run)
    wait_for_message_count(messages, channel, "purchases")
    assert outbox(tmp_path) == []
    consumer = run(CONSUMER).wait_until_ready()
    consumer.wait_for("Sold", "Skipped", times=messages)
    assert sales(tmp_path) == orders(tmp_path) == ["book"] * min(messages, 1)


def test_second_order_for_the_same_item_is_sent_after_a_kill(run, tmp_path, channel):
    producer = run(interrupted(tmp_path, PRODUCER, SENT, "before", KILL), "pen", "pen")
    assert producer.wait() == -signal.SIGKILL
    assert send(run).count("Sent 'pen'") == 1
    wait_for_message_count(2, channel, "purchases")


def test_bug_between_commit_and_acknowledgement_makes_a_duplicate(run, tmp_path):
    crash = interrupted(tmp_path, CONSUMER, ACK, "before", 'sys.exit("Crash!")')
    consumer = run(crash).wait_until_ready()
    send(run, "ink")
    assert consumer.wait() == 1
    assert (consumer.output[1:], consumer.errors) == ([" [x] Sold 'ink'"], ["Crash!"])
    run(CONSUMER).wait_for("Skipped duplicate 'ink'")


def test_consumer_holds_one_message_at_a_time(run, tmp_path, channel):
    send(run, "book", "pen")
    killed = run(interrupted(tmp_path, CONSUMER, TRANSACTION, "before", KILL))
    assert killed.wait() == -signal.SIGKILL
    wait_for_message_count(2, channel, "purchases")
    messages = [channel.basic_get("purchases") for _ in range(2)]
    assert [(method.redelivered, body) for method, _, body in messages] == [
        (True, b"book"),
        (False, b"pen"),
    ]


@pytest.mark.faults
def test_slow_effect_loses_the_connection_but_not_the_sale(run, broker, tmp_path):
    # A heartbeat of 1 s instead of 60: the broker waits for two to three of them.
    slow = edited(tmp_path, CONSUMER, {SALE: f"{SALE}\n__import__('time').sleep(5)"})
    consumer = run(slow, url=f"{broker.url}?heartbeat=1").wait_until_ready()
    send(run, "book")
    assert consumer.wait() == 1
    assert consumer.output[1:] == [" [x] Sold 'book'"]
    assert len(consumer.errors) == 1
    run(CONSUMER).wait_for("Skipped duplicate 'book'")


@pytest.mark.faults
def test_locked_database_ends_the_scripts_and_loses_nothing(run, tmp_path):
    consumer = run(CONSUMER).wait_until_ready()
    send(run, "book")
    consumer.wait_for("Sold")
    databases = [sqlite3.connect(tmp_path / f"{n}.db") for n in ("orders", "sales")]
    for database in databases:
        database.execute("BEGIN EXCLUSIVE")
    producer = run(PRODUCER, "pen")  # can't store its order
    assert producer.wait() == 1
    databases[0].close()
    send(run, "lamp")
    assert consumer.wait() == 1
    for process in (producer, consumer):
        assert process.errors[0].startswith("Traceback")
        assert documented("database is locked") in process.errors[-1]
        assert "[!]" not in str(process)
    databases[1].close()
    run(CONSUMER).wait_for("Sold 'lamp'")
    assert sales(tmp_path) == orders(tmp_path) == ["book", "lamp"]


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_orders_are_sold_once_despite_kills_of_scripts_and_broker(tmp_path, report):
    # Each producer gets 40 orders. It stores all of them, or none.
    chunks = [[f"{i}-{j}" for j in range(40)] for i in range(KILLS // 2)]
    everything = sorted(item for chunk in chunks for item in chunk)
    kills = {PRODUCER: 0, CONSUMER: 0, "broker": 0}
    processes = []
    running = {}

    with temporary_broker() as broker, starting(broker) as start:

        def start_what_is_missing():
            stored = set(orders(tmp_path))
            unstored = [chunk for chunk in chunks if chunk[0] not in stored]
            for script in CONSUMER, PRODUCER:
                if script in running and running[script].running:
                    continue
                if script == PRODUCER and not unstored and not outbox(tmp_path):
                    continue
                items = unstored[0] if script == PRODUCER and unstored else []
                running[script] = start(script, *items, cwd=tmp_path)
                processes.append(running[script])

        def kill_one_at_random():
            script = random.choice([PRODUCER, CONSUMER])
            process, producer = running[script], running[PRODUCER]
            count = len(process.output) + random.randrange(30)
            wait_until(
                lambda: len(process.output) >= count or not producer.running,
                process,
                interval=random.uniform(0, 0.005),
            )
            process.kill()
            kills[script] += process.process.returncode == -signal.SIGKILL

        start(CONSUMER, cwd=tmp_path).wait_until_ready().kill()  # declares the queue
        time.sleep(SETTLED)
        while kills[PRODUCER] + kills[CONSUMER] < KILLS:
            start_what_is_missing()
            kill_one_at_random()
            if kills[PRODUCER] + kills[CONSUMER] >= 20 * (kills["broker"] + 1):
                broker.kill()
                broker.start()
                kills["broker"] += 1

        def finished():
            start_what_is_missing()
            return len(sales(tmp_path)) >= len(everything) and not outbox(tmp_path)

        wait_until(finished, "a sale for each order", 300)

    skipped = sum(process.count("Skipped") for process in processes)
    assert orders(tmp_path) == sales(tmp_path) == everything
    sold = len(everything)
    report(f"kills: {kills}; {sold} orders sold once, {skipped} skipped")
