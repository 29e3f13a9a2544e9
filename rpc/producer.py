# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""RPC client: ask a server for Fibonacci numbers, and wait for its answers.

    producer.py --> (default exchange) --> [queue "rpc_queue"] --> consumer.py
        ^                                                              |
        +------- amq.rabbitmq.reply-to <-- (default exchange) <--------+

    python rpc/producer.py                 asks for fib(30)
    python rpc/producer.py 10 20 30        sends three requests, then waits for answers

Start the server, consumer.py, first.
"""

import os
import sys
import time
import uuid
from argparse import ArgumentParser

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def main():
    parser = ArgumentParser(description="Ask an RPC server for Fibonacci numbers.")
    parser.add_argument("n", nargs="*", default=["30"], help="from 0 to 9999")
    parser.add_argument("--timeout", type=int, default=10, help="limit in seconds")
    arguments = parser.parse_args()
    if arguments.timeout <= 0:
        parser.error("--timeout must be at least 1")
    deadline = time.monotonic() + arguments.timeout

    connection = connect(arguments.timeout)
    channel = connection.channel()
    pending = {}  # the requests that have no answer yet, by correlation_id
    failed = []

    def on_answer(channel, method, properties, body):
        # Ignore a second answer: a server that crashed might have sent the first.
        n = pending.pop(properties.correlation_id, None)
        if n is None:
            return
        if body.isdigit():
            print(f" [.] Got fib({n}) = {body.decode()}")
        else:
            failed.append(n)
            print(f" [!] fib({n}): {body.decode(errors='replace')!r}", file=sys.stderr)
        if not pending:
            channel.stop_consuming()

    # Direct reply-to: not a queue, but a name under which the broker passes answers
    # straight to this channel. We consume from it before we send the first request.
    reply_to = "amq.rabbitmq.reply-to"
    channel.basic_consume(queue=reply_to, on_message_callback=on_answer, auto_ack=True)

    # Until a server has run, the queue doesn't exist, and our requests come back.
    def on_return(channel, method, properties, body):
        sys.exit(" [!] Not delivered: no queue 'rpc_queue'. Start consumer.py first.")

    channel.add_on_return_callback(on_return)

    for n in arguments.n:
        correlation_id = str(uuid.uuid4())
        pending[correlation_id] = n
        print(f" [x] Requesting fib({n})")
        channel.basic_publish(
            exchange="",
            routing_key="rpc_queue",
            body=n.encode(errors="surrogateescape"),
            properties=pika.BasicProperties(
                reply_to=reply_to,  # where the server sends the answer
                correlation_id=correlation_id,  # which request the answer is for
                # Milliseconds. The broker drops a request that no server took by then.
                expiration=str(arguments.timeout * 1000),
            ),
            mandatory=True,  # return it if the queue doesn't exist
        )

    # An answer can get lost, so never wait without a limit.
    def on_timeout():
        numbers = ", ".join(f"fib({n})" for n in pending.values())
        sys.exit(f" [!] No answer in {arguments.timeout} s: {numbers}")

    connection.call_later(max(0, deadline - time.monotonic()), on_timeout)
    channel.start_consuming()
    connection.close()
    sys.exit(1 if failed else 0)


# The same in every producer: connecting, Ctrl+C, and the broker's errors in one line.
def connect(timeout):
    try:
        parameters = pika.URLParameters(AMQP_URL)
        if "@" in parameters.virtual_host:  # an unescaped / in the password
            raise ValueError
    except Exception as error:  # print it only if it can't contain the password
        hint = "It should look like amqp://user:password@host:5672/%2F"
        sys.exit(f" [!] AMQP_URL: {error if 'URL parameter' in str(error) else hint}")
    parameters.socket_timeout = parameters.stack_timeout = timeout
    try:
        return pika.BlockingConnection(parameters)
    except Exception as error:  # refused, unknown host, TLS, no answer: of many types
        hint = "Is it running? Are user, password, host and vhost right?"
        sys.exit(f" [!] Can't connect to RabbitMQ: {error!r}. {hint}")


if __name__ == "__main__":
    # Print immediately, even to a pipe, and any character, even to an old terminal.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
