# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Retry: send emails, some of which fail for a while, and one forever.

    producer.py --> [queue "emails"] --> consumer.py --> [queue "dead_emails"]
                         ^                    | failed
    after 1, 3 or 9 s    |                    v
                         +---- [delay queue "emails_wait_1s", "_3s" or "_9s"]

    python advanced/retry/producer.py Hello Invoice..     by default: three emails

Start consumer.py first, because it declares the queues. One attempt fails for each dot.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

EMAILS = ["Hello", "Invoice..", "Newsletter...."]


def main():
    parser = ArgumentParser(description="Send emails to the queue 'emails'.")
    text = "one attempt fails for each dot"
    parser.add_argument("email", nargs="*", default=EMAILS, help=text)
    emails = parser.parse_args().email

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Publisher confirms: from now on, basic_publish returns when the broker has stored
    # the message on disk. It raises an exception if the broker refuses or disconnects.
    channel.confirm_delivery()

    for email in emails:
        channel.basic_publish(
            exchange="",
            routing_key="emails",
            body=email.encode(),
            mandatory=True,  # raise an exception if the queue doesn't exist
        )
        print(f" [x] Sent {email!r}")
    connection.close()


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
