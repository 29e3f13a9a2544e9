# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""RPC server: compute Fibonacci numbers for the clients that ask.

    producer.py --> (default exchange) --> [queue "rpc_queue"] --> consumer.py
        ^                                                              |
        +------- amq.rabbitmq.reply-to <-- (default exchange) <--------+

    python rpc/consumer.py

Start it first, then run the client, producer.py. Several servers share the requests.
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


def on_request(channel, method, properties, body):
    # Clients can send us anything. If a bad request crashed us, the broker would
    # redeliver it, and it would crash the next server too.
    if body.isdigit() and len(body) <= 4:
        print(f" [.] fib({int(body)})")
        answer = str(fib(int(body)))
    else:
        print(f" [!] Refused {body.decode(errors='replace')!r}", file=sys.stderr)
        answer = "error: not a number from 0 to 9999"

    # The request's reply_to names where the answer goes. Its correlation_id tells the
    # client which request the answer is for.
    if properties.reply_to:
        channel.basic_publish(
            exchange="",
            routing_key=properties.reply_to,
            properties=pika.BasicProperties(correlation_id=properties.correlation_id),
            body=answer.encode(),
        )

    # Acknowledge after the answer. If we crash in between, another server answers the
    # request again, and the client ignores the second answer.
    channel.basic_ack(delivery_tag=method.delivery_tag)


def main():
    connection = connect()
    channel = connection.channel()
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="rpc_queue", durable=True, arguments=quorum)

    # Take one request at a time, so that several servers share them fairly.
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="rpc_queue", on_message_callback=on_request)
    print(" [x] Awaiting RPC requests")
    channel.start_consuming()
    sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")


# The same in every consumer: connecting, Ctrl+C, and the broker's errors in one line.
def connect():
    try:
        parameters = pika.URLParameters(AMQP_URL)
        if "@" in parameters.virtual_host:  # an unescaped / in the password
            raise ValueError
    except Exception as error:  # print it only if it can't contain the password
        hint = "It should look like amqp://user:password@host:5672/%2F"
        sys.exit(f" [!] AMQP_URL: {error if 'URL parameter' in str(error) else hint}")
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
        pass
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
