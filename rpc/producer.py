# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""RPC client: ask a server for Fibonacci numbers and match replies with requests.

    producer.py --> (default exchange) --> [queue "rpc_queue"] --> consumer.py
        ^                                                              |
        +------- amq.rabbitmq.reply-to <-- (default exchange) <--------+

    python rpc/producer.py                 asks for fib(30)
    python rpc/producer.py 10 20 30        sends three requests, then waits for replies

The server is consumer.py.
"""

import os
import sys
import time
import uuid
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def call(channel, numbers, timeout):
    """Send a request for each number. Then yield (number, reply) as replies arrive."""
    deadline = time.monotonic() + timeout

    # Direct reply-to: this looks like a queue, but isn't one. What a server sends there
    # comes straight back to the channel that sent the request.
    reply_to = "amq.rabbitmq.reply-to"

    def next_reply(limit):
        """Wait for a reply. Return (None, None, None) if the limit passes first."""
        replies = channel.consume(
            queue=reply_to, auto_ack=True, inactivity_timeout=limit
        )
        return next(replies)

    # Start to consume before the first request. Otherwise the broker refuses it.
    next_reply(0)

    pending = {}  # requests that have no reply yet: their numbers by correlation_id
    for n in numbers:
        correlation_id = str(uuid.uuid4())
        pending[correlation_id] = n
        print(f" [x] Requesting fib({n})")
        channel.basic_publish(
            exchange="",
            routing_key="rpc_queue",
            body=n.encode(),
            properties=pika.BasicProperties(
                reply_to=reply_to,  # where the server sends the reply
                correlation_id=correlation_id,  # which request the reply is for
                # In milliseconds. If no server takes the request by then, the broker
                # drops it, because we don't wait for its reply any longer.
                expiration=str(timeout * 1000),
            ),
        )

    # Requests and replies can get lost, so never wait without a limit.
    while pending:
        method, properties, body = next_reply(max(0, deadline - time.monotonic()))
        if method is None:
            missing = ", ".join(f"fib({n})" for n in pending.values())
            raise TimeoutError(f"No reply in {timeout} s: {missing}")

        # Ignore a second reply. A server that crashed might have sent the first.
        if properties.correlation_id in pending:
            yield pending.pop(properties.correlation_id), body


def main():
    parser = ArgumentParser(description="Ask an RPC server for Fibonacci numbers.")
    parser.add_argument("n", nargs="*", default=["30"], help="from 0 to 9999")
    parser.add_argument("--timeout", type=int, default=10, help="limit in seconds")
    args = parser.parse_args()

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Both scripts declare the queue, so that you can start either of them first.
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="rpc_queue", durable=True, arguments=quorum)

    # While the broker lacks memory or disk space, it doesn't read our requests.
    def on_blocked(connection, frame):
        print(f" [!] The broker is {frame.method.reason}. Waiting.", file=sys.stderr)

    connection.add_on_connection_blocked_callback(on_blocked)

    failed = False
    try:
        for n, reply in call(channel, args.n, args.timeout):
            if reply.isdigit():
                print(f" [.] Got fib({n}) = {reply.decode()}")
            else:
                reason = reply.decode(errors="replace")
                print(f" [!] fib({n}): {reason!r}", file=sys.stderr)
                failed = True
    except TimeoutError as error:
        sys.exit(f" [!] {error}")
    connection.close()
    sys.exit(1 if failed else 0)


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
