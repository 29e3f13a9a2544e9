# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Topic: a message goes to the queues that are bound with a pattern that its routing key matches.

                                             +--kern.*-----> [ a queue ] ---> consumer.py
    producer.py ---> ( exchange topic_logs ) +--*.critical-> [ a queue ] ---> consumer.py

    python topic/producer.py                              'Hello World!', with anonymous.info
    python topic/producer.py kern.critical 'Kernel panic'

AMQP_URL says where the broker is: amqp://guest:guest@localhost:5672/%2F unless set.
"""

import os
import re
import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # which is no AMQPError


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


def routing_key(text):
    """Return text if it can be a routing key: AMQP allows 255 bytes of UTF-8 and no more."""
    if len(text.encode()) > 255:
        raise ValueError
    return text


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("routing_key", nargs="?", type=routing_key, default="anonymous.info")
    parser.add_argument("message", nargs="?", default="Hello World!")
    arguments = parser.parse_args()

    with pika.BlockingConnection(nodes()) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange="topic_logs", exchange_type="topic")
        channel.confirm_delivery()
        try:
            # To a topic exchange a routing key is a list of words with dots between them, by custom
            # from the general to the particular. A word may be empty: a..b has three.
            channel.basic_publish(
                exchange="topic_logs",
                routing_key=arguments.routing_key,
                body=arguments.message.encode(errors="surrogateescape"),
                mandatory=True,
            )
        except pika.exceptions.UnroutableError:
            key = arguments.routing_key
            sys.exit(f" [!] Nobody got {arguments.message!r}: no binding matches the key {key!r}")

        print(f" [x] Sent {arguments.routing_key!r}: {arguments.message!r}")


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
