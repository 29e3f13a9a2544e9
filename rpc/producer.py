# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3"]
# ///
"""RPC: ask a question over the broker, and get the answer.

    producer.py --"rpc_queue"--> (default exchange) ---> [ queue rpc_queue ] ---> consumer.py
    producer.py <--- amq.rabbitmq.reply-to <--- (default exchange) <--"reply_to"--- consumer.py

    python rpc/producer.py                    asks for fib(30)
    python rpc/producer.py 10 20 30           all at once; answers are matched by correlation_id

Says so, and ends with 1, if a request is refused or has no answer after --timeout seconds.
AMQP_URL says where the broker is: amqp://guest:guest@localhost:5672/%2F unless set.
"""

import os
import re
import signal
import sys
import time
import uuid
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
    parser.add_argument("n", nargs="*", default=["30"])
    parser.add_argument("--timeout", type=int, default=10, metavar="SECONDS")
    arguments = parser.parse_args()
    if not 1 <= arguments.timeout <= 3600:
        parser.error("--timeout: from 1 to 3600 seconds")
    waiting = {str(uuid.uuid4()): n for n in arguments.n}
    failed = []

    def on_reply(channel, method, properties, body):
        n = waiting.pop(properties.correlation_id, None)
        text = body.decode(errors="replace")
        if n is None:
            print(f" [?] Ignored an answer to nothing that we asked: {text!r}")
        elif properties.type == "error" or not body.isdigit():
            failed.append(f"fib({n}) was refused: {text!r}")
        else:
            print(f" [.] Got fib({n}) = {text}")

    def on_return(channel, method, properties, body):
        n = waiting.pop(properties.correlation_id)
        failed.append(f"fib({n}) reached no server: there is no queue rpc_queue")

    parameters = nodes()
    for node in parameters:
        # A broker short of memory or disk has those who publish wait for as long as that lasts.
        node.blocked_connection_timeout = arguments.timeout

    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()

        # Direct reply-to: amq.rabbitmq.reply-to is not a queue but a name for the way back to this
        # channel. One has to consume from it, without acknowledgement, before the first request.
        channel.basic_consume(
            queue="amq.rabbitmq.reply-to", on_message_callback=on_reply, auto_ack=True
        )
        channel.add_on_return_callback(on_return)

        # All requests are in flight before the first answer. reply_to says where an answer is to
        # go; correlation_id comes back in it, and says which request it is for. A request older
        # than its expiration, in milliseconds, is dropped instead of delivered: nobody waits for it
        # any more. mandatory: if there is no such queue, it comes back, to on_return.
        for correlation_id, n in list(waiting.items()):
            print(f" [x] Requesting fib({n})")
            channel.basic_publish(
                exchange="",
                routing_key="rpc_queue",
                body=n.encode(errors="surrogateescape"),
                properties=pika.BasicProperties(
                    reply_to="amq.rabbitmq.reply-to",
                    correlation_id=correlation_id,
                    expiration=str(arguments.timeout * 1000),
                ),
                mandatory=True,
            )

        deadline = time.monotonic() + arguments.timeout
        while waiting and channel.is_open and (left := deadline - time.monotonic()) > 0:
            connection.process_data_events(time_limit=left)

        # Said before the connection is closed, which may take long if the broker is the reason.
        reason = f"had no answer in {arguments.timeout} s"
        if not channel.is_open:
            reason = "was refused by the broker, whose log says why"
        failed += [f"fib({n}) {reason}" for n in waiting.values()]
        for line in failed:
            print(f" [!] {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


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
