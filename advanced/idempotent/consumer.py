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

    connection = connect()
    channel = connection.channel()
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="purchases", durable=True, arguments=quorum)

    def on_message(channel, method, properties, body):
        item = body.decode(errors="replace")

        # Without an id, we can't recognize a duplicate. We reject such a message, and
        # the broker deletes it.
        if not properties.message_id:
            print(f" [!] Rejected {item!r}: it has no message_id", file=sys.stderr)
            channel.basic_reject(delivery_tag=method.delivery_tag, requeue=False)
            return

        # One transaction stores the id and the sale, or neither if we crash. If the
        # table already has the id, the insert changes no row, and we don't sell again.
        with database:
            insert = "INSERT OR IGNORE INTO handled VALUES (?)"
            is_new = database.execute(insert, [properties.message_id]).rowcount
            if is_new:
                database.execute("INSERT INTO sales VALUES (?)", [item])
        print(f" [x] Sold {item!r}" if is_new else f" [x] Skipped duplicate {item!r}")

        # Acknowledge after the transaction. If we crash in between, the broker
        # redelivers the message, and we skip it then.
        channel.basic_ack(delivery_tag=method.delivery_tag)

    # Take one message at a time. A crash counts against every message that we hold, and
    # RabbitMQ 4 deletes a message after more than 20 crashes.
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="purchases", on_message_callback=on_message)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
    sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")


# The same in every consumer: connecting, Ctrl+C, and the broker's errors in one line.
def connect():
    try:
        parameters = pika.URLParameters(AMQP_URL)
        if "@" in parameters.virtual_host:  # an unescaped / in the password
            raise ValueError
    except Exception as error:  # print it only if it can't contain the password
        hint = "It should look like amqp://user:password@host:5672/%2F"
        sys.exit(f" [!] AMQP_URL: {error if 'URL parameter' in str(error) else hint}")
    try:
        return pika.BlockingConnection(parameters)
    except Exception as error:  # refused, unknown host, TLS, no answer: of many types
        hint = "Is it running? Are user, password, host and vhost right?"
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
