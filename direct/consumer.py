# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Direct: get the messages of the severities that you name.

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
    parser.add_argument("severity", nargs="*", default=names, help="default: all 3")
    severities = parser.parse_args().severity

    connection = connect()
    channel = connection.channel()

    # A direct exchange routes a message to the queues that are bound with exactly
    # the message's routing key.
    channel.exchange_declare(exchange="direct_logs", exchange_type="direct")

    # Create a queue for this process. The broker makes up its name, and deletes it
    # (exclusive) when our connection closes.
    result = channel.queue_declare(queue="", exclusive=True)
    queue = result.method.queue

    # Bind the queue once for each severity. Here, routing_key is the binding's key.
    for severity in severities:
        channel.queue_bind(queue=queue, exchange="direct_logs", routing_key=severity)

    def on_message(channel, method, properties, body):
        severity = repr(method.routing_key)[1:-1]
        print(f" [x] Received {severity}: {body.decode(errors='replace')!r}")

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
