# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Headers: get the messages that have all headers of your binding, or any of them.

    producer.py --> (exchange "headers_logs") -+-facility=kern-> [queue] --> consumer.py
                                               +-level=5-------> [queue] --> consumer.py

    python advanced/headers/consumer.py                   everything
    python advanced/headers/consumer.py all facility=kern level=5
    python advanced/headers/consumer.py any facility=kern level=5

Start them in several terminals, then run producer.py in another one.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def header(text):
    """Turn level=5 into the name "level" and the number 5.

    level="5" stays a string; level without a value becomes None.
    """
    name, _, value = text.partition("=")
    if not value:
        return name, None
    if value.isdecimal():
        return name, int(value)
    return name, value.strip('"')


def main():
    parser = ArgumentParser(description="Receive the messages whose headers match.")
    parser.add_argument("match", nargs="?", default="all", help="all or any of them")
    parser.add_argument("header", nargs="*", type=header, help="such as level=5")
    args = parser.parse_args()

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A headers exchange ignores the routing key. It compares a message's headers with
    # the arguments of its bindings.
    channel.exchange_declare(
        exchange="headers_logs",
        exchange_type="headers",
        durable=True,  # it survives a broker restart
    )

    # Create a temporary queue for this process. The broker makes up its name (queue="")
    # and deletes it when our connection closes (exclusive).
    result = channel.queue_declare(queue="", exclusive=True)
    queue = result.method.queue

    # Must the message have all of these headers, or is any one of them enough? None
    # stands for any value. The message can have other headers, too.
    binding = {"x-match": args.match, **dict(args.header)}
    channel.queue_bind(queue=queue, exchange="headers_logs", arguments=binding)

    def on_message(channel, method, properties, body):
        text = body.decode(errors="replace")
        print(f" [x] Received {text!r} {properties.headers}")

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
