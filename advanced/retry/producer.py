# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Retry: send emails, of which some fail for a while, and one forever.

    producer.py --> [queue "emails"] <--> consumer.py --> [queue "dead_emails"]
                         ^                     | failed
    after 1, 3 or 9 s    |                     v
                         +---- [queue "emails_wait_1s", "_3s" or "_9s"]

    python advanced/retry/producer.py Hello Invoice..

One attempt fails for each dot. Without arguments, it sends three emails.
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

    connection = connect()
    channel = connection.channel()

    # Both scripts declare the queue with the same arguments. The consumer explains
    # them, and declares the other queues.
    arguments = {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "dead_emails",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 3,
    }
    channel.queue_declare(queue="emails", durable=True, arguments=arguments)

    # Publisher confirms: basic_publish now returns only when the broker has stored the
    # email on disk. With mandatory, it raises an exception if the queue doesn't exist.
    channel.confirm_delivery()
    for email in emails:
        body = email.encode(errors="surrogateescape")
        channel.basic_publish("", routing_key="emails", body=body, mandatory=True)
        print(f" [x] Sent {email!r}")
    connection.close()


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
