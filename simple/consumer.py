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

AMQP_URL = os.environ.get("AMQP_URL")


def main():
    # Where the broker is, and who we are. If you set AMQP_URL, it wins.
    parameters = pika.ConnectionParameters(
        host="localhost",
        port=5672,
        credentials=pika.PlainCredentials(username="guest", password="guest"),
    )

    # Connect and log in. We don't close it: it closes when this process exits.
    connection = connect(parameters)
    channel = connection.channel()

    # Both scripts declare the queue with the same arguments, so that you can start
    # either of them first.
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="hello", durable=True, arguments=quorum)

    # Pika calls this function for each message. The body is bytes.
    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode(errors='replace')!r}")

    # auto_ack: the broker deletes a message as soon as it has sent it to us. If we
    # exit, the messages on their way to us are lost. work_queue shows the safe way.
    channel.basic_consume(queue="hello", on_message_callback=on_message, auto_ack=True)

    # Wait for messages. This returns only if the broker cancels our consumer.
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
    sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")


# The same in every consumer: connecting, Ctrl+C, and the broker's errors in one line.
def connect(parameters):
    try:
        if AMQP_URL:  # such as amqp://guest:guest@localhost:5672/%2F
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
