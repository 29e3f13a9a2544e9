"""Whatever anyone sends, a script survives it and prints nothing that a terminal obeys.

A message body is bytes, and any bytes get through every lesson unchanged.
"""

from __future__ import annotations

import random
from datetime import datetime, timezone

import pika
import pytest

from tests.helpers import documented, received, wait_for_message_count
from tools.lessons import LESSONS

BODIES = [
    "兔子 \N{RABBIT FACE} é".encode(),
    b"",
    b"\xff\xfe rabbit \x80",
    b"\x1b[2J\x1b]0;title\x07 \r\n\t \xc2\x9b31m \x9b2J \xe2\x80\xae",  # escapes
    b"\r [x] Sent",
    b'{"item": {"item": ["' + b"x" * 20 + b'"]}}',
    b"[" * 50_000,
    b"9" * 5_000,
    b"-1",
    b"007",
    bytes(range(256)).replace(b".", b"!") * 4096,  # 1 MiB; a dot is a second of work
]
# Enough for every type that a header can have, in pika's encoding.
HEADERS = {
    "x-delivery-count": "many",
    "x-first-death-reason": None,
    "\x1b[2J": b"\xff",
    "list": [1, -(2**63), True, {"nested": datetime.now(timezone.utc)}],
}
ODD = b"\xff\x1b[2J"  # a short string needn't be UTF-8
PROPERTIES: list[dict[str, object]] = [
    {"reply_to": ODD},
    {"reply_to": b"amq.rabbitmq.reply-to.garbage"},
    {"reply_to": b"amq.rabbitmq.reply-to."},
    {"reply_to": b"x" * 255, "correlation_id": b"\xff" * 255},
    {"headers": HEADERS, "message_id": ODD, "type": ODD, "app_id": ODD},
    {"content_type": ODD, "priority": 255, "timestamp": 2**64 - 1, "delivery_mode": 1},
]
LAST = b"4711"

# Their consumer takes a second for each message, or prints nothing about one.
SLOW, COUNTING = ["advanced/ordered"], ["advanced/confirms"]
# RabbitMQ 4.3.6 fails if a message with a reply_to that isn't UTF-8 goes to a stream.
STREAMS = ["advanced/stream"]


def messages() -> list[tuple[bytes, dict]]:
    """Return each body with some properties, and a few of random bytes."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # if the test fails, pytest shows it
    randomness = random.Random(seed)
    noise = [randomness.randbytes(30).replace(b".", b"!") for _ in range(9)]
    bodies = [*BODIES, *noise, *[b"30"] * len(PROPERTIES)]
    return [
        (body, PROPERTIES[i % len(PROPERTIES)] if i % 2 or body == b"30" else {})
        for i, body in enumerate(bodies)
    ]


@pytest.fixture
def consumers(start, tmp_path):
    """A consumer of each lesson, ready."""
    found = {name: start(f"{name}/consumer.py", cwd=tmp_path) for name in LESSONS}
    return {lesson: consumer.wait_until_ready() for lesson, consumer in found.items()}


def test_consumers_survive_any_message(consumers, channel):
    sent = messages()
    channel.confirm_delivery()
    for lesson in consumers:
        exchange, key = LESSONS[lesson].send_to
        for body, properties in sent if lesson not in SLOW else sent[:9]:
            if lesson in STREAMS and "reply_to" in properties:
                continue
            channel.basic_publish(
                exchange, key, body, pika.BasicProperties(**properties)
            )
        channel.basic_publish(exchange, key, LAST, mandatory=True)
    for lesson, consumer in consumers.items():
        if lesson in COUNTING:
            wait_for_message_count(0, channel, LESSONS[lesson].queue)
        else:
            consumer.wait_for(LAST.decode())
        assert consumer.running, consumer
        lines = [*consumer.output, *consumer.errors]
        assert all(line.isprintable() for line in lines), consumer
        assert all(line.startswith(" [") for line in lines), consumer


# Whose Received lines show the body.
PRINTING = ["simple", "work_queue", "fanout", "direct", "topic", "advanced/headers"]


@pytest.mark.parametrize("lesson", PRINTING)
def test_consumer_prints_any_body(start, channel, lesson):
    consumer = start(f"{lesson}/consumer.py").wait_until_ready()
    exchange, key = LESSONS[lesson].send_to
    for body in BODIES:
        channel.basic_publish(exchange, key, body)
    consumer.wait_for("Received", times=len(BODIES))
    for line, body in zip(received(consumer), BODIES, strict=True):
        assert repr(body.decode(errors="replace")) in line


@pytest.fixture
def undecodable(channel, monkeypatch):
    """undecodable(queue) sends a message whose header pika can't decode.

    It has a timestamp in milliseconds, as other clients can send: in the year 56867.
    """

    def publish(queue):
        with monkeypatch.context() as patch:
            patch.setattr("calendar.timegm", lambda _: 1_732_396_192_000)
            headers = {"sent": datetime.now(timezone.utc)}
            properties = pika.BasicProperties(headers=headers)
            channel.basic_publish("", queue, b"message", properties)

    return publish


ERROR = "ValueError('year "  # the rest depends on Python's version


def test_header_that_pika_cannot_decode_is_one_line(start, undecodable):
    consumer = start("simple/consumer.py").wait_until_ready()
    undecodable("hello")
    assert consumer.wait() == 1
    (line,) = consumer.errors
    assert ERROR in line
    assert documented("StreamLostError") in line


def test_order_with_such_a_header_becomes_a_dead_letter(start, channel, undecodable):
    script = "advanced/dead_letter/consumer.py"
    consumer = start(script).wait_until_ready()
    undecodable("orders")
    for _ in range(3):
        assert consumer.wait() == 1
        consumer = start(script)
    assert consumer.wait() == 1
    wait_for_message_count(1, channel, "dead_orders")


def test_reconnecting_worker_names_such_a_header_each_time(start, undecodable):
    worker = start("advanced/reconnect/consumer.py").wait_until_ready()
    undecodable("jobs")
    worker.wait_for(ERROR, times=3)
    assert worker.stop() == 0
    # It hasn't reconnected without such a line.
    assert worker.count("Waiting for messages") <= len(worker.errors) + 1


def test_body_can_be_printed_to_an_old_terminal(start):
    consumer = start("simple/consumer.py", PYTHONIOENCODING="ascii").wait_until_ready()
    assert start("simple/producer.py", PYTHONIOENCODING="ascii").wait() == 0
    consumer.wait_for(r"Received '\u5154\u5b500'")


def test_argument_that_is_not_utf_8_is_a_traceback_that_names_the_character(start):
    """Python, not the broker, refuses it: nothing is sent, and nothing is blamed."""
    producer = start("fanout/producer.py", b"\xff")
    assert producer.wait() == 1
    assert documented("surrogates not allowed") in producer.errors[-1]
