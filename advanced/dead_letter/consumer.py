# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Dead letters: fill orders, and put aside those that cannot be filled, so that no order is lost.

    producer.py --"orders"--> (default exchange) ---> [ queue orders ] <--> consumer.py
                                                             |
                              ( exchange dead_letters ) <----+ unreadable, or tried too often
                                          |
                                          +---> [ queue dead_orders ] ---> consumer.py --dead

    python advanced/dead_letter/consumer.py                one order kills it: start it again
    python advanced/dead_letter/consumer.py --dead         show the dead, each with its message id
    python advanced/dead_letter/consumer.py --requeue ID   put this one back

AMQP_URL says where the broker is: amqp://guest:guest@localhost:5672/%2F unless set.
"""

import json
import os
import re
import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # which is no AMQPError

LIMIT = 3  # An order may come back to its queue this often: it is tried once more than that.

stopping = False


def nodes():
    """Return the broker's address from AMQP_URL, or several, which pika tries in order."""
    urls = (os.environ.get("AMQP_URL") or "amqp://guest:guest@localhost:5672/%2F").split(",")
    try:
        # Stricter than pika, which may take what is before a / ? or # in a password for the port.
        form = "amqps?://([^/?#@]*@)?[^/?#@]+(/[^/?#@]*)?([?][^@]*)?"
        if not all(re.fullmatch(form, url) and url.encode() for url in urls):
            raise ValueError
        return [pika.URLParameters(url) for url in urls]
    except Exception:  # unnamed: its text may quote the password
        sys.exit(" [!] AMQP_URL: not of the form amqp://user:password@host:5672/%2F (/?#@, as %XX)")


def stop(*_):
    global stopping
    stopping = True


def work(item):
    if item == "bomb":
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
    if item == "unicorn":
        raise LookupError("there are no unicorns")


def on_order(channel, method, properties, body):
    print(f" [x] Received {body.decode(errors='replace')!r}")
    try:
        item = json.loads(body)["item"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        # It will not read better next time: it is dead at once.
        print(f" [!] Rejected: {type(error).__name__}")
        channel.basic_reject(delivery_tag=method.delivery_tag, requeue=False)
        return
    try:
        work(item)
    except Exception as error:
        # Next time may be better. With its delivery limit, the queue takes it back at the head, as
        # it also does if this process dies, and counts that. Up to RabbitMQ 4.2 it counts a
        # basic_nack too; since 4.3 it does not, and this would go on for ever.
        print(f" [!] Failed: {error!r}")
        channel.basic_reject(delivery_tag=method.delivery_tag, requeue=True)
        return
    channel.basic_ack(delivery_tag=method.delivery_tag)
    print(f" [x] Done {item!r}")


def show_dead(channel, message_id):
    channel.confirm_delivery()
    while True:
        method, properties, body = channel.basic_get(queue="dead_orders")
        if method is None:
            break
        # The header x-death lists the deaths, each with its queue, reason, time, and a count, of
        # deaths and not of tries. These two tell of the first. The tries have to be inferred: 4.3
        # counts them in x-delivery-count until somebody has looked, 3.10 tells them nowhere.
        headers = properties.headers or {}
        reason = headers.get("x-first-death-reason")
        queue = headers.get("x-first-death-queue")
        tries = LIMIT + 1 if reason == "delivery_limit" else 1
        print(f" [x] Dead {properties.message_id!r}: {body.decode(errors='replace')!r}")
        print(f"     reason {reason!r}, tries {tries}, first queue {queue!r}")

        if message_id is not None and message_id == properties.message_id:
            # First confirmed there, then acknowledged here: dying in between means an order too
            # many, never one too few. It starts anew, without the x- headers of its death.
            properties.headers = {k: v for k, v in headers.items() if not str(k).startswith("x-")}
            channel.basic_publish("", "orders", body, properties, mandatory=True)
            channel.basic_ack(delivery_tag=method.delivery_tag)
            print(f" [x] Put back {message_id!r}")
            return
    # What was not acknowledged is in the queue again as soon as the channel is closed.
    if message_id is not None:
        sys.exit(f" [!] No dead order has the message id {message_id!r}")


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--dead", action="store_true")
    parser.add_argument("--requeue", metavar="ID")
    arguments = parser.parse_args()

    with pika.BlockingConnection(nodes()) as connection:
        channel = connection.channel()

        # An exchange and a queue like any others. A dead order that somebody has looked at comes
        # back, which a quorum queue allows 20 times at most since RabbitMQ 4.0, unless told
        # otherwise. (-1 means any number of times since 4.0, but not once in 3.10.)
        channel.exchange_declare(exchange="dead_letters", exchange_type="fanout", durable=True)
        dead = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
        channel.queue_declare(queue="dead_orders", durable=True, arguments=dead)
        channel.queue_bind(queue="dead_orders", exchange="dead_letters")

        # What is rejected, or comes back more often than the limit, goes to the dead letter
        # exchange. at-least-once: it leaves this queue only when it has arrived in the other. That
        # cannot be had without reject-publish, which is about length limits; there is none here.
        orders = {
            "x-queue-type": "quorum",
            "x-delivery-limit": LIMIT,
            "x-dead-letter-exchange": "dead_letters",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        channel.queue_declare(queue="orders", durable=True, arguments=orders)
        if arguments.dead or arguments.requeue is not None:
            show_dead(channel, arguments.requeue)
            return

        # One at a time: if this process dies or is stopped, all that it has not acknowledged counts
        # as tried. With a higher prefetch, good orders die along with their neighbour.
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume(queue="orders", on_message_callback=on_order)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGTERM, stop)
        print(" [*] Waiting for messages. To exit press CTRL+C")
        while not stopping:
            connection.process_data_events(time_limit=0.5)
            if not channel.consumer_tags:  # the broker has cancelled the consumer
                sys.exit(" [!] The queue orders was deleted, or one outlasted consumer_timeout")


# From here on it is alike in every lesson: how a consumer ends.
if __name__ == "__main__":
    if sys.stdout:  # which is None if it is closed
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` ends it as Ctrl+C does
    try:
        main()
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # whoever read the output is gone, as in `| head -1`
        os._exit(1)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        broker = ", ".join(f"{node.host}:{node.port}" for node in nodes())
        hint = "has RabbitMQ started there, and does AMQP_URL name host, user and vhost rightly?"
        if isinstance(error, pika.exceptions.AMQPChannelError):
            hint = "delete that queue or exchange, get permission for it, or use another vhost"
        print(f" [!] {broker}: {error!r}: {hint}", file=sys.stderr)
        os._exit(1)  # sys.exit would try once more to write what a full disk has not taken
