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
    """Turn 'level=5' into ('level', 5). In quotes, 5 stays text. No value is None."""
    key, _, value = text.partition("=")
    return key, int(value) if value.isdecimal() else value.strip('"') or None


def main():
    parser = ArgumentParser(description="Publish a message with headers.")
    parser.add_argument("message", nargs="?", default="Hello World!", help="any text")
    parser.add_argument("header", nargs="*", type=header, help="such as level=5")
    arguments = parser.parse_args()
    headers = dict(arguments.header)

    connection = connect()
    channel = connection.channel()

    # A headers exchange ignores the routing key. It compares a message's headers with
    # the arguments of its bindings.
    channel.exchange_declare(
        exchange="headers_logs",
        exchange_type="headers",
        durable=True,  # it survives a broker restart
    )

    # Publisher confirms: basic_publish now waits for the broker's answer. With
    # mandatory, it raises UnroutableError if no binding matches.
    channel.confirm_delivery()
    try:
        channel.basic_publish(
            exchange="headers_logs",
            routing_key="",
            body=arguments.message.encode(errors="surrogateescape"),
            # The type counts: for the broker, the number 5 and the text "5" differ.
            properties=pika.BasicProperties(headers=headers),
            mandatory=True,
        )
    except pika.exceptions.UnroutableError:
        sys.exit(f" [!] Not delivered: no binding matches {headers}. Start a consumer.")
    connection.close()
    print(f" [x] Sent {arguments.message!r} {headers}")


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
