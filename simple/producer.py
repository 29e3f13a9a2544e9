# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Simple mode: send messages to a queue that you name yourself.

    producer.py --"hello"--> (default exchange) ---> [ queue hello ] ---> consumer.py

    python simple/producer.py              ten messages, 兔子0 to 兔子9
    python simple/producer.py Hello 3      three: Hello0, Hello1, Hello2

Either end may start first: the queue keeps what nobody has taken yet.
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
    urls = (os.environ.get("AMQP_URL") or "").split(",")
    if urls == [""]:
        # The long form of amqp://guest:guest@localhost:5672/%2F. The user guest may log in from the
        # broker's own machine only, unless the broker's configuration says otherwise.
        credentials = pika.PlainCredentials(username="guest", password="guest")
        return [pika.ConnectionParameters(host="localhost", port=5672, credentials=credentials)]
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
    parser.add_argument("text", nargs="?", default="兔子")
    parser.add_argument("count", nargs="?", type=int, default=10)
    arguments = parser.parse_args()
    if arguments.count < 1:
        parser.error("count: at least 1")

    # The connection is a TCP connection and a login. Leaving this block closes it, in any case.
    with pika.BlockingConnection(nodes()) as connection:
        # A channel is a session within the connection: nearly all that one asks a broker for is
        # asked on a channel, and most errors end the channel, not the connection.
        channel = connection.channel()

        # Declaring makes the queue if it is not there, so both ends declare it and either may start
        # first. If it is there, but was declared otherwise, the broker refuses with
        # PRECONDITION_FAILED. durable: the queue is there again after the broker restarts; it does
        # not make a copy of any message. x-queue-type: a quorum queue keeps its messages on disk,
        # and in a cluster on several nodes.
        channel.queue_declare(queue="hello", durable=True, arguments={"x-queue-type": "quorum"})

        for i in range(arguments.count):
            # The empty name is not "no exchange": it is the default exchange, to which the broker
            # binds every queue by the queue's own name. The routing key is therefore that name.
            channel.basic_publish(
                exchange="",
                routing_key="hello",
                body=f"{arguments.text}{i}".encode(errors="surrogateescape"),  # as it was typed
            )

        # The broker answers this after all that came before it: if it has refused something, such
        # as a message that this user may not send, pika raises that here.
        channel.close()

    # Sent is not confirmed: the broker has refused none of these messages, but if one did not reach
    # the queue, nobody would know. work_queue has each confirmed.
    print(f"Sent {arguments.text!r} * {arguments.count}")


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
