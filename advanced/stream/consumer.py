# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Stream: read all events from a point of your choice, and continue after a restart.

    producer.py --> (default exchange) --> [stream "events"] -+-> consumer.py alice
                                                              +-> consumer.py bob

    python advanced/stream/consumer.py alice         from the first event
    python advanced/stream/consumer.py bob next      only what's published from now on

A new reader can also start at last, at an offset such as 5, or at an age such as 1h.
Afterwards it continues where it stopped, which it stores in alice.db or bob.db.
"""

import os
import sqlite3
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Read the stream 'events'.")
    parser.add_argument("name", nargs="?", default="alice", help="default: alice")
    parser.add_argument("start", nargs="?", default="first", help="default: first")
    reader = parser.parse_args()

    connection = connect()
    channel = connection.channel()

    # A stream is a queue that keeps its messages when they're read. Beyond this limit,
    # the broker deletes the oldest ones. Without a limit, a stream only grows.
    stream = {"x-queue-type": "stream", "x-max-length-bytes": 1_000_000_000}
    channel.queue_declare(queue="events", durable=True, arguments=stream)

    # The broker doesn't store our position in the stream, so we do. In these modes, a
    # commit survives a crash of this script, but doesn't wait for the disk.
    db = sqlite3.connect(f"{reader.name}.db", isolation_level=None)  # commit each time
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("CREATE TABLE IF NOT EXISTS position (stream PRIMARY KEY, next)")
    row = db.execute("SELECT next FROM position WHERE stream = 'events'").fetchone()
    start = row[0] if row else reader.start
    if str(start).isdecimal():
        start = int(start)  # the broker takes text for a name or an age

    def on_message(channel, method, properties, body):
        # Each event in the stream has a number, its offset.
        offset = properties.headers["x-stream-offset"]
        print(f" [x] Received {offset}: {body.decode(errors='replace')!r}")

        # Store the position after the work. If we crash in between, we get this event
        # again: we might see it twice, but we don't miss it.
        db.execute("REPLACE INTO position VALUES ('events', ?)", [offset + 1])

        # In a stream, an acknowledgement deletes nothing. It asks for more.
        channel.basic_ack(delivery_tag=method.delivery_tag)

    # Get up to 100 events in advance. A stream requires a limit.
    channel.basic_qos(prefetch_count=100)
    channel.basic_consume(
        queue="events",
        on_message_callback=on_message,
        arguments={"x-stream-offset": start},
    )
    print(f" [*] Waiting for messages (start: {start}). To exit press CTRL+C")
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
