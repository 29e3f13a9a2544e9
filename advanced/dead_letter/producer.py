# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Dead letters: send orders that can be filled, and three that cannot.

    producer.py --"orders"--> (default exchange) ---> [ queue orders ] <--> consumer.py
                                                             |
                              ( exchange dead_letters ) <----+ unreadable, or tried too often
                                          |
                                          +---> [ queue dead_orders ] ---> consumer.py --dead

    python advanced/dead_letter/producer.py                      five orders, three of them bad
    python advanced/dead_letter/producer.py '{"item": "tea"}'    one

AMQP_URL says where the broker is: amqp://guest:guest@localhost:5672/%2F unless set.
"""

import os
import re
import signal
import sys
import uuid
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # which is no AMQPError

ORDERS = [
    '{"item": "tea"}',
    '{"item": "cof',  # cut off: nobody can read it
    '{"item": "unicorn"}',  # not to be had: whoever works on it fails
    '{"item": "bomb"}',  # kills whoever works on it
    '{"item": "coffee"}',
]


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


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("order", nargs="*", default=ORDERS)
    bodies = parser.parse_args().order

    with pika.BlockingConnection(nodes()) as connection:
        channel = connection.channel()

        # Both ends have to declare a queue alike, its arguments included: consumer.py explains
        # them. The exchange that they name need not be there yet: a dead order waits for it here.
        orders = {
            "x-queue-type": "quorum",
            "x-delivery-limit": 3,
            "x-dead-letter-exchange": "dead_letters",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        channel.queue_declare(queue="orders", durable=True, arguments=orders)
        channel.confirm_delivery()

        for number, body in enumerate(bodies, start=1):
            properties = pika.BasicProperties(
                delivery_mode=pika.DeliveryMode.Persistent,
                content_type="application/json",
                message_id=str(uuid.uuid4()),  # what to call it by; the broker does not look at it
            )
            data = body.encode(errors="surrogateescape")
            try:
                channel.basic_publish("", "orders", data, properties, mandatory=True)
            except (pika.exceptions.UnroutableError, pika.exceptions.NackError) as error:
                sys.exit(f" [!] Not sent, order {number} of {len(bodies)}, {body!r}: {error!r}")
            print(f" [x] Sent {body!r}")


# From here on it is alike in every lesson: how a producer ends.
if __name__ == "__main__":
    if sys.stdout:  # which is None if it is closed
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # at once: it may be in the middle of a message
        signal.signal(number, lambda *_: os._exit(0))
    try:
        main()
    except BrokenPipeError:  # whoever read the output is gone, as in `| head -1`
        os._exit(1)
    except (pika.exceptions.AMQPError, AMQPConnectorException, OSError, UnicodeError) as error:
        broker = ", ".join(f"{node.host}:{node.port}" for node in nodes())
        hint = "has RabbitMQ started there, and does AMQP_URL name host, user and vhost rightly?"
        if isinstance(error, pika.exceptions.AMQPChannelError):
            hint = "delete that queue or exchange, get permission for it, or use another vhost"
        print(f" [!] {broker}: {error!r}: {hint}", file=sys.stderr)
        os._exit(1)  # sys.exit would try once more to write what a full disk has not taken
