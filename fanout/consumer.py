# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Fanout: every consumer gets its own copy of every message.

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
    connection = connect()
    channel = connection.channel()

    # A fanout exchange copies each message to every queue that's bound to it. Both
    # scripts declare the exchange, because neither can use it before it exists.
    channel.exchange_declare(exchange="logs", exchange_type="fanout")

    # Create a queue for this process. The broker makes up its name, and deletes it
    # (exclusive) when our connection closes.
    result = channel.queue_declare(queue="", exclusive=True)
    queue = result.method.queue

    # Bind the queue to the exchange. We get what's published from now on.
    channel.queue_bind(queue=queue, exchange="logs")

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode(errors='replace')!r}")

    # auto_ack is fine here: the queue and its messages disappear with us anyway.
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
