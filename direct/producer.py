# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Direct: publish a log message to the consumers that chose its severity.

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
    args = parser.parse_args()
    severity, message = args.severity, args.message

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A direct exchange delivers a message to each queue that's bound with exactly the
    # message's routing key.
    channel.exchange_declare(exchange="direct_logs", exchange_type="direct")

    # Publisher confirms: from now on, basic_publish waits until the broker has put the
    # message into the queues. It raises an exception if the broker refuses.
    channel.confirm_delivery()
    try:
        channel.basic_publish(
            exchange="direct_logs",
            routing_key=severity,
            body=message.encode(),
            # Raise UnroutableError if no queue is bound with this key. Without
            # mandatory, the broker drops the message and still confirms it.
            mandatory=True,
        )
    except pika.exceptions.UnroutableError:
        hint = "Check its spelling, or start a consumer."
        sys.exit(f" [!] Not delivered: no queue is bound with {severity!r}. {hint}")
    connection.close()
    print(f" [x] Sent {severity!r}: {message!r}")


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
