"""Whatever anyone sends, a script survives it and prints nothing that a terminal obeys.

A message body is bytes, and so are its properties' strings.
"""

from datetime import datetime, timezone

import pika

from tests.helpers import documented, wait_for_message_count
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
    {"headers": HEADERS, "message_id": ODD, "type": ODD, "app_id": ODD},
    {"content_type": ODD, "priority": 255, "timestamp": 2**64 - 1, "delivery_mode": 1},
    {"reply_to": ODD},
    {"reply_to": b"amq.rabbitmq.reply-to.garbage"},
    {"reply_to": b"amq.rabbitmq.reply-to."},
    {"reply_to": b"x" * 255, "correlation_id": b"\xff" * 255},
]
LAST = b"4711"


def messages(lesson: str) -> list[tuple[bytes, dict]]:
    """Return each body, and each of the properties with a body that rpc accepts."""
    found: list[tuple[bytes, dict]] = [(body, {}) for body in BODIES]
    found += [(b"30", properties) for properties in PROPERTIES]
    if lesson == "advanced/ordered":  # its consumer takes a second for each
        return found[::4]
    if lesson == "advanced/stream":
        # RabbitMQ 4.3.6 fails if a reply_to that isn't UTF-8 goes to a stream.
        return [each for each in found if "reply_to" not in each[1]]
    return found


def test_consumers_survive_any_message(start, channel, tmp_path):
    consumers = {name: start(f"{name}/consumer.py", cwd=tmp_path) for name in LESSONS}
    channel.confirm_delivery()
    for name, consumer in consumers.items():
        consumer.wait_until_ready()
        for body, properties in [*messages(name), (LAST, {})]:
            channel.basic_publish(
                *LESSONS[name].send_to, body, pika.BasicProperties(**properties)
            )
    for name, consumer in consumers.items():
        if name == "advanced/confirms":  # its consumer only counts
            wait_for_message_count(0, channel, LESSONS[name].send_to[1])
        else:
            consumer.wait_for(LAST.decode())
        assert consumer.running, consumer
        lines = [*consumer.output, *consumer.errors]
        assert all(line.isprintable() for line in lines), consumer
        assert all(line.startswith(" [") for line in lines), consumer


def test_header_that_pika_cannot_decode_breaks_each_connection(
    start, channel, monkeypatch
):
    """A timestamp in milliseconds, as other clients can send: in the year 56867."""
    consumer = start("simple/consumer.py").wait_until_ready()
    worker = start("advanced/reconnect/consumer.py").wait_until_ready()
    monkeypatch.setattr("calendar.timegm", lambda _: 1_732_396_192_000)
    properties = pika.BasicProperties(headers={"sent": datetime.now(timezone.utc)})
    for queue in ("hello", "jobs"):
        channel.basic_publish("", queue, b"message", properties)
    error = "ValueError('year "  # the rest depends on Python's version
    assert consumer.wait() == 1
    (line,) = consumer.errors
    assert documented("StreamLostError") in line
    assert error in line
    worker.wait_for(error, times=3)
    assert worker.stop() == 0
    # It hasn't reconnected without such a line.
    assert worker.count("Waiting for messages") <= len(worker.errors) + 1


def test_body_can_be_printed_to_an_old_terminal(start):
    consumer = start("simple/consumer.py", PYTHONIOENCODING="ascii").wait_until_ready()
    assert start("simple/producer.py", PYTHONIOENCODING="ascii").wait() == 0
    consumer.wait_for(r"Received '\u5154\u5b500'")


def test_argument_that_is_not_utf_8_is_a_traceback_that_names_the_character(start):
    producer = start("fanout/producer.py", b"\xff")
    assert producer.wait() == 1
    assert documented("surrogates not allowed") in producer.errors[-1]
