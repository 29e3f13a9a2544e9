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

    connection = connect()
    channel = connection.channel()

    # A topic exchange compares a message's routing key with the patterns of its
    # bindings. The key is a list of words with dots between them: kern.critical
    channel.exchange_declare(exchange="topic_logs", exchange_type="topic")

    # Create a queue for this process. The broker makes up its name, and deletes it
    # (exclusive) when our connection closes.
    result = channel.queue_declare(queue="", exclusive=True)
    queue = result.method.queue

    # In a pattern, * stands for exactly one word, and # for any number of words, even
    # none. If several patterns match a message, the queue still gets it once.
    for pattern in patterns:
        channel.queue_bind(queue=queue, exchange="topic_logs", routing_key=pattern)

    def on_message(channel, method, properties, body):
        key, text = method.routing_key, body.decode(errors="replace")
        print(f" [x] Received {key!r}: {text!r}")

    channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
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
