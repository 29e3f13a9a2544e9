# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Confirms in flight: publish many messages without waiting for each confirm.

This is expert reading. work_queue/producer.py is as safe, and much simpler: copy this
one only if that's too slow.

    producer.py --> (default exchange) --> [queue "confirms"] --> consumer.py

    python advanced/confirms/producer.py                    sends 100,000 messages
    python advanced/confirms/producer.py 500 --size 9999    500 messages of 9,999 bytes

It prints how many messages are confirmed, after each 10,000 and at the end.
"""

import itertools
import os
import signal
import sys
import time
import uuid
from argparse import ArgumentParser

import pika

# One broker, or the nodes of a cluster, separated by commas.
AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

NO_LIMIT = 1_000_000_000  # no message reaches it; -1 works only since RabbitMQ 4.0
SILENCE = 10  # after so many seconds without a confirm, print a line


class Producer:
    """Publishes the messages 1 to count, on one connection after the other."""

    def __init__(self, count, size):
        self.count, self.size = count, size
        self.run_id = uuid.uuid4().hex
        self.confirmed = 0

        # Until a message is confirmed, keep what we need to publish it again: a number.
        self.new = iter(range(1, count + 1))  # not published yet
        self.in_flight = {}  # published, but not confirmed: numbers by delivery tag

        # The window: how many can be in flight. Fewer if they're large, to save memory.
        self.window = max(1, min(2000, 10_000_000 // max(1, size)))

    def run(self, connection):
        """Open a channel. Then publish, wait for confirms, publish, and so on."""
        loop = connection.ioloop
        confirms, errors = [], []

        # Callbacks: pika calls these functions when something happens. They only record
        # it and stop the event loop, so that wait() returns.
        def on_confirm(frame):
            confirms.append(frame.method)
            loop.stop()

        def on_close(channel_or_connection, reason):
            errors.append(reason)
            loop.stop()

        # Pika sends and receives only while its event loop runs, which is here.
        def wait():
            silence = loop.call_later(SILENCE, on_silence)
            loop.start()
            loop.remove_timeout(silence)
            for confirm in confirms:
                self.handle(confirm)
            confirms.clear()
            if errors:
                raise errors[0]

        connection.add_on_close_callback(on_close)
        connection.add_on_connection_blocked_callback(on_blocked)
        channel = connection.channel(on_open_callback=lambda channel: loop.stop())
        channel.add_on_close_callback(on_close)
        channel.add_on_return_callback(on_return)
        wait()
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
        channel.queue_declare(queue="confirms", durable=True, arguments=arguments)
        channel.confirm_delivery(ack_nack_callback=on_confirm)

        # The broker might have received what was in flight on an earlier connection, or
        # not. Publish it again first. The delivery tags of a channel start at 1.
        numbers = itertools.chain(list(self.in_flight.values()), self.new)
        self.in_flight.clear()
        tags = itertools.count(1)
        while self.confirmed < self.count:
            for number in itertools.islice(numbers, self.window - len(self.in_flight)):
                self.in_flight[next(tags)] = number
                self.publish(channel, number)
            wait()
        connection.close()
        while not connection.is_closed:
            loop.start()

    def publish(self, channel, number):
        channel.basic_publish(
            exchange="",
            routing_key="confirms",
            body=f"{number} ".encode().ljust(self.size, b"."),
            properties=pika.BasicProperties(
                delivery_mode=pika.DeliveryMode.Persistent,
                # If we publish it again, a consumer can recognize the duplicate.
                message_id=f"{self.run_id}-{number}",
            ),
            # If the queue doesn't exist, return the message: see on_return.
            mandatory=True,
        )

    def handle(self, confirm):
        """Count the messages that the broker confirms. Raise an error if it refuses."""
        if isinstance(confirm, pika.spec.Basic.Nack):
            raise pika.exceptions.NackError([])

        # A confirm can be for multiple messages: this delivery tag and all before it.
        last = confirm.delivery_tag
        first = next(iter(self.in_flight)) if confirm.multiple else last
        for tag in range(first, last + 1):
            if tag in self.in_flight:
                del self.in_flight[tag]
                self.confirmed += 1
                if self.confirmed % 10_000 == 0:
                    print(f" [.] Confirmed {self.confirmed}")


def on_return(channel, method, properties, body):
    sys.exit(" [!] Not delivered: no queue 'confirms'. Was it deleted?")


def on_silence():
    print(f" [!] No confirm in {SILENCE} seconds. Still waiting.", file=sys.stderr)


def on_blocked(connection, frame):
    print(f" [!] The broker is {frame.method.reason}. Waiting.", file=sys.stderr)


def main():
    parser = ArgumentParser(description="Send messages to the queue 'confirms'.")
    parser.add_argument("count", nargs="?", type=int, default=100_000, help="messages")
    parser.add_argument("--size", type=int, default=100, help="bytes in each")
    args = parser.parse_args()
    producer = Producer(args.count, args.size)
    nodes = [parameters(url) for url in AMQP_URL.split(",")]
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    start = time.monotonic()
    try:
        for node in itertools.cycle(nodes):
            try:
                return producer.run(connect(node))
            except pika.exceptions.AMQPConnectionError as error:
                retry(node, error)
    finally:
        confirmed = producer.confirmed
        print(f" [x] Confirmed {confirmed} in {time.monotonic() - start:.2f} s")
        if confirmed < producer.count:
            first = min(producer.in_flight.values(), default=confirmed + 1)
            rest = f"message {first} and {producer.count - confirmed - 1} more"
            print(f" [!] Not confirmed: {rest}", file=sys.stderr)


# Skip this on a first read: apart from connect(), it's in every script that reconnects.
def parameters(url):
    try:
        return pika.URLParameters(url)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")


def connect(node):
    def on_error(connection, error):
        raise error

    try:
        connection = pika.SelectConnection(
            parameters=node,
            on_open_callback=lambda connection: connection.ioloop.stop(),
            on_open_error_callback=on_error,
        )
        connection.ioloop.start()
        return connection
    except pika.exceptions.AMQPConnectionError:
        raise
    except Exception as error:  # many types: unknown host, TLS, timeout
        raise pika.exceptions.AMQPConnectionError(error) from error


def retry(node, error):
    """Print why there's no connection and wait a second. Exit if a retry can't help."""
    line = f" [!] RabbitMQ at {node.host}:{node.port}: {error!r}."
    refused = "ACCESS_REFUSED" in line or "NOT_ALLOWED" in line
    if refused and "connection limit" not in line:  # others might disconnect soon
        sys.exit(f"{line} Are user, password and vhost right?")
    print(f"{line} Retrying.", file=sys.stderr)
    time.sleep(1)


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
