# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""RPC server: compute Fibonacci numbers and send each reply to the client that asked.

    producer.py --> (default exchange) --> [queue "rpc_queue"] --> consumer.py
        ^                                                              |
        +------- amq.rabbitmq.reply-to <-- (default exchange) <--------+

    python rpc/consumer.py

Then run the client, producer.py. If you start several servers, they share the requests.
"""

import os
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def main():
    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Both scripts declare the queue with the same arguments, so that you can start
    # either of them first.
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="rpc_queue", durable=True, arguments=quorum)

    # Take one request at a time, so that a free server doesn't wait for a busy one.
    channel.basic_qos(prefetch_count=1)

    def on_request(channel, method, properties, body):
        # A request can be anything. If a bad one crashed us, the broker would redeliver
        # it, and it would crash the next server, too.
        if body.isdigit() and len(body) <= 4:
            print(f" [.] fib({int(body)})")
            reply = str(fib(int(body)))
        else:
            print(f" [!] Refused {body.decode(errors='replace')!r}", file=sys.stderr)
            reply = "error: not a number from 0 to 9999"

        # Send the reply to the address in the request. Copy the request's
        # correlation_id, so that the client knows which request this replies to.
        if properties.reply_to:
            correlation_id = properties.correlation_id
            channel.basic_publish(
                exchange="",
                routing_key=properties.reply_to,
                body=reply.encode(),
                properties=pika.BasicProperties(correlation_id=correlation_id),
            )

        # Acknowledge after the reply, not before. If we crash first, the broker
        # redelivers the request, so the client might get two replies.
        channel.basic_ack(delivery_tag=method.delivery_tag)

    channel.basic_consume(queue="rpc_queue", on_message_callback=on_request)
    print(" [x] Awaiting RPC requests")
    channel.start_consuming()
    sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")


# Skip this on a first read: it's the same in every consumer.
def connect():
    try:
        parameters = pika.URLParameters(AMQP_URL)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")
    try:
        return pika.BlockingConnection(parameters)
    except Exception as error:  # many types: refused, unknown host, TLS, timeout
        hint = "Is it running, and are user, password, host and vhost right?"
        sys.exit(f" [!] Can't connect to RabbitMQ: {error!r}. {hint}")


if __name__ == "__main__":
    # Print immediately, even to a pipe, and any character, even to an old terminal.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        pass
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
