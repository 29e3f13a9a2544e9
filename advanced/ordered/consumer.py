# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Ordered: handle each customer's updates in order, and several customers in parallel.

    producer.py --> (default exchange) -+-> [queue "shipments_0"] --> consumer.py
                                        +-> [queue "shipments_1"] --> consumer.py

    python advanced/ordered/consumer.py shipments_0     takes updates from this queue
    python advanced/ordered/consumer.py                 takes updates from both

Start both, then run producer.py. If you stop the first, the other takes over its queue.
"""

import os
import sys
import time
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

QUEUES = ["shipments_0", "shipments_1"]


def main():
    parser = ArgumentParser(description="Handle updates from one queue or both.")
    parser.add_argument("queue", nargs="*", default=QUEUES, help="default: both")
    queues = parser.parse_args().queue

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Take one update at a time from each queue.
    channel.basic_qos(prefetch_count=1)

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode(errors='replace')!r}")
        time.sleep(1)  # the work

        # Acknowledge after the work. If the work fails, don't requeue or skip the
        # update, because a later one could overtake it. Exit instead, as we do here.
        channel.basic_ack(delivery_tag=method.delivery_tag)

    # Single active consumer: the broker sends a queue's messages to one consumer only,
    # the first. The others stand by. When the first disconnects, another takes over.
    ordered = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    for queue in queues:
        channel.queue_declare(queue=queue, durable=True, arguments=ordered)
        channel.basic_consume(queue=queue, on_message_callback=on_message)

    # The broker cancels a consumer if its queue is deleted. start_consuming would
    # continue with the other queue, so exit here.
    def on_cancel(frame):
        sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")

    channel.add_on_cancel_callback(on_cancel)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()


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
