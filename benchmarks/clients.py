"""What run.py measures the lessons against: a program in each function.

    python benchmarks/clients.py publish_one_at_a_time 4000

They connect to AMQP_URL and use queues that run.py has created. What they publish looks
like the messages of advanced/confirms. `worker` is our own code, and makes the same
calls as the worker of the official tutorial:
https://www.rabbitmq.com/tutorials/tutorial-two-python
"""

import os
import sys
import time
import uuid

import pika

PARAMETERS = pika.URLParameters(os.environ["AMQP_URL"])
WINDOW = 2000  # as many messages in flight as in advanced/confirms
RUN_ID = uuid.uuid4().hex


def publish(channel, number):
    channel.basic_publish(
        exchange="",
        routing_key="confirms",
        body=f"{number} ".encode().ljust(100, b"."),
        properties=pika.BasicProperties(
            delivery_mode=pika.DeliveryMode.Persistent,
            message_id=f"{RUN_ID}-{number}",
        ),
        mandatory=True,
    )


def publish_one_at_a_time(count):
    connection = pika.BlockingConnection(PARAMETERS)
    channel = connection.channel()
    channel.confirm_delivery()
    for number in range(count):
        publish(channel, number)
    connection.close()


def publish_select_connection(count):
    """Keep confirms in flight, but remember only the last one: pika's ceiling.

    It couldn't resend what the broker refuses, or what a lost connection had in flight.
    """
    sent = 0

    def on_open(connection):
        connection.channel(on_open_callback=on_channel_open)

    def on_channel_open(channel):
        def fill_window(confirmed):
            nonlocal sent
            while sent < min(count, confirmed + WINDOW):
                publish(channel, sent)
                sent += 1
            if confirmed == count:
                connection.close()

        channel.confirm_delivery(lambda frame: fill_window(frame.method.delivery_tag))
        fill_window(confirmed=0)

    def on_close(connection, reason):
        connection.ioloop.stop()

    connection = pika.SelectConnection(PARAMETERS, on_open, on_close_callback=on_close)
    connection.ioloop.start()


def worker():
    channel = pika.BlockingConnection(PARAMETERS).channel()
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="task_queue", durable=True, arguments=quorum)
    print(" [*] Waiting for messages")

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode()}")
        time.sleep(body.count(b"."))
        print(" [x] Done")
        channel.basic_ack(delivery_tag=method.delivery_tag)

    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="task_queue", on_message_callback=on_message)
    channel.start_consuming()


if __name__ == "__main__":
    # Print line by line, as to a terminal, because the lessons do so even to a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    _, name, *arguments = sys.argv
    start = time.monotonic()
    globals()[name](*map(int, arguments))
    print(f" [x] Finished in {time.monotonic() - start:.2f} s")
