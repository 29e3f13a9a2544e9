# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Topic: publish a message to the consumers whose pattern matches its routing key.

    producer.py --> (exchange "topic_logs") -+--kern.*-----> [queue] --> consumer.py
                                             +--*.critical-> [queue] --> consumer.py

    python topic/producer.py                              sends it as anonymous.info
    python topic/producer.py kern.critical 'Kernel panic'

Start a consumer with a matching pattern first: an exchange doesn't store messages.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Publish a message with a routing key.")
    key = "anonymous.info"
    parser.add_argument("routing_key", nargs="?", default=key, help="words with dots")
    parser.add_argument("message", nargs="?", default="Hello World!", help="any text")
    arguments = parser.parse_args()

    connection = connect()
    channel = connection.channel()

    # A topic exchange compares a message's routing key with the patterns of its
    # bindings. The key is a list of words with dots between them: kern.critical
    channel.exchange_declare(exchange="topic_logs", exchange_type="topic")

    # Publisher confirms: basic_publish now waits for the broker's answer. With
    # mandatory, it raises UnroutableError if no pattern matches.
    channel.confirm_delivery()
    try:
        channel.basic_publish(
            exchange="topic_logs",
            routing_key=arguments.routing_key,
            body=arguments.message.encode(errors="surrogateescape"),
            mandatory=True,
        )
    except pika.exceptions.UnroutableError:
        key = arguments.routing_key
        sys.exit(f" [!] Not delivered: no pattern matches {key!r}. Start a consumer.")
    connection.close()
    print(f" [x] Sent {arguments.routing_key!r}: {arguments.message!r}")


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
