# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Topic: get the messages whose routing key matches one of your patterns.

    producer.py --> (exchange "topic_logs") -+--kern.*-----> [queue] --> consumer.py
                                             +--*.critical-> [queue] --> consumer.py

    python topic/consumer.py                            everything: the pattern is #
    python topic/consumer.py 'kern.*' '*.critical'      both patterns, in quotes

Without the quotes, your shell might replace * with file names.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Receive the messages that match a pattern.")
    parser.add_argument("pattern", nargs="*", default=["#"], help="default: #")
    patterns = parser.parse_args().pattern

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A topic exchange compares a message's routing key with the patterns of its
    # bindings. The key is a list of words separated by dots: kern.critical
    channel.exchange_declare(exchange="topic_logs", exchange_type="topic")

    # Create a temporary queue for this process. The broker makes up its name (queue="")
    # and deletes it when our connection closes (exclusive).
    result = channel.queue_declare(queue="", exclusive=True)
    queue = result.method.queue

    # In a pattern, * stands for exactly one word, and # for any number of words, even
    # none. If several patterns match a message, the queue still gets it once.
    for pattern in patterns:
        channel.queue_bind(queue=queue, exchange="topic_logs", routing_key=pattern)

    def on_message(channel, method, properties, body):
        text = body.decode(errors="replace")
        print(f" [x] Received {method.routing_key!r}: {text!r}")

    # auto_ack is fine here: the queue and its messages disappear with us anyway.
    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
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
