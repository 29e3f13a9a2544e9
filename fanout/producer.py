# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Fanout: publish a log message once, and every consumer gets a copy.

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

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # An exchange routes messages to queues. It doesn't store them. A fanout exchange
    # copies each message to every queue that's bound to it.
    channel.exchange_declare(exchange="logs", exchange_type="fanout")

    # Publisher confirms: from now on, basic_publish waits until the broker has put the
    # message into the queues. It raises an exception if the broker refuses.
    channel.confirm_delivery()
    try:
        channel.basic_publish(
            exchange="logs",
            routing_key="",  # a fanout exchange ignores it
            body=message.encode(),
            # Raise UnroutableError if no queue is bound to the exchange. Without
            # mandatory, the broker drops the message and still confirms it.
            mandatory=True,
        )
    except pika.exceptions.UnroutableError:
        sys.exit(" [!] Not delivered: no queue is bound. Start consumer.py first.")
    connection.close()
    print(f" [x] Sent {message!r}")


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
