# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Confirms in flight: publish without waiting, and still know of every message that it has arrived.

    producer.py --"confirms"--> (default exchange) ---> [ queue confirms ] ---> consumer.py

    python advanced/confirms/producer.py                    100000 messages of 100 bytes
    python advanced/confirms/producer.py 500 --size 10000   500 of 10000 bytes

A confirm promises that the message is safe in its queue: at least once. It does not promise that
anybody has read it, nor that it is there only once: what was in flight when a connection broke is
published again, and may arrive twice, with the same message_id.
AMQP_URL says where the broker is: amqp://guest:guest@localhost:5672/%2F unless set.
"""

import os
import re
import signal
import sys
import time
import uuid
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from itertools import islice, takewhile
from socket import gaierror
from ssl import SSLError

import pika
from pika.adapters.select_connection import IOLoop
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # which is no AMQPError
from pika.exceptions import AMQPConnectionError


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


# A BlockingConnection waits for the confirm of each message before the next. A SelectConnection
# waits for nothing: its loop calls the methods on_... when the broker has something to say.
class Producer:
    """What is still to be published, and to be confirmed. It outlives a connection."""

    def __init__(self, count, size):
        self.count, self.size = count, size
        # The window: how much may be in flight. That may all be in memory, so bytes limit it too.
        self.window = max(1, min(2000, 10_000_000 // max(1, size)))
        self.numbers = iter(range(1, count + 1))  # of the messages not published yet
        self.unconfirmed = {}  # the numbers of those in flight, by delivery tag
        self.again = []  # the numbers of those to publish once more
        self.confirmed = 0
        self.returned = []
        self.stopping = False
        self.run_id = uuid.uuid4().hex
        self.start = time.monotonic()

    def run(self):
        """Publish over one connection. Raises what broke it, if the work is not done."""
        self.connection = self.channel = self.error = None
        self.ioloop = IOLoop()
        pika.SelectConnection.create_connection(nodes(), self.on_connected, self.ioloop)
        self.tick()
        self.ioloop.start()
        self.ioloop.close()
        if self.confirmed < self.count and not self.stopping:
            raise self.error

    def on_connected(self, connection):
        if isinstance(connection, Exception):
            self.error = pika.exceptions.AMQPConnectionError(connection.exceptions[-1])
            self.ioloop.stop()
            return
        self.connection = connection
        connection.add_on_close_callback(self.on_closed)
        connection.add_on_connection_blocked_callback(self.on_blocked)
        connection.channel(on_open_callback=self.on_channel)

    def on_channel(self, channel):
        self.channel = channel
        channel.add_on_close_callback(self.on_closed)
        channel.add_on_return_callback(self.on_return)
        # Both ends declare the queue alike, its arguments included: consumer.py explains them.
        arguments = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
        channel.queue_declare(queue="confirms", durable=True, arguments=arguments)
        channel.confirm_delivery(self.on_confirm)

        # Delivery tags count the messages of one channel. What was in flight on an earlier one may
        # have arrived or not, and nobody can tell any more: so it is published again.
        self.tag = 0
        self.quiet = 0  # ticks since the last confirm
        self.again += self.unconfirmed.values()
        self.unconfirmed = {}
        self.publish()

    def publish(self):
        properties = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
        while len(self.unconfirmed) < self.window and not self.stopping:
            number = self.again.pop() if self.again else next(self.numbers, None)
            if number is None:
                break
            # A consumer knows a duplicate by its message_id. Pika encodes the properties before it
            # returns, so one object serves for all messages.
            properties.message_id = f"{self.run_id}-{number}"
            body = f"{number} ".encode().ljust(self.size, b".")
            self.channel.basic_publish("", "confirms", body, properties, mandatory=True)
            self.tag += 1
            self.unconfirmed[self.tag] = number
        done = self.stopping or self.confirmed >= self.count
        if done and not self.unconfirmed and self.connection.is_open:
            self.connection.close()

    def on_confirm(self, frame):
        # An ack that is "multiple" stands for all messages up to its tag: a busy broker sends one
        # for dozens. The tags in the dict are in ascending order, as they were put there.
        tags = [frame.method.delivery_tag]
        if frame.method.multiple:
            tags = list(takewhile(lambda tag: tag <= frame.method.delivery_tag, self.unconfirmed))
        numbers = [self.unconfirmed.pop(tag) for tag in tags]
        if isinstance(frame.method, pika.spec.Basic.Ack):
            self.confirmed += len(numbers)
            self.quiet = 0
            self.publish()
        else:  # a nack: the queue did not take them. tick() has them published again.
            self.again += numbers

    def on_return(self, channel, method, properties, body):
        # Somebody has deleted the queue. The broker confirms the message all the same, after this.
        self.returned.append(int(properties.message_id.split("-")[1]))
        self.confirmed -= 1
        self.stopping = True

    def on_blocked(self, connection, frame):
        self.quiet = float("-inf")  # that may take its time
        reason = frame.method.reason
        print(f" [!] The broker takes no messages for now: {reason}. Waiting.", file=sys.stderr)

    def on_closed(self, channel_or_connection, reason):
        self.error = self.error or reason
        if self.connection.is_open:
            self.connection.close()
        elif self.connection.is_closed:
            self.ioloop.stop()

    def tick(self):
        """Twice a second, do what has no message from the broker for its cause."""
        self.ioloop.call_later(0.5, self.tick)
        if sys.stderr.isatty():
            print(f" [.] {self.confirmed} confirmed", end="\r", file=sys.stderr, flush=True)
        opened = self.channel and self.channel.is_open
        if opened:
            self.quiet += 1
            if self.quiet > 60:  # as with RabbitMQ 3.10, when the queue is deleted
                sys.exit(f" [!] {self}: the connection is up, but no confirm came for 30 seconds")
        if opened and not self.stopping:
            self.publish()
        elif opened:
            self.connection.close()
        elif self.stopping:
            self.ioloop.stop()

    def stop(self, *_):
        self.stopping = True

    def __str__(self):
        seconds = time.monotonic() - self.start
        left = [*self.unconfirmed.values(), *self.again, *self.returned, *islice(self.numbers, 1)]
        first = f"; number {min(left)} is the first that is not" if left else ""
        rate = f"{self.confirmed / seconds:.0f}/s"
        return f"Confirmed {self.confirmed} of {self.count} in {seconds:.2f} s, {rate}{first}"


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=100, metavar="BYTES")
    arguments = parser.parse_args()
    if arguments.count < 0 or not 0 <= arguments.size <= 2**27:
        parser.error("count: at least 0; --size: from 0 to 134217728 bytes")
    producer = Producer(arguments.count, arguments.size)
    signal.signal(signal.SIGINT, producer.stop)
    signal.signal(signal.SIGTERM, producer.stop)
    tries = 0
    while producer.confirmed < producer.count and not producer.stopping:
        try:
            producer.run()
        # Not any OSError: a full disk is one too.
        except (AMQPConnectionError, AMQPConnectorException, gaierror, SSLError) as error:
            if producer.channel:
                print(f" [!] Lost the broker: {error!r}. Trying again.", file=sys.stderr)
                tries = 60
            elif not tries:
                raise
            tries -= 1
            if not tries:
                sys.exit(f" [!] {producer}: {error!r}")
            time.sleep(1)
    if producer.returned:
        returned = len(producer.returned)
        sys.exit(f" [!] {producer}. Unroutable, as the queue is gone: {returned}")
    print(f" [x] {producer}")


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
