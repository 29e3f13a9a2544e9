# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Simple mode: take the messages out of the queue.

    producer.py --"hello"--> (default exchange) ---> [ queue hello ] ---> consumer.py

    python simple/consumer.py

It prints each message until Ctrl+C. Start it twice, and each message goes to one of the two.
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
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()

    with pika.BlockingConnection(nodes()) as connection:
        channel = connection.channel()
        channel.queue_declare(queue="hello", durable=True, arguments={"x-queue-type": "quorum"})

        # Pika calls this for each message, with the channel that it came by, how it was delivered
        # (routing key, delivery tag), its properties, and its body: bytes, which may be any bytes.
        def on_message(channel, method, properties, body):
            # !r also keeps control characters in a message from reaching the terminal.
            print(f" [x] Received {body.decode(errors='replace')!r}")

        # auto_ack: the broker forgets a message as soon as it has sent it. That is fast, but what
        # this process had received and not yet handled when it ended is lost, and no prefetch
        # limits how much that is. work_queue acknowledges each message after its work.
        channel.basic_consume(queue="hello", on_message_callback=on_message, auto_ack=True)

        print(" [*] Waiting for messages. To exit press CTRL+C")
        channel.start_consuming()

        # It returns by itself only if the broker has cancelled the consumer: its queue is gone.
        sys.exit(" [!] The queue hello was deleted. Start again to declare it anew.")


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
