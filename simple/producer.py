# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Simple: send messages to a queue.

    producer.py --> (default exchange) --> [queue "hello"] --> consumer.py

    python simple/producer.py              sends '兔子0' to '兔子9'
    python simple/producer.py Hello 3      sends 'Hello0' to 'Hello2'

You can start consumer.py before or after it, because the queue keeps the messages.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Send messages to the queue 'hello'.")
    parser.add_argument("text", nargs="?", default="兔子", help="default: 兔子")
    parser.add_argument("count", nargs="?", type=int, default=10, help="default: 10")
    args = parser.parse_args()

    # Where the broker is, and who we are: the parts of AMQP_URL.
    url = read_url()
    parameters = pika.ConnectionParameters(
        host=url.host,  # "localhost", unless you set AMQP_URL
        port=url.port,  # 5672
        credentials=url.credentials,  # pika.PlainCredentials("guest", "guest")
        virtual_host=url.virtual_host,  # "/"
        ssl_options=url.ssl_options,  # None, or TLS for amqps://
    )

    # Connect and log in.
    try:
        connection = pika.BlockingConnection(parameters)
    except Exception as error:  # many types: refused, unknown host, TLS, timeout
        hint = "Is it running, and are user, password, host and vhost right?"
        sys.exit(f" [!] Can't connect to RabbitMQ: {error!r}. {hint}")

    # Nearly everything we do with the broker goes through a channel.
    channel = connection.channel()

    # Create the queue, unless it already exists. It survives a broker restart
    # (durable), and so do the messages in it (quorum).
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="hello", durable=True, arguments=quorum)

    for i in range(args.count):
        # We always publish to an exchange. The default exchange has no name. It puts
        # a message into the queue that routing_key names.
        body = f"{args.text}{i}".encode()  # bytes
        channel.basic_publish(exchange="", routing_key="hello", body=body)

    # Check the queue (passive: don't create it) and wait for the reply. If a message
    # was too large, or its exchange doesn't exist, this raises an exception.
    channel.queue_declare(queue="hello", passive=True)
    connection.close()

    # "Sent" doesn't mean "received", or even "stored". work_queue makes sure.
    print(f" [x] Sent {args.text!r} * {args.count}")


# Skip this on a first read: it's the same in every producer.
def read_url():
    try:
        return pika.URLParameters(AMQP_URL)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")


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
