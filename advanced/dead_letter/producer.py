# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Dead letters: send orders, of which some can't be filled.

    producer.py --> (default exchange) --> [queue "orders"] <--> consumer.py
                                                  | dead letters
         [queue "dead_orders"] <-- (exchange "dead_letters")

    python advanced/dead_letter/producer.py                      sends five orders
    python advanced/dead_letter/producer.py '{"item": "tea"}'    sends one

Then run consumer.py, or start it first. It fills the first and the last of the five.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    # Half an order, one for something that's out of stock, one that kills the consumer.
    bad = ['{"item": "cof', '{"item": "unicorn"}', '{"item": "bomb"}']
    five = ['{"item": "tea"}', *bad, '{"item": "coffee"}']
    parser = ArgumentParser(description="Send orders to the queue 'orders'.")
    parser.add_argument("order", nargs="*", default=five, help="as JSON")
    orders = parser.parse_args().order

    connection = connect()
    channel = connection.channel()

    # Both scripts declare the queue with the same arguments. The consumer explains
    # them, and declares the exchange.
    arguments = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 3,
        "x-dead-letter-exchange": "dead_letters",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    channel.queue_declare(queue="orders", durable=True, arguments=arguments)

    # Publisher confirms: basic_publish now returns only when the broker has stored the
    # order on disk, or raises an exception.
    channel.confirm_delivery()
    for order in orders:
        channel.basic_publish(
            exchange="",
            routing_key="orders",
            body=order.encode(errors="surrogateescape"),
            properties=pika.BasicProperties(content_type="application/json"),
            mandatory=True,  # raise UnroutableError if the queue doesn't exist
        )
        print(f" [x] Sent {order!r}")
    connection.close()


# The same in every producer: connecting, Ctrl+C, and the broker's errors in one line.
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
        sys.exit(130)
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
