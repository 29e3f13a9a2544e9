# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Stream: read all events from a point of your choice, and continue after a restart.

    producer.py --> (default exchange) --> [stream "events"] -+-> consumer.py alice
                                                              +-> consumer.py bob

    python advanced/stream/consumer.py alice         from the first event
    python advanced/stream/consumer.py bob next      only what's published from now on

A new reader can also start at "last", at an offset (5), or at an age ("1h"). After that
it continues where it stopped: it keeps its position in alice.position or bob.position.
"""

import os
import sys
from argparse import ArgumentParser
from pathlib import Path

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Read the stream 'events'.")
    parser.add_argument("name", nargs="?", default="alice", help="default: alice")
    parser.add_argument("start", nargs="?", default="first", help="default: first")
    reader = parser.parse_args()

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A stream is a queue that keeps its messages when they're read. Beyond this limit,
    # the broker deletes the oldest ones. Without a limit, a stream only grows.
    stream = {"x-queue-type": "stream", "x-max-length-bytes": 1_000_000_000}
    channel.queue_declare(queue="events", durable=True, arguments=stream)

    # The broker doesn't store our position in the stream, so we keep it in a file.
    file = Path(f"{reader.name}.position")
    start = reader.start
    if file.exists():
        start = file.read_text(errors="replace").strip()
        if not start.isdecimal():
            sys.exit(f" [!] {file} isn't a position. Move it away to start over.")
    if start.isdecimal():
        start = int(start)  # as a string, an offset would mean a name or an age

    def on_message(channel, method, properties, body):
        # Each event in the stream has a number, its offset.
        offset = properties.headers["x-stream-offset"]
        print(f" [x] Received {offset}: {body.decode(errors='replace')!r}")

        # Store the position after the work. If we crash in between, we get this event
        # again: we might see it twice, but we don't miss it.
        new_file = Path(f"{file}.new")
        new_file.write_text(str(offset + 1))
        new_file.replace(file)  # in one step: a crash can't leave half a number

        # In a stream, an acknowledgement deletes nothing. It asks for more.
        channel.basic_ack(delivery_tag=method.delivery_tag)

    # Get up to 100 events in advance. A stream requires a limit.
    channel.basic_qos(prefetch_count=100)
    channel.basic_consume(
        queue="events",
        on_message_callback=on_message,
        # Start here in the stream. The default is "next": only new events.
        arguments={"x-stream-offset": start},
    )
    print(f" [*] Waiting for messages (start: {start}). To exit press CTRL+C")
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
