# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Headers: get the messages whose headers match your binding, all of it or any of it.

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
    """Turn 'level=5' into ('level', 5). In quotes, 5 stays text. No value is None."""
    key, _, value = text.partition("=")
    return key, int(value) if value.isdecimal() else value.strip('"') or None


def main():
    parser = ArgumentParser(description="Receive the messages whose headers match.")
    parser.add_argument("match", nargs="?", default="all", help="all or any")
    parser.add_argument("header", nargs="*", type=header, help="such as level=5")
    arguments = parser.parse_args()

    connection = connect()
    channel = connection.channel()

    # A headers exchange ignores the routing key. It compares a message's headers with
    # the arguments of its bindings.
    channel.exchange_declare(
        exchange="headers_logs",
        exchange_type="headers",
        durable=True,  # it survives a broker restart
    )

    # Create a queue for this process. The broker makes up its name, and deletes it
    # (exclusive) when our connection closes.
    result = channel.queue_declare(queue="", exclusive=True)
    queue = result.method.queue

    # Must all of these headers be in the message, or is any one of them enough? None
    # stands for any value. The message can have other headers too.
    binding = {"x-match": arguments.match, **dict(arguments.header)}
    channel.queue_bind(queue=queue, exchange="headers_logs", arguments=binding)

    def on_message(channel, method, properties, body):
        text = body.decode(errors="replace")
        print(f" [x] Received {text!r} {properties.headers}")

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
