# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Fanout: publish a message once, and every queue bound to the exchange gets a copy.

    producer.py ---> ( exchange logs, fanout ) -+-> [ a queue of its own ] ---> consumer.py
                                                +-> [ a queue of its own ] ---> consumer.py

    python fanout/producer.py                       sends 'info: Hello World!'
    python fanout/producer.py 'warning: disk full'

Start the consumers first: who is not there when a message is sent does not get it later.
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


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("message", nargs="?", default="info: Hello World!")
    message = parser.parse_args().message

    with pika.BlockingConnection(nodes()) as connection:
        channel = connection.channel()

        # An exchange passes messages on to queues, and keeps none. Its type is how it chooses the
        # queues: direct, topic, headers, or fanout, which chooses every queue bound to it. Without
        # durable=True, it may be gone after a restart of the broker: both ends declare it anew.
        channel.exchange_declare(exchange="logs", exchange_type="fanout")

        channel.confirm_delivery()
        try:
            # A fanout exchange does not look at the routing key. mandatory: if no queue is bound,
            # the message comes back to us. Without it, the broker drops the message, and confirms
            # it too.
            channel.basic_publish(
                exchange="logs",
                routing_key="",
                body=message.encode(errors="surrogateescape"),
                mandatory=True,
            )
        except pika.exceptions.UnroutableError:
            sys.exit(f" [!] Nobody got {message!r}: no queue is bound to the exchange logs")

        print(f" [x] Sent {message!r}")


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
