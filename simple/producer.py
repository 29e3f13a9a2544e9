# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Simple: send messages to a queue.

    producer.py --> (default exchange) --> [queue "hello"] --> consumer.py

    python simple/producer.py              sends '兔子0' to '兔子9'
    python simple/producer.py Hello 3      sends 'Hello0' to 'Hello2'

Then run consumer.py, or start it first: the queue keeps the messages until then.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL")


def main():
    parser = ArgumentParser(description="Send messages to the queue 'hello'.")
    parser.add_argument("text", nargs="?", default="兔子", help="default: 兔子")
    parser.add_argument("count", nargs="?", type=int, default=10, help="default: 10")
    arguments = parser.parse_args()

    # Where the broker is, and who we are. If you set AMQP_URL, it wins.
    parameters = pika.ConnectionParameters(
        host="localhost",
        port=5672,
        credentials=pika.PlainCredentials(username="guest", password="guest"),
    )

    # Connect and log in. Nearly everything we ask of the broker goes through a channel.
    connection = connect(parameters)
    channel = connection.channel()

    # Create the queue, unless it already exists. It survives a broker restart
    # (durable), and so do the messages in it (quorum).
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="hello", durable=True, arguments=quorum)

    for i in range(arguments.count):
        # We always publish to an exchange, not to a queue. The default exchange has
        # no name, and puts a message into the queue that routing_key names.
        body = f"{arguments.text}{i}".encode(errors="surrogateescape")  # bytes
        channel.basic_publish(exchange="", routing_key="hello", body=body)

    # The broker answers in order, so wait for one more answer (passive: only look). If
    # it refused a message, for example because of its size, this raises the reason.
    channel.queue_declare(queue="hello", passive=True)
    connection.close()

    # Sent isn't received: here, the broker confirms nothing. See work_queue for that.
    print(f" [x] Sent {arguments.text!r} * {arguments.count}")


# The same in every producer: connecting, Ctrl+C, and the broker's errors in one line.
def connect(parameters):
    try:
        if AMQP_URL:  # such as amqp://guest:guest@localhost:5672/%2F
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
