# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Confirms in flight: publish many messages without waiting for each confirm.

    producer.py --> (default exchange) --> [queue "confirms"] --> consumer.py

    python advanced/confirms/producer.py                    sends 100,000 messages
    python advanced/confirms/producer.py 500 --size 9999    500 messages of 9,999 bytes

It's as safe as work_queue/producer.py, and many times faster.
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


class Producer:
    """Publishes the messages 1 to count, on one connection after the other."""

    def __init__(self, count, size):
        self.count, self.size = count, size
        self.run_id = uuid.uuid4().hex
        self.confirmed = 0

        # Until a message is confirmed, keep what we need to publish it again. Here,
        # that's its number.
        self.new = iter(range(1, count + 1))  # not published yet
        self.in_flight = {}  # published, but not confirmed: numbers by delivery tag

        # The window: how many messages can be in flight. They might all be in memory,
        # so the window is smaller if they're large.
        self.window = max(1, min(2000, 10_000_000 // max(1, size)))

    def run(self, connection):
        """Open a channel. Then publish, wait for confirms, publish, and so on."""
        loop = connection.ioloop
        answers, errors = [], []

        # Pika only works while its loop runs. It calls these functions when something
        # happens, and they stop the loop, so that wait() returns.
        def on_answer(frame):
            answers.append(frame.method)
            loop.stop()

        def on_close(channel_or_connection, reason):
            errors.append(reason)
            loop.stop()

        def wait():
            silence = loop.call_later(10, on_silence)
            loop.start()
            loop.remove_timeout(silence)
            for answer in answers:
                self.handle(answer)
            answers.clear()
            if errors:
                raise errors[0]

        connection.add_on_close_callback(on_close)
        connection.add_on_connection_blocked_callback(on_blocked)
        channel = connection.channel(on_open_callback=lambda channel: loop.stop())
        channel.add_on_close_callback(on_close)
        channel.add_on_return_callback(on_return)
        wait()
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
        channel.queue_declare(queue="confirms", durable=True, arguments=arguments)
        channel.confirm_delivery(on_answer)

        # On an earlier connection, the broker might have received what was in flight,
        # or not. Publish it again first. The delivery tags of a channel start at 1.
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

    def handle(self, answer):
        """Count the messages that the broker confirms. Exit if it refuses one."""
        if isinstance(answer, pika.spec.Basic.Nack):
            sys.exit(" [!] The broker refused a message. Is the queue full or deleted?")

        # A confirm can be for multiple messages: this delivery tag and all before it.
        last = answer.delivery_tag
        first = next(iter(self.in_flight)) if answer.multiple else last
        for tag in range(first, last + 1):
            if tag in self.in_flight:
                del self.in_flight[tag]
                self.confirmed += 1
                if self.confirmed % 10_000 == 0:
                    print(f" [.] Confirmed {self.confirmed}")


def on_return(channel, method, properties, body):
    sys.exit(" [!] Not delivered: no queue 'confirms'. Was it deleted?")


def on_silence():
    # Perhaps most nodes of the queue are down. Then, the confirms might still come.
    print(" [!] No confirm in 10 seconds. Was the queue deleted?", file=sys.stderr)


def on_blocked(connection, frame):
    reason = frame.method.reason
    print(f" [!] The broker is {reason}. Waiting.", file=sys.stderr)


def main():
    parser = ArgumentParser(description="Send messages to the queue 'confirms'.")
    parser.add_argument(
        "count", nargs="?", type=int, default=100_000, help="default: 100000"
    )
    parser.add_argument("--size", type=int, default=100, help="in bytes, default: 100")
    arguments = parser.parse_args()
    producer = Producer(arguments.count, arguments.size)
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


# The same in every script that reconnects: connecting, and errors in one line.
def parameters(url):
    try:
        parameters = pika.URLParameters(url)
        if "@" in parameters.virtual_host:  # an unescaped / in the password
            raise ValueError
        return parameters
    except Exception as error:  # print it only if it can't contain the password
        hint = "It should look like amqp://user:password@host:5672/%2F"
        sys.exit(f" [!] AMQP_URL: {error if 'URL parameter' in str(error) else hint}")


def connect(node):
    def on_open(connection):
        connection.ioloop.stop()

    def on_error(connection, error):
        raise error

    try:
        connection = pika.SelectConnection(node, on_open, on_error)
        connection.ioloop.start()
        return connection
    except Exception as error:  # refused, unknown host, TLS, no answer: of many types
        raise pika.exceptions.AMQPConnectionError(error) from error


def retry(node, error):
    """Print why there's no connection, and wait a second. Exit if that can't help."""
    line = f" [!] RabbitMQ at {node.host}:{node.port}: {error!r}."
    if "ACCESS_REFUSED" in line or "NOT_ALLOWED" in line:
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
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
