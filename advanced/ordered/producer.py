# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Ordered: send all updates for one customer to the same queue.

    producer.py --> (default exchange) -+-> [queue "shipments_0"] --> consumer.py
                                        +-> [queue "shipments_1"] --> consumer.py

    python advanced/ordered/producer.py alice dave     by default: alice, bob, carol

It prints the queue of each update. A customer's queue is always the same.
"""

import os
import sys
import zlib
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

QUEUES = ["shipments_0", "shipments_1"]
CUSTOMERS = ["alice", "bob", "carol"]


def main():
    parser = ArgumentParser(description="Send updates for customers.")
    parser.add_argument("customer", nargs="*", default=CUSTOMERS, help="such as dave")
    customers = parser.parse_args().customer

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Declare the queues exactly as the consumer does, so that either can start first.
    ordered = {"x-queue-type": "quorum", "x-single-active-consumer": True}
    for queue in QUEUES:
        channel.queue_declare(queue=queue, durable=True, arguments=ordered)

    # Publisher confirms: basic_publish returns when the broker has stored the update,
    # so we send a customer's next update only after that.
    channel.confirm_delivery()

    # Keep updates across a broker restart, even if the queue is a classic one.
    persistent = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)

    for update in ["packed", "sent", "delivered"]:
        for customer in customers:
            # A customer's updates all go to the same queue, because crc32 returns the
            # same number for a name each time. Python's hash() differs in each process.
            queue = QUEUES[zlib.crc32(customer.encode()) % len(QUEUES)]
            message = f"{customer} {update}"
            channel.basic_publish(
                exchange="",
                routing_key=queue,
                body=message.encode(),
                properties=persistent,
                mandatory=True,  # raise an exception if the queue doesn't exist
            )
            print(f" [x] Sent {message!r} to {queue}")
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
