# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Work queue: hand out tasks that, once sent, survive crashes of the worker and of the broker.

    producer.py --"task_queue"--> (default exchange) ---> [ queue task_queue ] -+-> consumer.py
                                                                                +-> consumer.py
    python work_queue/producer.py                         five tasks
    python work_queue/producer.py 'Resize.' 'Encode...'   two: a second of work for each dot

It says "Sent" of what the broker has confirmed; if the broker goes away, it tries again a while.
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

TASKS = ["First task.", "Second task..", "Third task...", "Fourth task....", "Fifth task....."]


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


def publish(connection, tasks):
    """Send the tasks in turn, and take each off the list when the broker has confirmed it."""
    channel = connection.channel()
    channel.queue_declare(queue="task_queue", durable=True, arguments={"x-queue-type": "quorum"})

    # Publisher confirms: from here on, basic_publish returns only when the broker has confirmed the
    # message. For one in a quorum queue, that is when it is on disk; in a cluster, on those of a
    # majority of the queue's nodes.
    channel.confirm_delivery()

    while tasks:
        channel.basic_publish(
            exchange="",
            routing_key="task_queue",
            body=tasks[0].encode(errors="surrogateescape"),
            # Delivery mode 2: the message outlives a restart of the broker. A quorum queue keeps
            # every message over a restart, a classic queue only those that say so.
            properties=pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent),
            # Without it, the broker drops what it can route to no queue, and confirms it too.
            mandatory=True,
        )
        print(f" [x] Sent {tasks.pop(0)!r}")


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*", default=TASKS)
    tasks = parser.parse_args().task
    tries = 0
    while tasks:
        try:
            with pika.BlockingConnection(nodes()) as connection:
                tries = 30
                publish(connection, tasks)
        except (pika.exceptions.UnroutableError, pika.exceptions.NackError) as error:
            sys.exit(f" [!] Not sent, {tasks[0]!r} and {len(tasks) - 1} more: {error!r}")
        # Not any OSError: a full disk is one too.
        except (AMQPConnectionError, AMQPConnectorException, gaierror, SSLError) as error:
            # A task may have arrived although its confirm did not. Sent again, it may be done
            # twice; not sent again, it may be lost.
            if not tries:
                raise
            tries -= 1
            if not tries:
                sys.exit(f" [!] Not confirmed, {tasks[0]!r} and {len(tasks) - 1} more: {error!r}")
            print(f" [!] Lost the broker: {error!r}. Trying again.", file=sys.stderr)
            time.sleep(1)


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
