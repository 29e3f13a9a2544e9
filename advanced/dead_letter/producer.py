# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Dead letters: send orders, some of which can't be filled.

    producer.py --> (default exchange) --> [queue "orders"] --> consumer.py
                                                  | dead letters
         [queue "dead_orders"] <-- (exchange "dead_letters")

    python advanced/dead_letter/producer.py                      sends four orders
    python advanced/dead_letter/producer.py '{"item": "tea"}'    sends one

Start consumer.py first. The second order is cut off, and the third kills the consumer.
"""

import os
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

ORDERS = ['{"item": "tea"}', '{"item": "cof', '{"item": "bomb"}', '{"item": "coffee"}']


def main():
    parser = ArgumentParser(description="Send orders to the queue 'orders'.")
    parser.add_argument("order", nargs="*", default=ORDERS, help="an order, as JSON")
    orders = parser.parse_args().order

    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Publisher confirms: from now on, basic_publish returns when the broker has stored
    # the message on disk. It raises an exception if the broker refuses or disconnects.
    channel.confirm_delivery()

    for order in orders:
        channel.basic_publish(
            exchange="",
            routing_key="orders",
            body=order.encode(),
            properties=pika.BasicProperties(content_type="application/json"),
            mandatory=True,  # raise an exception if the queue doesn't exist
        )
        print(f" [x] Sent {order!r}")
    connection.close()


# Skip this on a first read: it's the same in every producer.
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
        sys.exit(130)
    except pika.exceptions.NackError:
        hint = "Is the queue full, or are most of its nodes down?"
        sys.exit(f" [!] The broker refused the message. {hint}")
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
