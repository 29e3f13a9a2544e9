# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Fanout: publish a message once, and every consumer gets a copy.

    producer.py --> (exchange "logs") -+-> [queue] --> consumer.py
                                       +-> [queue] --> consumer.py

    python fanout/producer.py                       sends 'info: Hello World!'
    python fanout/producer.py 'warning: disk full'

Start the consumers first. A consumer only gets what is published while it's running.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Publish a message to every consumer.")
    text = "info: Hello World!"
    parser.add_argument("message", nargs="?", default=text, help="any text")
    message = parser.parse_args().message

    connection = connect()
    channel = connection.channel()

    # An exchange routes messages to queues. It doesn't store them. A fanout exchange
    # copies each message to every queue that's bound to it.
    channel.exchange_declare(exchange="logs", exchange_type="fanout")

    # Publisher confirms: basic_publish now waits for the broker's answer. With
    # mandatory, it raises UnroutableError if no queue is bound to the exchange.
    channel.confirm_delivery()
    try:
        channel.basic_publish(
            exchange="logs",
            routing_key="",  # a fanout exchange ignores it
            body=message.encode(errors="surrogateescape"),
            mandatory=True,
        )
    except pika.exceptions.UnroutableError:
        sys.exit(" [!] Not delivered: no queue is bound. Start consumer.py first.")
    connection.close()
    print(f" [x] Sent {message!r}")


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
