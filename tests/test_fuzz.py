"""Whatever anyone sends, a script survives it and prints nothing that a terminal obeys.

Hypothesis makes up the messages.
"""

import json
import threading
from datetime import datetime, timezone
from functools import partial

import pika
import pytest
from conftest import wait_for_message_count
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from script import ScriptProcess

BATCH, BATCHES = 25, 10  # 250 messages for each consumer
FUZZ = settings(
    max_examples=BATCHES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],  # simplifying a message takes minutes
    suppress_health_check=list(HealthCheck),
)

# Escape sequences, 8-bit ones too, a line that looks like ours, and right-to-left.
CONTROLS = st.sampled_from(
    [
        b"\x1b[2J",
        b"\x1b]0;title\x07",
        b"\xc2\x9b31m",
        b"\x9b2J",
        b"\r [x] Sent",
        b"\n\n\0",
        b"\xe2\x80\xae",
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.just("item") | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
).map(lambda value: json.dumps(value).encode())
BODY = (
    st.binary(max_size=40)
    | st.text(max_size=20).map(str.encode)
    | st.lists(CONTROLS, max_size=4).map(b"".join)
    | JSON
    | st.sampled_from([b"[" * 50_000, b"9" * 5_000, b"\xff" * 1_000_000, b"-1", b"007"])
)

# For properties and routing keys.
SHORT = (
    st.text(max_size=20).map(str.encode)
    | st.binary(max_size=20)
    | CONTROLS
    | st.sampled_from([b"x" * 255, b"\xff" * 255, b"rpc_queue"])
)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=9)
    | st.binary(max_size=9)
    | st.decimals(-(10**7), 10**7, places=2)
    | st.datetimes(datetime(1970, 1, 1), timezones=st.just(timezone.utc)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
HEADERS = st.dictionaries(
    st.sampled_from(["x-delivery-count", "x-first-death-reason"])
    | st.text(max_size=9)
    | st.binary(max_size=9),
    VALUE,
    max_size=3,
)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": SHORT,
        "content_encoding": SHORT,
        "headers": HEADERS,
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "correlation_id": SHORT,
        "reply_to": SHORT | st.just("amq.rabbitmq.reply-to.x"),
        "expiration": st.sampled_from(["4294967295", "60000", "0060000"]),
        "message_id": SHORT,
        "timestamp": st.integers(0, 2**64 - 1),
        "type": SHORT,
        "app_id": SHORT,
        "cluster_id": SHORT,
    },
)
MESSAGES = st.lists(st.tuples(BODY, PROPERTIES, SHORT), min_size=BATCH, max_size=BATCH)


class FuzzTarget:
    """A consumer. We start it again if a message has killed it."""

    def __init__(self, start, exchange: str, key: str) -> None:
        self._start, self._exchange, self._key = start, exchange, key
        self._number = 1000
        self.restart()

    def restart(self) -> None:
        self._unprintable: list[str] = []
        self._answered = threading.Event()
        self.process = self._start(on_line=self._on_line).wait_until_ready()

    def _on_line(self, line: str) -> None:
        if not line.isprintable():
            self._unprintable.append(line)
        if line.startswith(" [") and str(self._number) in line[:60]:
            self._answered.set()

    def send(self, channel, messages) -> None:
        """Send messages, then a number, and wait until the consumer has printed it."""
        if self._unprintable or not self.process.running:
            self.restart()
        for body, properties, key in messages:
            body = body.replace(b".", b"!")  # in work_queue, a dot is a second of work
            if "headers" in properties:
                # With this header, the message arrives whatever its routing key is.
                headers = properties["headers"] | {"CC": [self._key]}
                properties = properties | {"headers": headers}
            else:
                key = self._key
            properties = pika.BasicProperties(**properties)
            channel.basic_publish(self._exchange, key, body, properties)
        self._number += 1
        self._answered.clear()
        channel.basic_publish(self._exchange, self._key, b"%d" % self._number)
        ScriptProcess.wait_until(
            lambda: self._answered.is_set() or not self.process.running,
            f"{self._number}: {self.process}",
        )
        assert self.process.running, self.process
        assert self._unprintable == []


