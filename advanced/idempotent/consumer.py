# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Idempotent: handle each order once, even if its message arrives twice.

    producer.py -----> [queue "purchases"] -----> consumer.py
    orders.db: orders, outbox                     sales.db: sales, handled

    python advanced/idempotent/consumer.py

Kill it whenever you like, and start it again. It sells each order once.
"""

import os
import sqlite3
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    # The ids of the messages that we've handled have to be in the same database as the
    # sales. Only then can one transaction change both.
    database = sqlite3.connect("sales.db")
    database.execute("CREATE TABLE IF NOT EXISTS handled (message_id PRIMARY KEY)")
    database.execute("CREATE TABLE IF NOT EXISTS sales (item)")

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Durable: the queue survives a broker restart. Quorum: so do its messages.
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="purchases", durable=True, arguments=quorum)

    # Take one message at a time. A crash counts against every message that we hold, and
    # since 4.0, RabbitMQ drops a message after 20 redeliveries.
    channel.basic_qos(prefetch_count=1)

    def on_message(channel, method, properties, body):
        order_id = properties.message_id
        item = body.decode(errors="replace")

        # Without an id, we can't recognize a duplicate. We reject such a message, and
        # the broker deletes it.
        if not order_id:
            print(f" [!] Rejected {item!r}: it has no message_id", file=sys.stderr)
            channel.basic_reject(delivery_tag=method.delivery_tag, requeue=False)
            return

        # One transaction stores the id and the sale, or neither if we crash. Only a
        # known id raises IntegrityError, because the table sales has no constraints.
        try:
            with database:
                database.execute("INSERT INTO handled VALUES (?)", [order_id])
                database.execute("INSERT INTO sales VALUES (?)", [item])
            print(f" [x] Sold {item!r}")
        except sqlite3.IntegrityError:
            print(f" [x] Skipped duplicate {item!r}")

        # Acknowledge after the transaction. If we crash in between, the broker
        # redelivers the message, and we skip it then.
        channel.basic_ack(delivery_tag=method.delivery_tag)

    channel.basic_consume(queue="purchases", on_message_callback=on_message)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
    sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")


# Skip this on a first read: it's the same in every consumer.
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
        pass
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
