"""What run.py measures the lessons against: a program in each function.

    python benchmarks/clients.py publish-aio-pika 10000

They connect to AMQP_URL and use queues that run.py has created. What they publish looks
like the messages of advanced/confirms. `worker` and `rpc_client` are our own code, and
make the same calls as the programs of the official tutorials:
https://www.rabbitmq.com/tutorials
"""

import asyncio
import os
import sys
import time
import uuid
from collections.abc import Callable

import aio_pika
import pika

PARAMETERS = pika.URLParameters(os.environ["AMQP_URL"])
WINDOW = 2000  # as many messages in flight as in advanced/confirms
RUN_ID = uuid.uuid4().hex


def body(number):
    return f"{number} ".encode().ljust(100, b".")


def publish(channel, number):
    channel.basic_publish(
        exchange="",
        routing_key="confirms",
        body=body(number),
        properties=pika.BasicProperties(
            delivery_mode=pika.DeliveryMode.Persistent,
            message_id=f"{RUN_ID}-{number}",
        ),
        mandatory=True,
    )


def publish_no_confirms(count, confirm=False):
    connection = pika.BlockingConnection(PARAMETERS)
    channel = connection.channel()
    if confirm:
        channel.confirm_delivery()
    for number in range(count):
        publish(channel, number)
    connection.close()


def publish_one_at_a_time(count):
    publish_no_confirms(count, confirm=True)


def publish_aio_pika(count):
    async def run():
        connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
        channel = await connection.channel()

        async def publish(number):
            message = aio_pika.Message(
                body(number),
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                message_id=f"{RUN_ID}-{number}",
            )
            await channel.default_exchange.publish(message, routing_key="confirms")

        window = asyncio.Semaphore(WINDOW)
        tasks = []
        for number in range(count):
            await window.acquire()
            task = asyncio.create_task(publish(number))
            task.add_done_callback(lambda task: window.release())
            tasks.append(task)
        await asyncio.gather(*tasks)  # raises what any of them has raised
        await connection.close()

    asyncio.run(run())


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


def consume(prefetch):
    """Acknowledge each message, until the process is killed."""
    channel = pika.BlockingConnection(PARAMETERS).channel()

    def on_message(channel, method, properties, body):
        channel.basic_ack(delivery_tag=method.delivery_tag)
        if method.delivery_tag % 1000 == 0:
            print(f" [x] Received {method.delivery_tag}")

    channel.basic_qos(prefetch_count=prefetch)
    print(" [*] Waiting for messages")
    channel.basic_consume(queue="confirms", on_message_callback=on_message)
    channel.start_consuming()


def worker():
    channel = pika.BlockingConnection(PARAMETERS).channel()
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="task_queue", durable=True, arguments=quorum)

    def on_message(channel, method, properties, body):
        print(f" [x] Received {body.decode()}")
        time.sleep(body.count(b"."))
        print(" [x] Done")
        channel.basic_ack(delivery_tag=method.delivery_tag)

    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="task_queue", on_message_callback=on_message)
    channel.start_consuming()


def rpc_client(count):
    connection = pika.BlockingConnection(PARAMETERS)
    channel = connection.channel()
    queue = channel.queue_declare(queue="", exclusive=True).method.queue
    replies = {}

    def on_reply(channel, method, properties, body):
        replies[properties.correlation_id] = int(body)

    channel.basic_consume(queue=queue, on_message_callback=on_reply, auto_ack=True)
    for _ in range(count):
        print(" [x] Requesting fib(0)")
        request = str(uuid.uuid4())
        properties = pika.BasicProperties(reply_to=queue, correlation_id=request)
        channel.basic_publish("", "rpc_queue", b"0", properties)
        while request not in replies:
            connection.process_data_events(time_limit=None)
        print(f" [.] Got {replies.pop(request)}")
    connection.close()


PROGRAMS: dict[str, Callable[..., None]] = {
    "publish-no-confirms": publish_no_confirms,
    "publish-one-at-a-time": publish_one_at_a_time,
    "publish-aio-pika": publish_aio_pika,
    "publish-select-connection": publish_select_connection,
    "consume": consume,
    "worker": worker,
    "rpc-client": rpc_client,
}

if __name__ == "__main__":
    # Print line by line, as to a terminal, because the lessons do so even to a pipe.
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    name, *arguments = sys.argv[1:]
    start = time.monotonic()
    PROGRAMS[name](*map(int, arguments))
    print(f" [x] Finished in {time.monotonic() - start:.2f} s")
