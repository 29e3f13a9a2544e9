"""The same bytes through every lesson: nothing is changed on the way, nothing crashes an end."""

import pytest
from conftest import received

BODIES = {
    "UTF-8": "兔子 \N{RABBIT FACE} é".encode(),
    "empty": b"",
    "no UTF-8": b"\xff\xfe rabbit \x80",
    "controls": b"\x1b[2J\x1b]0;title\x07 \r\n\t \xc2\x9b31m",
    "1 MiB": bytes(range(256)).replace(b".", b"") * 4112 + b"!" * 16,
}


def shown(body: bytes) -> str:
    return repr(body.decode(errors="replace"))


@pytest.mark.parametrize(
    ("script", "exchange", "routing_key", "prefix"),
    [
        ("simple/consumer.py", "", "hello", ""),
        ("work_queue/consumer.py", "", "task_queue", ""),
        ("fanout/consumer.py", "logs", "", ""),
        ("direct/consumer.py", "direct_logs", "info", "info: "),
        ("topic/consumer.py", "topic_logs", "a.b", "'a.b': "),
    ],
)
def test_a_consumer_shows_any_body_and_goes_on(
    start, channel, script, exchange, routing_key, prefix
):
    consumer = start(script).ready()
    bodies = [*BODIES.values(), b"next"]
    for body in bodies:
        channel.basic_publish(exchange, routing_key, body)
    consumer.wait_for("Received", times=len(bodies))
    assert received(consumer) == [prefix + shown(body) for body in bodies]
    assert consumer.stop() == 0
    assert consumer.errors == []


def test_the_rpc_server_refuses_any_body_and_goes_on(start, channel):
    server = start("rpc/consumer.py").ready()
    for body in [*BODIES.values(), b"10"]:
        channel.basic_publish("", "rpc_queue", body)
    server.wait_for("fib(10)")
    refused = [f" [!] Refused {shown(body)}" for body in BODIES.values()]
    assert server.lines[1:] == [*refused, " [.] fib(10)"]
    assert server.stop() == 0
    assert server.errors == []


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize(
    ("script", "arguments", "exchange", "suffix"),
    [
        ("simple/producer.py", [], None, b"0"),
        ("work_queue/producer.py", [], None, b""),
        ("fanout/producer.py", [], "logs", b""),
        ("direct/producer.py", ["key"], "direct_logs", b""),
        ("topic/producer.py", ["key"], "topic_logs", b""),
    ],
)
def test_a_producer_sends_the_bytes_that_it_was_given(
    start, channel, script, arguments, exchange, suffix, body
):
    body = body.replace(b"\0", b"")[:100_000]  # what an argument of a process can hold
    if exchange:
        channel.exchange_declare(exchange, exchange.removesuffix("_logs").replace("logs", "fanout"))
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, exchange, "key")
    else:
        queue = {"simple": "hello", "work_queue": "task_queue"}[script.split("/")[0]]
    producer = start(script, *arguments, body)
    assert producer.end() == 0, str(producer)
    _, _, arrived = channel.basic_get(queue, auto_ack=True)
    assert arrived == body + suffix
