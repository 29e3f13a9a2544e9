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

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

TASKS = ["First task.", "Second task..", "Third task...", "Fourth task...."]


def main():
    parser = ArgumentParser(description="Send tasks to the queue 'task_queue'.")
    parser.add_argument("task", nargs="*", default=TASKS, help="a second for each dot")
    tasks = parser.parse_args().task

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Durable: the queue survives a broker restart. Quorum: so do its messages.
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="task_queue", durable=True, arguments=quorum)

    # Publisher confirms: from now on, basic_publish returns when the broker has stored
    # the message on disk. It raises an exception if the broker refuses or disconnects.
    channel.confirm_delivery()

    for task in tasks:
        channel.basic_publish(
            exchange="",
            routing_key="task_queue",
            body=task.encode(),
            # Keep the message across a broker restart. A quorum queue does so anyway,
            # the older classic queues only if the message is persistent.
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
            # Raise an exception if no queue gets the message. Without mandatory, the
            # broker drops it but confirms it all the same.
            mandatory=True,
        )
        print(f" [x] Sent {task!r}")
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
