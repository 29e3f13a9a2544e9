# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Direct: get the log messages of the severities that you name.

    producer.py --> (exchange "direct_logs") --error--> [queue] --> consumer.py

    python direct/consumer.py                  info, warning and error
    python direct/consumer.py error            only error

Start both in two terminals, then run producer.py in a third.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Receive the messages of some severities.")
    names = ["info", "warning", "error"]
    text = "default: info, warning and error"
    parser.add_argument("severity", nargs="*", default=names, help=text)
    severities = parser.parse_args().severity

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A direct exchange delivers a message to each queue that's bound with exactly the
    # message's routing key.
    channel.exchange_declare(exchange="direct_logs", exchange_type="direct")

    # Create a temporary queue for this process. The broker makes up its name (queue="")
    # and deletes it when our connection closes (exclusive).
    result = channel.queue_declare(queue="", exclusive=True)
    queue = result.method.queue

    # Bind the queue once for each severity. Here, routing_key is the binding's key.
    for severity in severities:
        channel.queue_bind(queue=queue, exchange="direct_logs", routing_key=severity)

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
