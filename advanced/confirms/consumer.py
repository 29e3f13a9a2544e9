# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Confirms in flight: acknowledge many messages with one acknowledgement.

    producer.py --> (default exchange) --> [queue "confirms"] --> consumer.py

    python advanced/confirms/consumer.py

It prints a line for every 1000 messages and waits for more until Ctrl+C.
"""

import os
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

NO_LIMIT = 1_000_000_000  # no message reaches it; -1 works only since RabbitMQ 4.0


def work(body):
    """Handle one message. Here: do nothing."""


def main():
    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # When we exit, the broker requeues what we haven't acknowledged. By default,
    # RabbitMQ 4 drops a message that's requeued more than 20 times.
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
    channel.queue_declare(queue="confirms", durable=True, arguments=arguments)

    # Take up to 1000 messages in advance, so that the next ones are here while an
    # acknowledgement is on its way. If work() takes longer than milliseconds, take
    # fewer: pika sends no heartbeats until all that have arrived are done.
    channel.basic_qos(prefetch_count=1000)

    # consume() is basic_consume for a loop. The loop ends if the broker cancels it.
    print(" [*] Waiting for messages. To exit press CTRL+C")
    for method, _properties, body in channel.consume(queue="confirms"):
        work(body)
        if method.delivery_tag % 1000 == 0:  # it counts the messages on this channel
            print(f" [x] Received {method.delivery_tag}")

        # Acknowledge when all messages that have arrived are done. multiple means: this
        # message and all before it.
        if channel.get_waiting_message_count() == 0:
            channel.basic_ack(delivery_tag=method.delivery_tag, multiple=True)
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
