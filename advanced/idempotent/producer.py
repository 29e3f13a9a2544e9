# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Idempotent: store each order with its message, which we send until it's confirmed.

    producer.py -----> [queue "purchases"] -----> consumer.py
    orders.db: orders, outbox                     sales.db: sales, handled

    python advanced/idempotent/producer.py book pen    stores two orders and sends them
    python advanced/idempotent/producer.py             sends what an earlier run hasn't

Kill it whenever you like, and run it again. Every order reaches the consumer.
"""

import os
import sqlite3
import sys
import uuid
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Store orders and send them.")
    parser.add_argument("item", nargs="*", help="default: only send the outbox")
    items = parser.parse_args().item

    # The table outbox holds each message until the broker has confirmed it.
    database = sqlite3.connect("orders.db")
    database.execute("CREATE TABLE IF NOT EXISTS orders (id PRIMARY KEY, item)")
    database.execute("CREATE TABLE IF NOT EXISTS outbox (id PRIMARY KEY, item)")

    # One transaction stores an order and its message. We don't need the broker for
    # this, so a customer can order while it's down.
    with database:
        for item in items:
            row = str(uuid.uuid4()), item
            database.execute("INSERT INTO orders VALUES (?, ?)", row)
            database.execute("INSERT INTO outbox VALUES (?, ?)", row)
    print(f" [x] Orders stored: {len(items)}")

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Durable: the queue survives a broker restart. Quorum: so do its messages.
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="purchases", durable=True, arguments=quorum)

    # Publisher confirms: from now on, basic_publish returns when the broker has stored
    # the message on disk. It raises an exception if the broker refuses or disconnects.
    channel.confirm_delivery()

    outbox = database.execute("SELECT id, item FROM outbox ORDER BY rowid").fetchall()
    for order_id, item in outbox:
        channel.basic_publish(
            exchange="",
            routing_key="purchases",
            body=item.encode(),
            # The order's id, because it stays the same if we send the message again.
            properties=pika.BasicProperties(message_id=order_id),
            mandatory=True,  # raise an exception if the queue doesn't exist
        )

        # Delete it after the confirm, not before. If we crash in between, the next run
        # sends it again: the consumer gets a duplicate, but no message is lost.
        with database:
            database.execute("DELETE FROM outbox WHERE id = ?", [order_id])
        print(f" [x] Sent {item!r}")
    connection.close()


# Skip this on a first read: it's the same in every producer.
def connect():
    try:
        parameters = pika.URLParameters(AMQP_URL)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")
    try:
        return pika.BlockingConnection(parameters)
    except Exception as error:  # many types: refused, unknown host, TLS, timeout
        hint = "Is it running, and are user, password, host and vhost right?"
        sys.exit(f" [!] Can't connect to RabbitMQ: {error!r}. {hint}")


if __name__ == "__main__":
    # Print immediately, even to a pipe, and any character, even to an old terminal.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except pika.exceptions.NackError:
        hint = "Is the queue full, or are most of its nodes down?"
        sys.exit(f" [!] The broker refused the message. {hint}")
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
