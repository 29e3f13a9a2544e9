# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Dead letters: set aside orders that we can't fill, so that they don't block others.

    producer.py --> (default exchange) --> [queue "orders"] --> consumer.py
                                                  | dead letters
         [queue "dead_orders"] <-- (exchange "dead_letters")

    python advanced/dead_letter/consumer.py

Start it, then run producer.py. One of its orders kills this consumer. Start it again
each time, as a supervisor would: the fourth time, the order is a dead letter, too.
"""

import json
import os
import signal
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")
NO_LIMIT = 1_000_000_000  # no message reaches it; -1 works only since RabbitMQ 4.0


def fill_order(item):
    """Fill one order. If yours takes minutes, see advanced/long_tasks."""
    if item == "bomb":
        os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory runs out


def main():
    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Dead letters go to a queue through an exchange, like all messages. Both survive
    # a broker restart, because they're durable.
    channel.exchange_declare(
        exchange="dead_letters", exchange_type="fanout", durable=True
    )
    # If you look at a dead letter and put it back, that counts as a redelivery. By
    # default, RabbitMQ 4 would delete it after 20.
    dead = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
    channel.queue_declare(queue="dead_orders", durable=True, arguments=dead)
    channel.queue_bind(queue="dead_orders", exchange="dead_letters")

    orders = {
        "x-queue-type": "quorum",
        # Redeliver an order at most 3 times. After a fourth crash, it's a dead letter.
        "x-delivery-limit": 3,
        # Publish dead letters to this exchange. Otherwise the broker deletes them.
        "x-dead-letter-exchange": "dead_letters",
        # Keep a dead letter here until the other queue has confirmed it.
        "x-dead-letter-strategy": "at-least-once",
        # at-least-once requires this. It only matters if the queue has a length limit.
        "x-overflow": "reject-publish",
    }
    channel.queue_declare(queue="orders", durable=True, arguments=orders)

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode(errors='replace')!r}")
        try:
            item = json.loads(body)["item"]
        except Exception as error:
            # Another attempt would fail, too. Without requeue, it's a dead letter now.
            print(f" [!] Rejected: {type(error).__name__}", file=sys.stderr)
            channel.basic_reject(delivery_tag=method.delivery_tag, requeue=False)
            return
        fill_order(item)
        print(f" [x] Done {item!r}")
        channel.basic_ack(delivery_tag=method.delivery_tag)

    # Take one order at a time, because a crash counts against every order that we hold.
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="orders", on_message_callback=on_message)
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
