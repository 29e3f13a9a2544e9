# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Stream: append events to a log that any number of readers can read, again and again.

    producer.py --> (default exchange) --> [stream "events"] -+-> consumer.py alice
                                                              +-> consumer.py bob

    python advanced/stream/producer.py                    sends three events
    python advanced/stream/producer.py login logout       sends these

Start the readers before or after: the stream keeps the events.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

EVENTS = ["signup", "login", "purchase"]


def main():
    parser = ArgumentParser(description="Append events to the stream 'events'.")
    parser.add_argument("event", nargs="*", default=EVENTS, help="default: 3 events")
    events = parser.parse_args().event

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A stream is a queue that keeps its messages when they're read. Beyond this limit,
    # the broker deletes the oldest ones. Without a limit, a stream only grows.
    stream = {"x-queue-type": "stream", "x-max-length-bytes": 1_000_000_000}
    channel.queue_declare(queue="events", durable=True, arguments=stream)

    # Publisher confirms: from now on, basic_publish returns when the broker has the
    # event in the stream. It raises an exception if the broker refuses or disconnects.
    channel.confirm_delivery()

    for event in events:
        channel.basic_publish(
            exchange="",
            routing_key="events",
            body=event.encode(),
            mandatory=True,  # raise an exception if the stream doesn't exist
        )
        print(f" [x] Sent {event!r}")
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
