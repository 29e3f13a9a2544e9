# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Reconnect: send tasks, even if the broker restarts or a node of the cluster dies.

    producer.py --> (default exchange) --> [queue "jobs"] -+-> consumer.py
                                                           +-> consumer.py

    python advanced/reconnect/producer.py                       sends four tasks
    python advanced/reconnect/producer.py 'Resize.' 'Upload..'  a second for each dot

It retries until the broker has confirmed a task. Then it prints 'Sent'.
"""

import itertools
import os
import signal
import sys
import time
from argparse import ArgumentParser

import pika

# One broker, or the nodes of a cluster, separated by commas.
AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

TASKS = ["First task.", "Second task..", "Third task...", "Fourth task...."]


def publish(connection, tasks):
    channel = connection.channel()
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="jobs", durable=True, arguments=quorum)

    # Publisher confirms: basic_publish returns once the broker has stored the message.
    channel.confirm_delivery()

    for task in list(tasks):
        channel.basic_publish(
            exchange="",
            routing_key="jobs",
            body=task.encode(),
            # Keep the message across a broker restart, even in a classic queue.
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
            # Raise an exception if no queue gets the message, instead of dropping it.
            mandatory=True,
        )

        # Take a task off the list only after its confirm. If we lose the connection
        # before that, we send it again: it might run twice, but it isn't lost.
        tasks.pop(0)
        print(f" [x] Sent {task!r}")


def main():
    parser = ArgumentParser(description="Send tasks to the queue 'jobs'.")
    parser.add_argument("task", nargs="*", default=TASKS, help="a second for each dot")
    tasks = parser.parse_args().task
    nodes = [parameters(url) for url in AMQP_URL.split(",")]
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        # Try the nodes in turn, until all tasks are confirmed.
        for node in itertools.cycle(nodes):
            try:
                connection = connect(node)
                publish(connection, tasks)
                return connection.close()
            except pika.exceptions.AMQPConnectionError as error:
                retry(node, error)
    finally:
        if tasks:
            rest = f"{tasks[0]!r} and {len(tasks) - 1} more"
            print(f" [!] Not confirmed: {rest}", file=sys.stderr)


# Skip this on a first read: it's the same in every script that reconnects.
def parameters(url):
    try:
        return pika.URLParameters(url)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")


def connect(node):
    try:
        return pika.BlockingConnection(node)
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
