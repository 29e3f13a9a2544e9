# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Work queue: send tasks that survive a crash of the worker and of the broker.

    producer.py --> (default exchange) --> [queue "task_queue"] -+-> consumer.py
                                                                 +-> consumer.py

    python work_queue/producer.py                           sends four tasks
    python work_queue/producer.py 'Resize.' 'Encode...'     a second of work per dot

It prints 'Sent' once the broker has confirmed a task.
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
    channel.queue_declare(queue="task_queue", durable=True, arguments=quorum)

    # Publisher confirms: basic_publish now returns only when the broker has stored the
    # message on disk, or raises an exception.
    channel.confirm_delivery()

    while tasks:
        channel.basic_publish(
            exchange="",
            routing_key="task_queue",
            body=tasks[0].encode(errors="surrogateescape"),
            # The message survives a broker restart. A quorum queue keeps every message,
            # a classic queue only persistent ones.
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
            # Without mandatory, the broker drops an unroutable message and confirms it.
            mandatory=True,
        )

        # Take a task off the list only after its confirm. If we lose the connection
        # before that, we send it again: it might run twice, but it isn't lost.
        print(f" [x] Sent {tasks.pop(0)!r}")


def main():
    parser = ArgumentParser(description="Send tasks to the queue 'task_queue'.")
    parser.add_argument("task", nargs="*", default=TASKS, help="a second for each dot")
    tasks = parser.parse_args().task
    nodes = [parameters(url) for url in AMQP_URL.split(",")]
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
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
    try:
        return pika.BlockingConnection(node)
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
