"""What the lessons are compared with: other ways and other libraries, one run of one of them.

    python benchmarks/clients.py publish-aio-pika 10000

prints {"count": 10000, "seconds": ...}. All publish the same messages to the same queue: 100 bytes,
persistent, with a message_id, mandatory. Each clock starts before the connection is made, when the
library is loaded, and stops when the connection is closed, or at the last confirm if there are any.
"""

import asyncio
import functools
import json
import os
import socket
import sys
import time

import pika

URL = os.environ["AMQP_URL"]
QUEUE = "confirms"
ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
RUN = "0123456789abcdef0123456789abcdef"
BODY = 100
AIO_BATCH = 500


def body(number):
    return f"{number} ".encode().ljust(BODY, b".")


def timed(function):
    """Make function return the seconds that it takes."""

    @functools.wraps(function)
    def wrapper(*arguments):
        start = time.monotonic()
        function(*arguments)
        return time.monotonic() - start

    return wrapper


def pika_publish(count, confirm):
    properties = pika.BasicProperties(delivery_mode=2)
    with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
        channel = connection.channel()
        channel.queue_declare(QUEUE, durable=True, arguments=ARGUMENTS)
        if confirm:
            channel.confirm_delivery()
        for number in range(count):
            properties.message_id = f"{RUN}-{number}"
            channel.basic_publish("", QUEUE, body(number), properties, mandatory=True)


@timed
def publish_one_at_a_time(count):
    pika_publish(count, confirm=True)


@timed
def publish_no_confirms(count):
    pika_publish(count, confirm=False)


def publish_aio_pika(count):
    import aio_pika

    async def run():
        async with await aio_pika.connect_robust(URL) as connection:
            channel = await connection.channel()
            await channel.declare_queue(QUEUE, durable=True, arguments=ARGUMENTS)

            def publish(number):
                message = aio_pika.Message(
                    body(number),
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    message_id=f"{RUN}-{number}",
                )
                return channel.default_exchange.publish(message, routing_key=QUEUE)

            for start in range(0, count, AIO_BATCH):
                await asyncio.gather(*map(publish, range(start, min(start + AIO_BATCH, count))))

    return timed(asyncio.run)(run())


def kombu_publish(count, options):
    import kombu

    @timed
    def run():
        # The vhost as amqp://.../%2F has it is what kombu takes it for, too.
        with kombu.Connection(URL, transport_options=options) as connection:
            queue = kombu.Queue(QUEUE, durable=True, queue_arguments=ARGUMENTS)
            queue(connection.default_channel).queue_declare()
            producer = connection.Producer()
            for number in range(count):
                producer.publish(
                    body(number),
                    routing_key=QUEUE,
                    delivery_mode=2,
                    message_id=f"{RUN}-{number}",
                    mandatory=True,
                )

    return run()


def publish_kombu(count):
    return kombu_publish(count, {})


def publish_kombu_confirms(count):
    return kombu_publish(count, {"confirm_publish": True})


def publish_amqpstorm(count):
    import amqpstorm

    @timed
    def run():
        with amqpstorm.UriConnection(URL) as connection, connection.channel() as channel:
            channel.queue.declare(QUEUE, durable=True, arguments=ARGUMENTS)
            channel.confirm_deliveries()
            for number in range(count):
                message = amqpstorm.Message.create(
                    channel,
                    body(number),
                    {"delivery_mode": 2, "message_id": f"{RUN}-{number}"},
                )
                message.publish(QUEUE, mandatory=True)

    return run()


