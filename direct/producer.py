# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Direct: publish a message to the consumers that want its severity.

    producer.py --> (exchange "direct_logs") --error--> [queue] --> consumer.py

    python direct/producer.py                     sends 'Hello World!' as info
    python direct/producer.py error 'Disk full'

Start a consumer for that severity first: an exchange doesn't store messages.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Publish a message with a severity.")
    parser.add_argument("severity", nargs="?", default="info", help="default: info")
    parser.add_argument("message", nargs="?", default="Hello World!", help="any text")
    arguments = parser.parse_args()

    connection = connect()
    channel = connection.channel()

    # A direct exchange routes a message to the queues that are bound with exactly
    # the message's routing key.
    channel.exchange_declare(exchange="direct_logs", exchange_type="direct")

    # Publisher confirms: basic_publish now waits for the broker's answer. With
    # mandatory, it raises UnroutableError if no queue is bound with this key.
    channel.confirm_delivery()
    try:
        channel.basic_publish(
            exchange="direct_logs",
            routing_key=arguments.severity,
            body=arguments.message.encode(errors="surrogateescape"),
            mandatory=True,
        )
    except pika.exceptions.UnroutableError:
        key = arguments.severity
        sys.exit(f" [!] Not delivered: no queue is bound with {key!r}.")
    connection.close()
    print(f" [x] Sent {arguments.severity!r}: {arguments.message!r}")


# The same in every producer: connecting, Ctrl+C, and the broker's errors in one line.
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
        sys.exit(130)
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