@pytest.mark.faults
@pytest.mark.parametrize(
    ("lesson", "exchange", "key"),
    [
        ("simple", "", "hello"),
        ("work_queue", "", "task_queue"),
        ("fanout", "logs", ""),
        ("direct", "direct_logs", "info"),
        ("topic", "topic_logs", "a.b"),
        ("rpc", "", "rpc_queue"),
        ("advanced/dead_letter", "", "orders"),
        ("advanced/headers", "headers_logs", ""),
        ("advanced/retry", "", "emails"),
        ("advanced/idempotent", "", "purchases"),
    ],
)
def test_consumer_survives_any_message(start, channel, tmp_path, lesson, exchange, key):
    start = partial(start, f"{lesson}/consumer.py", cwd=tmp_path)
    target = FuzzTarget(start, exchange, key)

    @FUZZ
    @given(MESSAGES)
    @example([(b"30", {"reply_to": b"\xff"}, b"")])
    @example([(b"30", {"reply_to": b"amq.rabbitmq.reply-to.garbage"}, b"")])
    @example([(b"30", {"reply_to": b"amq.rabbitmq.reply-to."}, b"")])
    @example([(b"30", {"reply_to": b"x" * 255, "correlation_id": b"\xff" * 255}, b"")])
    def send(messages):
        target.send(channel, messages)

    send()
    assert all(line.startswith(" [!] ") for line in target.process.errors)


REPLY = st.fixed_dictionaries(
    {
        "body": BODY | st.sampled_from([b"832040", b"0", b"1_0", "\u0663".encode()]),
        "request": st.sampled_from([0, 1, 2, b"wrong", b"\xff\x1b[2J", b"", None]),
    },
    optional={"type": SHORT, "headers": HEADERS, "content_type": SHORT},
)


@pytest.mark.faults
def test_rpc_client_takes_the_first_answer_to_each_request(start, channel):
    channel.queue_declare(
        "rpc_queue", durable=True, arguments={"x-queue-type": "quorum"}
    )

    @settings(FUZZ, max_examples=8)
    @given(st.lists(REPLY, max_size=30))
    @example([{"body": b"1", "request": 0}, {"body": b"2", "request": 0}])
    @example([{"body": b"\x1b[2J", "request": 1}, {"body": b"1", "request": 1}])
    def serve(replies):
        client = start("rpc/producer.py", "0", "1", "2", "--timeout", "20")
        client.wait_for("Requesting", times=3)
        requests = [next(channel.consume("rpc_queue", auto_ack=True)) for _ in "012"]
        ids = [properties.correlation_id for _, properties, _ in requests]
        answers, errors, unanswered = [], 0, {0, 1, 2}
        for reply in [*replies, *({"body": b"7", "request": n} for n in range(3))]:
            properties = dict(reply)
            body, n = properties.pop("body"), properties.pop("request")
            properties["correlation_id"] = ids[n] if isinstance(n, int) else n
            channel.basic_publish(
                "",
                requests[0][1].reply_to,
                body,
                pika.BasicProperties(**properties),
            )
            if n in unanswered and body.isdigit():
                answers.append(f" [.] Got fib({n}) = {body.decode()}")
            elif n in unanswered:
                errors += 1
            unanswered.discard(n)
        assert client.wait() == (1 if errors else 0), client
        assert client.output[3:] == answers
        assert len(client.errors) == errors
        assert all(line.isprintable() for line in client.errors)

    serve()


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


def test_order_with_such_a_header_becomes_a_dead_letter(start, channel, undecodable):
    script = "advanced/dead_letter/consumer.py"
    consumer = start(script).wait_until_ready()
    undecodable("orders")
    for _ in range(3):
        assert consumer.wait() == 1
        consumer = start(script)
    assert consumer.wait() == 1
    wait_for_message_count(1, channel, "dead_orders")
    process = start(script, "--dead")
    assert process.wait() == 1
    assert ERROR in process.errors[0]


def test_worker_names_a_header_that_pika_cannot_decode_each_time(start, undecodable):
    worker = start("work_queue/consumer.py").wait_until_ready()
    undecodable("task_queue")
    worker.wait_for(ERROR, times=3)
    assert worker.stop() == 0
    # It hasn't reconnected without such a line.
    assert worker.count("Waiting for messages") <= len(worker.errors) + 1
