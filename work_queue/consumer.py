# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""Work queue: do the tasks, one at a time; none is lost if a worker or the broker dies meanwhile.

    producer.py --"task_queue"--> (default exchange) ---> [ queue task_queue ] -+-> consumer.py
                                                                                +-> consumer.py
    python work_queue/consumer.py        start it in two terminals or more, and they share the tasks

Ctrl+C or SIGTERM ends it when the task in hand is done. If the broker goes away, it waits for it.
AMQP_URL says where the broker is: amqp://guest:guest@localhost:5672/%2F unless set.
"""

import os
import re
import signal
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent import futures
from socket import gaierror
from ssl import SSLError

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # which is no AMQPError
from pika.exceptions import AMQPConnectionError

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


def work(body):
    """Do one task: a second of work for each dot in it."""
    time.sleep(body.count(b"."))
    print(f" [x] Done {body.decode(errors='replace')!r}")


def consume(connection, pool):
    """Take tasks until told to stop. Raises AMQPConnectionError when the broker goes away."""
    channel = connection.channel()
    channel.queue_declare(queue="task_queue", durable=True, arguments={"x-queue-type": "quorum"})

    # Prefetch: at most one unacknowledged message at a time. Without a limit, the broker deals out
    # all it has (a quorum queue: 2000 to each worker), in turn (round robin), and tasks wait at a
    # busy worker while another one idles.
    channel.basic_qos(prefetch_count=1)

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode(errors='replace')!r}")

        # The work has a thread of its own. This one, the only one that may use the channel,
        # keeps up the heartbeats; without them the broker would close the connection in mid-task
        # if a task is long: after two minutes or three, unless told otherwise.
        task = pool.submit(work, body)
        while futures.wait([task], timeout=0.5).not_done:
            connection.process_data_events()
        try:
            task.result()
        except BrokenPipeError:
            raise
        except Exception as error:  # another worker will get the task: see advanced/dead_letter
            sys.exit(f" [!] Not done, {body.decode(errors='replace')!r}: {error!r}")

        # The acknowledgement comes after the work. Until it arrives, the broker keeps the message,
        # and delivers it again if this process or its connection dies: a task may be done twice,
        # but is not lost. (From RabbitMQ 4.0 on, a quorum queue gives up on a message that came
        # back from dying workers more than 20 times: see advanced/dead_letter.) If the work
        # outlasted consumer_timeout, the broker has closed the channel, or from 4.3 on, only
        # cancelled this consumer.
        if channel.is_open:
            channel.basic_ack(delivery_tag=method.delivery_tag)

    channel.basic_consume(queue="task_queue", on_message_callback=on_message)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    while not stopping:
        connection.process_data_events(time_limit=0.5)
        if not channel.consumer_tags:  # the broker has cancelled the consumer
            sys.exit(" [!] The queue task_queue was deleted, or a task outlasted consumer_timeout")


def main():
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    connected = False
    with futures.ThreadPoolExecutor(max_workers=1) as pool:
        while not stopping:
            try:
                with pika.BlockingConnection(nodes()) as connection:
                    connected = True
                    signal.signal(signal.SIGINT, stop)
                    signal.signal(signal.SIGTERM, stop)
                    consume(connection, pool)
            # Not any OSError: a full disk is one too.
            except (AMQPConnectionError, AMQPConnectorException, gaierror, SSLError) as error:
                if stopping or not connected:
                    raise
                print(f" [!] Lost the broker: {error!r}. Trying again.", file=sys.stderr)
                time.sleep(1)


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
