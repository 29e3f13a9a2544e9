# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Confirms in flight: acknowledge many messages with one acknowledgement.

    producer.py --> (default exchange) --> [queue "confirms"] --> consumer.py

    python advanced/confirms/consumer.py

It prints a line for every 1000 messages, and waits for more until Ctrl+C.
"""

import os
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def work(body):
    """Handle one message. Here: do nothing."""


def main():
    connection = connect()
    channel = connection.channel()

    # When we exit, messages that we haven't acknowledged return to the queue. By
    # default, RabbitMQ 4 deletes a message that returns more than 20 times.
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
    channel.queue_declare(queue="confirms", durable=True, arguments=arguments)

    # Take up to 1000 messages in advance, so that the next ones are here while an
    # acknowledgement is on its way.
    channel.basic_qos(prefetch_count=1000)

    # This is basic_consume for a loop, which ends if the broker cancels our consumer.
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


# The same in every consumer: connecting, Ctrl+C, and the broker's errors in one line.
def connect():
    try:
        parameters = pika.URLParameters(AMQP_URL)
        if "@" in parameters.virtual_host:  # an unescaped / in the password
            raise ValueError
    except Exception as error:  # print it only if it can't contain the password
        hint = "It should look like amqp://user:password@host:5672/%2F"
        sys.exit(f" [!] AMQP_URL: {error if 'URL parameter' in str(error) else hint}")
    try:
        return pika.BlockingConnection(parameters)
    except Exception as error:  # refused, unknown host, TLS, no answer: of many types
        hint = "Is it running? Are user, password, host and vhost right?"
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
