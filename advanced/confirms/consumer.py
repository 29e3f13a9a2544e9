# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Confirms in flight, the other end: acknowledge many messages at once.

    producer.py --"confirms"--> (default exchange) ---> [ queue confirms ] ---> consumer.py

    python advanced/confirms/consumer.py          until Ctrl+C or SIGTERM
    python advanced/confirms/consumer.py 100000   until it has taken that many

What was handled but not acknowledged yet when a connection broke is delivered again, and handled
twice. If the broker goes away, it waits for it.
AMQP_URL says where the broker is: amqp://guest:guest@localhost:5672/%2F unless set.
"""

import os
import re
import signal
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from socket import gaierror
from ssl import SSLError

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # which is no AMQPError
from pika.exceptions import AMQPConnectionError

handled = 0
seconds = 0.0
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


def consume(connection, count):
    """Take messages until told to stop. Raises AMQPConnectionError when the broker goes away."""
    global seconds
    channel = connection.channel()
    # What this process has not handled when it stops or dies comes back to the queue, up to 1000
    # messages at once. From RabbitMQ 4.0 on, a quorum queue drops what comes back more than 20
    # times, unless told otherwise. (-1 means any number since 4.0, but not once in 3.10.)
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
    channel.queue_declare(queue="confirms", durable=True, arguments=arguments)

    # Enough that the next messages come in while an ack is on its way. More would only sit here,
    # where no other consumer gets them.
    channel.basic_qos(prefetch_count=1000)
    last = acked = 0  # delivery tags, which count the messages of this channel

    def on_message(channel, method, properties, body):
        global handled
        nonlocal last
        if stopping:
            return  # neither handled nor acknowledged: it goes back to the queue
        # The work would be here. If doing it twice does harm, store properties.message_id with its
        # result, in one transaction, and skip a message whose id is stored already.
        handled += 1
        last = method.delivery_tag
        if handled == count:
            stop()

    channel.basic_consume(queue="confirms", on_message_callback=on_message)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    while not stopping:
        start = time.monotonic()
        # This handles whatever has come in, hundreds at a time if there are many.
        connection.process_data_events(time_limit=0.5)
        if last > acked:
            # multiple: this delivery tag and all before it, in one ack instead of hundreds.
            channel.basic_ack(delivery_tag=last, multiple=True)
            acked = last
            seconds += time.monotonic() - start
            if sys.stderr.isatty():
                print(f" [.] {handled} received", end="\r", file=sys.stderr, flush=True)
        if not channel.consumer_tags:
            sys.exit(" [!] The queue confirms was deleted, or a message outlasted consumer_timeout")


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int)
    count = parser.parse_args().count
    if count is not None and count < 1:
        parser.error("count: at least 1")
    connected = False
    while not stopping:
        try:
            with pika.BlockingConnection(nodes()) as connection:
                connected = True
                signal.signal(signal.SIGINT, stop)
                signal.signal(signal.SIGTERM, stop)
                consume(connection, count)
        # Not any OSError: a full disk is one too.
        except (AMQPConnectionError, AMQPConnectorException, gaierror, SSLError) as error:
            if stopping or not connected:
                raise
            print(f" [!] Lost the broker: {error!r}. Trying again.", file=sys.stderr)
            time.sleep(1)
    print(f" [x] Received {handled} in {seconds:.2f} s, {handled / max(seconds, 0.001):.0f}/s")


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
