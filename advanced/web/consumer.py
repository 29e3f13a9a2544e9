# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Web: handle the signups that a web server has accepted.

    curl --> producer.py --> (default exchange) --> [queue "signups"] --> consumer.py

    python advanced/web/consumer.py

Start it, then start producer.py, which is the web server.
"""

import os
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Durable: the queue survives a broker restart. Quorum: so do its messages.
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="signups", durable=True, arguments=quorum)

    # Take one signup at a time, so that a second consumer can share the work.
    channel.basic_qos(prefetch_count=1)

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode(errors='replace')!r}")

        # Acknowledge after the work. Until then the broker keeps the signup.
        channel.basic_ack(delivery_tag=method.delivery_tag)

    channel.basic_consume(queue="signups", on_message_callback=on_message)
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
