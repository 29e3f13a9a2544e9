# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""RPC: answer the questions that come over the broker. Start several, and they share the work.

    producer.py --"rpc_queue"--> (default exchange) ---> [ queue rpc_queue ] ---> consumer.py
    producer.py <--- amq.rabbitmq.reply-to <--- (default exchange) <--"reply_to"--- consumer.py

    python rpc/consumer.py

A bad request gets an error for its answer. If the broker goes away, it waits for it.
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


def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def on_request(channel, method, properties, body):
    reply = pika.BasicProperties(correlation_id=properties.correlation_id)
    # Whoever may publish can send anything. A request that raised here would end this server, be
    # delivered again, and end the next one: so what cannot be answered is refused, in an answer.
    if re.fullmatch(rb"[0-9]{1,4}", body):
        print(f" [.] fib({int(body)})")
        answer = str(fib(int(body)))
    else:
        print(f" [!] Refused {body.decode(errors='replace')!r}")
        answer = "not a whole number from 0 to 9999"
        reply.type = "error"  # what both ends here have agreed on

    # The request says where the answer goes. The broker drops it if that client is there no more.
    if properties.reply_to:
        channel.basic_publish(
            exchange="", routing_key=properties.reply_to, body=answer, properties=reply
        )

    # Answer first, then acknowledge: dying in between means an answer too many, never one too few.
    channel.basic_ack(delivery_tag=method.delivery_tag)


def serve(connection):
    channel = connection.channel()
    channel.queue_declare(queue="rpc_queue", durable=True, arguments={"x-queue-type": "quorum"})
    # An answer takes less time than the way to the broker and back, so the next requests had better
    # be here already. Where each takes long, share them out with a prefetch of 1, and keep up the
    # heartbeats by working in a thread, as work_queue does.
    channel.basic_qos(prefetch_count=300)
    channel.basic_consume(queue="rpc_queue", on_message_callback=on_request)
    print(" [x] Awaiting RPC requests")
    while not stopping:
        connection.process_data_events(time_limit=0.5)
        if not channel.consumer_tags:  # the broker has cancelled the consumer
            sys.exit(" [!] The queue rpc_queue was deleted, or consumer_timeout has passed")


def main():
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    connected = False
    while not stopping:
        try:
            with pika.BlockingConnection(nodes()) as connection:
                connected = True
                signal.signal(signal.SIGINT, stop)
                signal.signal(signal.SIGTERM, stop)
                serve(connection)
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
