# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Topic: get the messages whose routing key matches one of the patterns that you name.

                                             +--kern.*-----> [ a queue ] ---> consumer.py
    producer.py ---> ( exchange topic_logs ) +--*.critical-> [ a queue ] ---> consumer.py

    python topic/consumer.py                             everything: the pattern is #
    python topic/consumer.py 'kern.*' '*.critical'       quoted, or the shell takes * for files

In a pattern, * stands for exactly one word, and # for any number of words, none included.
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
    parser.add_argument("pattern", nargs="*", type=routing_key, default=["#"])
    patterns = parser.parse_args().pattern

    with pika.BlockingConnection(nodes()) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange="topic_logs", exchange_type="topic")
        queue = channel.queue_declare(queue="", exclusive=True).method.queue

        # The pattern is the routing key of the binding. With # alone, a topic exchange does what a
        # fanout exchange does; with neither * nor #, what a direct one does. A message that matches
        # several patterns of a queue still goes to it once.
        for pattern in patterns:
            channel.queue_bind(queue=queue, exchange="topic_logs", routing_key=pattern)

        def on_message(channel, method, properties, body):
            print(f" [x] Received {method.routing_key!r}: {body.decode(errors='replace')!r}")

        channel.basic_consume(queue=queue, on_message_callback=on_message, auto_ack=True)

        print(" [*] Waiting for messages. To exit press CTRL+C")
        channel.start_consuming()
        sys.exit(f" [!] The queue {queue} was deleted. Start again to declare another.")


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
