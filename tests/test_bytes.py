"""A message body is bytes, and any bytes get through every lesson unchanged."""

import pytest
from conftest import received

BODIES = {
    "UTF-8": "兔子 \N{RABBIT FACE} é".encode(),
    "empty": b"",
    "not UTF-8": b"\xff\xfe rabbit \x80",
    "control characters": b"\x1b[2J\x1b]0;title\x07 \r\n\t \xc2\x9b31m",
    "1 MiB": bytes(range(256)).replace(b".", b"!") * 4096,  # a dot is a second of work
}


def shown(body: bytes) -> str:
    return repr(body.decode(errors="replace"))


@pytest.mark.parametrize(
    ("lesson", "exchange", "routing_key", "prefix"),
    [
        ("simple", "", "hello", ""),
        ("work_queue", "", "task_queue", ""),
        ("fanout", "logs", "", ""),
        ("direct", "direct_logs", "info", "info: "),
        ("topic", "topic_logs", "a.b", "'a.b': "),
    ],
)
def test_consumer_prints_any_body(
    start, channel, lesson, exchange, routing_key, prefix
):
    consumer = start(f"{lesson}/consumer.py").wait_until_ready()
    for body in BODIES.values():
        channel.basic_publish(exchange, routing_key, body)
    consumer.wait_for("Received", times=len(BODIES))
    assert received(consumer) == [prefix + shown(body) for body in BODIES.values()]
    assert consumer.errors == []


def test_rpc_server_refuses_any_body_that_is_not_a_number(start, channel):
    server = start("rpc/consumer.py").wait_until_ready()
    for body in [*BODIES.values(), b"10"]:
        channel.basic_publish("", "rpc_queue", body)
    server.wait_for(" [.] fib(10)").wait_for(" [!] Refused", times=len(BODIES))
    assert server.errors == [f" [!] Refused {shown(body)}" for body in BODIES.values()]


@pytest.mark.parametrize(
    ("lesson", "arguments", "suffix"),
    [
        ("simple", [], b"0"),
        ("work_queue", [], b""),
        ("fanout", [], b""),
        ("direct", ["key"], b""),
        ("topic", ["key"], b""),
    ],
)
def test_producer_sends_the_bytes_of_its_argument(
    start, channel, lesson, arguments, suffix
):
    queue = {"simple": "hello", "work_queue": "task_queue"}.get(lesson)
    if not queue:
        exchange = {"fanout": "logs"}.get(lesson, f"{lesson}_logs")
        channel.exchange_declare(exchange, lesson)
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, exchange, "key")
    for body in (b"", BODIES["not UTF-8"] + BODIES["control characters"]):
        assert start(f"{lesson}/producer.py", *arguments, body).wait() == 0
        assert channel.basic_get(queue, auto_ack=True)[2] == body + suffix
        channel.queue_purge(queue)  # simple sends more