def publish_raw_socket(count):
    """Publish frames that were encoded beforehand, with confirms and a window of 2000, as ours.

    It is the limit: what a client could reach that took no time of its own.
    """
    window = 2000
    parameters = pika.URLParameters(URL)
    with pika.BlockingConnection(parameters) as connection:
        connection.channel().queue_declare(QUEUE, durable=True, arguments=ARGUMENTS)
    frame, spec = pika.frame, pika.spec
    properties = pika.BasicProperties(delivery_mode=2, message_id=f"{RUN}-12345")
    message = (
        frame.Method(1, spec.Basic.Publish(routing_key=QUEUE, mandatory=True)).marshal()
        + frame.Header(1, BODY, properties).marshal()
        + frame.Body(1, body(12345)).marshal()
    )
    buffer = b""

    def received():
        """Return the next frame's method if it is all here."""
        nonlocal buffer
        length, frame_in = frame.decode_frame(buffer)
        buffer = buffer[length:]
        return frame_in and frame_in.method

    def call(channel, method):
        nonlocal buffer
        connection.sendall(frame.Method(channel, method).marshal())
        while not (answer := received()):
            buffer += connection.recv(4096)
        return answer

    @timed
    def run():
        nonlocal buffer
        user = parameters.credentials
        plain = f"\0{user.username}\0{user.password}"
        connection.sendall(frame.ProtocolHeader().marshal())
        while not received():
            buffer += connection.recv(4096)
        capabilities = {"capabilities": {"publisher_confirms": True}}
        tune = call(0, spec.Connection.StartOk(capabilities, "PLAIN", plain, "en_US"))
        tune_ok = spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0)
        connection.sendall(frame.Method(0, tune_ok).marshal())
        call(0, spec.Connection.Open(parameters.virtual_host))
        call(1, spec.Channel.Open())
        call(1, spec.Confirm.Select())
        sent = confirmed = upto = 0
        single = set()  # tags confirmed one by one, and beyond upto
        while confirmed < count:
            if more := min(count - sent, window - (sent - confirmed)):
                connection.sendall(message * more)
                sent += more
            buffer += connection.recv(65536)
            while ack := received():
                if not isinstance(ack, spec.Basic.Ack):
                    sys.exit(f"the broker said {ack}")
                if ack.multiple:
                    upto = max(upto, ack.delivery_tag)
                    single = {tag for tag in single if tag > upto}
                else:
                    single.add(ack.delivery_tag)
                confirmed = upto + len(single)

    with socket.create_connection((parameters.host, parameters.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return run()


def pika_consume(count, prefetch):
    """Consume with an ack each, or with auto_ack if prefetch is 0."""
    taken = 0

    def on_message(channel, method, properties, body):
        nonlocal taken
        taken += 1
        if prefetch:
            channel.basic_ack(method.delivery_tag)
        if taken == count:
            channel.stop_consuming()

    with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume(QUEUE, on_message, auto_ack=not prefetch)
        channel.start_consuming()


@timed
def consume_prefetch_1(count):
    pika_consume(count, 1)


@timed
def consume_prefetch_100(count):
    pika_consume(count, 100)


@timed
def consume_auto_ack(count):
    pika_consume(count, 0)


def consume_aio_pika(count):
    import aio_pika

    async def run():
        async with await aio_pika.connect_robust(URL) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=100)
            queue = await channel.get_queue(QUEUE)
            taken = 0
            async with queue.iterator() as messages:
                async for message in messages:
                    async with message.process():
                        taken += 1
                    if taken == count:
                        break

    return timed(asyncio.run)(run())


def rpc(count, direct):
    """Call rpc_queue count times, one call after the other; return the seconds of each.

    This is what the official tutorial's client does, with a reply queue of its own; or the same
    with direct reply-to in place of that queue.
    """
    times = []
    answered = None

    def on_reply(channel, method, properties, body):
        nonlocal answered
        answered = properties.correlation_id

    with pika.BlockingConnection(pika.URLParameters(URL)) as connection:
        channel = connection.channel()
        reply_to = "amq.rabbitmq.reply-to"
        if not direct:
            reply_to = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_consume(reply_to, on_reply, auto_ack=True)
        for number in range(count):
            start = time.monotonic()
            properties = pika.BasicProperties(reply_to=reply_to, correlation_id=str(number))
            channel.basic_publish("", "rpc_queue", b"0", properties)
            while answered != str(number):
                connection.process_data_events(time_limit=None)
            times.append(time.monotonic() - start)
    return times


def rpc_direct_reply_to(count):
    return rpc(count, direct=True)


def rpc_reply_queue(count):
    return rpc(count, direct=False)


if __name__ == "__main__":
    name, count = sys.argv[1], int(sys.argv[2])
    result = globals()[name.replace("-", "_")](count)
    times = result if isinstance(result, list) else [result]
    print(json.dumps({"count": count, "seconds": sum(times), "times": times}))
