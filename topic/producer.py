# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Topic: publish a message to the consumers whose pattern matches its routing key.

    producer.py --> (exchange "topic_logs") -+--kern.*-----> [queue] --> consumer.py
                                             +--*.critical-> [queue] --> consumer.py

    python topic/producer.py             sends 'Hello World!' as anonymous.info
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
    key, text = "anonymous.info", "words separated by dots"
    parser.add_argument("routing_key", nargs="?", default=key, help=text)
    parser.add_argument("message", nargs="?", default="Hello World!", help="any text")
    args = parser.parse_args()
    key, message = args.routing_key, args.message

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A topic exchange compares a message's routing key with the patterns of its
    # bindings. The key is a list of words separated by dots: kern.critical
    channel.exchange_declare(exchange="topic_logs", exchange_type="topic")

    # Publisher confirms: from now on, basic_publish waits until the broker has put the
    # message into the queues. It raises an exception if the broker refuses.
    channel.confirm_delivery()
    try:
        channel.basic_publish(
            exchange="topic_logs",
            routing_key=key,
            body=message.encode(),
            # Raise UnroutableError if no pattern matches. Without mandatory, the broker
            # drops the message and still confirms it.
            mandatory=True,
        )
    except pika.exceptions.UnroutableError:
        sys.exit(f" [!] Not delivered: no pattern matches {key!r}. Start a consumer.")
    connection.close()
    print(f" [x] Sent {key!r}: {message!r}")


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
