# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Headers: publish a message to the consumers whose binding matches its headers.

    producer.py --> (exchange "headers_logs") -+-facility=kern-> [queue] --> consumer.py
                                               +-level=5-------> [queue] --> consumer.py

    python advanced/headers/producer.py                   a message without headers
    python advanced/headers/producer.py 'Kernel panic' facility=kern level=5

Start a consumer with a matching binding first: an exchange doesn't store messages.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def header(text):
    """Turn level=5 into the name "level" and the number 5.

    level="5" stays a string; level without a value becomes None.
    """
    name, _, value = text.partition("=")
    if not value:
        return name, None
    if value.isdecimal():
        return name, int(value)
    return name, value.strip('"')


def main():
    parser = ArgumentParser(description="Publish a message with headers.")
    parser.add_argument("message", nargs="?", default="Hello World!", help="any text")
    parser.add_argument("header", nargs="*", type=header, help="such as level=5")
    args = parser.parse_args()
    message, headers = args.message, dict(args.header)

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A headers exchange ignores the routing key. It compares a message's headers with
    # the arguments of its bindings.
    channel.exchange_declare(
        exchange="headers_logs",
        exchange_type="headers",
        durable=True,  # it survives a broker restart
    )

    # Publisher confirms: from now on, basic_publish waits until the broker has put the
    # message into the queues. It raises an exception if the broker refuses.
    channel.confirm_delivery()
    try:
        channel.basic_publish(
            exchange="headers_logs",
            routing_key="",
            body=message.encode(),
            # The type counts: for the broker, the number 5 and the string "5" differ.
            properties=pika.BasicProperties(headers=headers),
            # Raise UnroutableError if no binding matches. Without mandatory, the broker
            # drops the message and still confirms it.
            mandatory=True,
        )
    except pika.exceptions.UnroutableError:
        sys.exit(f" [!] Not delivered: no binding matches {headers}. Start a consumer.")
    connection.close()
    print(f" [x] Sent {message!r} {headers}")


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
