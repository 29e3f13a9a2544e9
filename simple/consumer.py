# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Simple: receive messages from a queue.

    producer.py --> (default exchange) --> [queue "hello"] --> consumer.py

    python simple/consumer.py

It prints the messages that producer.py sends, and waits for more until Ctrl+C.
"""

import os
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    # Where the broker is, and who we are: the parts of AMQP_URL.
    url = read_url()
    parameters = pika.ConnectionParameters(
        host=url.host,  # "localhost", unless you set AMQP_URL
        port=url.port,  # 5672
        credentials=url.credentials,  # pika.PlainCredentials("guest", "guest")
        virtual_host=url.virtual_host,  # "/"
        ssl_options=url.ssl_options,  # None, or TLS for amqps://
    )

    # Connect and log in. The connection closes when this script exits.
    try:
        connection = pika.BlockingConnection(parameters)
    except Exception as error:  # many types: refused, unknown host, TLS, timeout
        hint = "Is it running, and are user, password, host and vhost right?"
        sys.exit(f" [!] Can't connect to RabbitMQ: {error!r}. {hint}")

    # Nearly everything we do with the broker goes through a channel.
    channel = connection.channel()

    # Both scripts declare the queue with the same arguments, so that you can start
    # either of them first.
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="hello", durable=True, arguments=quorum)

    # Pika calls this function for each message. The body is bytes.
    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode(errors='replace')!r}")

    # auto_ack: the broker deletes a message as soon as it has sent it to us. If we
    # crash before we print it, it's lost. work_queue shows the safe way.
    channel.basic_consume(queue="hello", on_message_callback=on_message, auto_ack=True)

    # Wait for messages. This returns only if the broker cancels our consumer.
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
    sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")


# Skip this on a first read: it's the same in every consumer.
def read_url():
    try:
        return pika.URLParameters(AMQP_URL)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")


if __name__ == "__main__":
    # Print immediately, even to a pipe, and any character, even to an old terminal.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        pass
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
