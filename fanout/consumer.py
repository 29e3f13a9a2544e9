# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Fanout: every consumer gets its own copy of every log message.

    producer.py --> (exchange "logs") -+-> [queue] --> consumer.py
                                       +-> [queue] --> consumer.py

    python fanout/consumer.py

Start it in two terminals, then run producer.py in a third. Both print the message.
"""

import os
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # A fanout exchange copies each message to every queue that's bound to it. Both
    # scripts declare the exchange, because neither can use it before it exists.
    channel.exchange_declare(exchange="logs", exchange_type="fanout")

    # Create a temporary queue for this process. The broker makes up its name (queue="")
    # and deletes it when our connection closes (exclusive).
    result = channel.queue_declare(queue="", exclusive=True)
    queue = result.method.queue

    # Bind the queue to the exchange. From now on, it gets a copy of each message.
    channel.queue_bind(queue=queue, exchange="logs")

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode(errors='replace')!r}")

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
