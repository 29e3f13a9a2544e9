# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Dead letters: put orders aside that we can't fill, so that they don't block others.

    producer.py --> (default exchange) --> [queue "orders"] <--> consumer.py
                                                  | dead letters
         [queue "dead_orders"] <-- (exchange "dead_letters")

    python advanced/dead_letter/consumer.py
    python advanced/dead_letter/consumer.py --dead    prints the first ten dead letters

One of the producer's orders kills it. Start it again, as a supervisor would.
"""

import json
import os
import signal
import sys
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


class OutOfStock(Exception):
    pass


def fill_order(item):
    """The work. If yours is slow, do it in a thread, as work_queue/consumer.py does."""
    if item == "unicorn":
        raise OutOfStock("there are no unicorns")
    if item == "bomb":
        os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out


def on_order(channel, method, properties, body):
    print(f" [x] Received {body.decode(errors='replace')!r}")
    try:
        item = json.loads(body)["item"]
    except Exception as error:
        # The next attempt would fail, too. Without requeue, it's a dead letter now.
        print(f" [!] Rejected: {type(error).__name__}", file=sys.stderr)
        channel.basic_reject(delivery_tag=method.delivery_tag, requeue=False)
        return
    try:
        fill_order(item)
    except OutOfStock as error:
        # The next attempt might succeed. The queue counts how often an order returns,
        # but since RabbitMQ 4.3 it doesn't count those returned with basic_nack.
        print(f" [!] Requeued: {error!r}", file=sys.stderr)
        channel.basic_reject(delivery_tag=method.delivery_tag, requeue=True)
        return
    channel.basic_ack(delivery_tag=method.delivery_tag)
    print(f" [x] Done {item!r}")


def print_dead(channel):
    # We don't acknowledge them, so they return to the queue when we exit. Take only a
    # few, because no other consumer can get them until then.
    for _ in range(10):
        method, properties, body = channel.basic_get(queue="dead_orders")
        if method is None:
            break
        reason = (properties.headers or {}).get("x-first-death-reason")
        print(f" [x] Dead {body.decode(errors='replace')!r}: {reason}")


def main():
    parser = ArgumentParser(description="Fill the orders in the queue 'orders'.")
    text = "print the first ten dead letters, and exit"
    parser.add_argument("--dead", action="store_true", help=text)
    arguments = parser.parse_args()

    connection = connect()
    channel = connection.channel()

    # Dead letters go through an exchange, like all messages. A dead letter that --dead
    # has printed returns to its queue, which by default deletes it after 20 returns.
    dead = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
    channel.exchange_declare("dead_letters", exchange_type="fanout", durable=True)
    channel.queue_declare(queue="dead_orders", durable=True, arguments=dead)
    channel.queue_bind(queue="dead_orders", exchange="dead_letters")

    orders = {
        "x-queue-type": "quorum",
        # An order can return to the queue 3 times. The 4th time, it's a dead letter.
        "x-delivery-limit": 3,
        # The broker publishes dead letters to this exchange, instead of deleting them.
        "x-dead-letter-exchange": "dead_letters",
        # Keep a dead letter here until the other queue has confirmed it.
        "x-dead-letter-strategy": "at-least-once",
        # at-least-once requires this. It only matters if the queue has a length limit.
        "x-overflow": "reject-publish",
    }
    channel.queue_declare(queue="orders", durable=True, arguments=orders)
    if arguments.dead:
        return print_dead(channel)

    # Take one order at a time. If we crash, every order that we hold returns to the
    # queue, and that counts, even if it's not the one that crashed us.
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="orders", on_message_callback=on_order)
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
