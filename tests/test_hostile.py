"""Whatever anybody may send: a consumer lives on, and shows nothing that a terminal would obey.

Hypothesis makes the messages, by the batch, and looks for the smallest one that does harm.
"""

import json
import threading
from datetime import datetime, timezone

import pika
import pytest
from end import End
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

BATCH, BATCHES = 25, 44  # 1,100 messages into each consumer
MIB = 1 << 20

hostile = settings(
    max_examples=BATCHES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# What makes terminals do things, among them 8-bit controls and what looks like a line of our own.
NASTY = st.sampled_from(
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
        | st.dictionaries(st.sampled_from(["item", "x"]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
).map(lambda value: json.dumps(value).encode())
SMALL = (
    st.binary(max_size=40)
    | st.text(max_size=20).map(lambda text: text.encode())
    | st.lists(NASTY, max_size=4).map(b"".join)
    | JSON
    | st.sampled_from([b'{"item": "unicorn"}', b"[" * 50_000, b"9" * 5_000, b"-1", b"1e3", b"007"])
)
# Up to 1 MiB, one in some dozens.
BODY = st.tuples(SMALL, st.integers(0, 60), st.integers(1, MIB)).map(
    lambda made: made[0] if made[1] else (made[0] * (made[2] // (len(made[0]) or 1)))
)

pytestmark = pytest.mark.faults

SHORT = (
    st.text(max_size=20).map(lambda text: text.encode())
    | st.binary(max_size=20)
    | NASTY
    | st.sampled_from([b"", b"x" * 255, b"\xff" * 255, b"rpc_queue", b"amq.rabbitmq.reply-to.x"])
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
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)
OURS = ["x-death", "x-delivery-count", "x-first-death-reason", "x-first-death-queue", "x-match"]
HEADERS = st.dictionaries(
    st.sampled_from(OURS) | st.text(max_size=9) | st.binary(max_size=9), VALUE, max_size=3
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
        "reply_to": SHORT,
        "expiration": st.sampled_from(["4294967295", "60000", "0060000"]),
        "message_id": SHORT,
        "timestamp": st.integers(0, 2**64 - 1),
        "type": SHORT | st.just("error"),
        "app_id": SHORT,
        "cluster_id": SHORT,
    },
)
# The broker itself refuses these, and closes the channel that they came by.
REFUSED = st.sampled_from(
    [
        {},
        {"expiration": "never"},
        {"expiration": b"\xff"},
        {"expiration": "-1"},
        {"user_id": "somebody else"},
        {"headers": {"CC": 1}},
        {"headers": {"BCC": "\x1b"}},
        {"reply_to": "amq.rabbitmq.reply-to"},  # whose consumer is not there
    ]
)
MESSAGE = st.tuples(BODY, PROPERTIES, SHORT, st.booleans())
MESSAGES = st.lists(MESSAGE, min_size=BATCH, max_size=BATCH)


class Victim:
    """A consumer, started anew if it has died; what it prints is looked at as it comes."""

    def __init__(self, start, script, exchange, key, forgeable):
        self.start, self.script, self.exchange, self.key = start, script, exchange, key
        self.forgeable = forgeable
        self.good = 9000  # a number of four digits is also a request that the RPC server answers
        self.handled = 0
        self.end = None

    def heard(self, line):
        if not line.isprintable():
            self.obeyed.append(line)
        self.handled += any(sign in line for sign in ("] Received ", "] Refused ", "] fib("))
        if str(self.good) in line and any(word in line for word in ("Received", "fib(")):
            self.answered.set()

    def revive(self):
        self.obeyed, self.answered = [], threading.Event()
        if self.end is None or self.end.errors or self.end.process.poll() is not None:
            self.end = self.start(self.script, heard=self.heard).ready()

    def attack(self, connection, messages, refused):
        """Publish messages, then a good one, and wait until that one has been handled."""
        self.revive()
        channel = connection.channel()
        for body, properties, key, by_header in messages:
            if self.script.startswith("work_queue/"):
                body = body.replace(b".", b"!")  # a dot is a second of work
            if not self.forgeable and "x-death" in properties.get("headers", {}):
                properties = {**properties, "headers": {}}
            if self.exchange in ("", "direct_logs"):
                # A message comes by a routing key of its own, or, by way of the header CC, by any.
                if by_header:
                    properties = dict(properties)
                    properties["headers"] = {**properties.get("headers", {}), "CC": [self.key]}
                else:
                    key = self.key
            self.publish(channel, key, body, properties)
        self.publish(channel, self.key, b"refused", refused)
        try:
            channel.basic_qos(prefetch_count=0)  # an answer means that the broker has taken in all
            channel.close()
        except pika.exceptions.ChannelClosedByBroker:
            assert refused
        self.good += 1
        with connection.channel() as channel:
            body = b'{"item": %d}' if "dead_letter" in self.script else b"%d"
            self.publish(channel, self.key, body % self.good, {})
        End.wait_until(
            lambda: self.answered.is_set() or self.end.process.poll() is not None,
            f"the good message {self.good}: {self.script}",
        )
        assert self.end.process.poll() is None, self.end
        assert self.end.errors == []
        assert self.obeyed == []

    def publish(self, channel, key, body, properties):
        channel.basic_publish(self.exchange, key, body, pika.BasicProperties(**properties))


@pytest.mark.parametrize(
    ("script", "exchange", "key"),
    [
        ("simple/consumer.py", "", "hello"),
        ("work_queue/consumer.py", "", "task_queue"),
        ("fanout/consumer.py", "logs", ""),
        ("direct/consumer.py", "direct_logs", "info"),
        ("topic/consumer.py", "topic_logs", "a.b"),
        ("rpc/consumer.py", "", "rpc_queue"),
        ("advanced/dead_letter/consumer.py", "", "orders"),
    ],
)
def test_a_consumer_lives_on(start, broker, script, exchange, key):
    # RabbitMQ 3.10 believes a header x-death that a client has made up, and its dead lettering does
    # not survive one that is not well-formed: no lesson can help that.
    forgeable = "dead_letter" not in script or not broker.version.startswith("3.")
    victim = Victim(start, script, exchange, key, forgeable)

    @hostile
    @given(MESSAGES, REFUSED)
    @example([(b"30", {"reply_to": b"\xff"}, b"\x1b[2J", True)], {})
    @example([(b"30", {"reply_to": b"amq.rabbitmq.reply-to.garbage"}, b"\xff", True)], {})
    @example([(b"30", {"reply_to": b"amq.rabbitmq.reply-to."}, b"\xff", True)], {})
    @example([(b"30", {"reply_to": b"\xff" * 255, "correlation_id": b"\xff" * 255}, b"", True)], {})
    def attack(messages, refused):
        victim.attack(connection, messages, refused)

    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        attack()
    assert victim.handled >= 1000
    if script.startswith("advanced/dead_letter/"):
        shown = start(script, "--dead")
        assert shown.end() == 0
        assert shown.count("[x] Dead") > BATCHES
        assert all(line.isprintable() for line in shown.lines)
        assert shown.errors == []
    assert victim.end.stop() == 0
    assert victim.end.errors == []


REPLY = st.fixed_dictionaries(
    {
        "body": SMALL | st.sampled_from([b"832040", b"0", b"", b"-1", b"1_0", "\u0663".encode()]),
        "to": st.sampled_from([0, 1, 2, "wrong", b"\xff\x1b[2J", "", None]),
    },
    optional={"type": SHORT | st.just("error"), "headers": HEADERS, "content_type": SHORT},
)


@settings(hostile, max_examples=15)
@given(st.lists(REPLY, max_size=30))
@example([{"body": b"1", "to": 0}, {"body": b"2", "to": 0}])
@example([{"body": b"1", "to": 0, "type": b"\xff"}, {"body": b"\x1b[2J", "to": 1}])
def serve(broker, replies):
    """Play the RPC server: answer a client's requests 0, 1 and 2 with replies, then rightly."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("rpc_queue", durable=True, arguments={"x-queue-type": "quorum"})
        client = End("rpc/producer.py", "0", "1", "2", "--timeout", "20", url=broker.url)
        try:
            requests = channel.consume("rpc_queue", auto_ack=True, inactivity_timeout=20)
            asked = [next(requests)[1] for _ in range(3)]
            ids = [properties.correlation_id for properties in asked]
            replies = [*replies, *({"body": b"7", "to": n} for n in range(3))]
            got, failed, ignored, late, waiting = [], 0, 0, 0, {0, 1, 2}
            for reply in replies:
                reply, to = dict(reply), reply["to"]
                body, name = reply.pop("body"), reply.pop("to")
                name = ids[name] if isinstance(name, int) else name
                properties = pika.BasicProperties(correlation_id=name, **reply)
                channel.basic_publish("", asked[0].reply_to, body, properties)
                if not waiting:
                    late += 1  # the client has all its answers, and may have gone
                elif to not in waiting:
                    ignored += 1
                elif properties.type in ("error", b"error") or not body.isdigit():
                    failed += 1
                else:
                    got.append(f" [.] Got fib({to}) = {body.decode()}")
                waiting.discard(to)
            assert client.end() == (1 if failed else 0), str(client)
        finally:
            client.kill()
    assert [line for line in client.lines if " [.] " in line] == got
    assert len(client.errors) == failed
    assert all(" was refused: " in line for line in client.errors)
    assert ignored <= client.count(" [?] Ignored") <= ignored + late
    assert all(line.isprintable() for line in [*client.lines, *client.errors])


@pytest.mark.usefixtures("start")  # which cleans up
def test_a_client_takes_the_first_answer_to_each_question_and_no_other(broker):
    serve(broker)


class TestAHeaderThatPikaCannotRead:
    """A timestamp in milliseconds, such as other clients can send, is beyond the year 9999.

    Pika fails on it before the script sees the message, and takes that for a lost connection.
    """

    def publish(self, monkeypatch, channel, key):
        with monkeypatch.context() as patch:
            patch.setattr("calendar.timegm", lambda _: 1_732_396_192_000)
            headers = {"sent": datetime.now(timezone.utc)}
            channel.basic_publish("", key, b"poison", pika.BasicProperties(headers=headers))

    def test_a_consumer_says_so_in_one_line(self, start, channel, monkeypatch):
        consumer = start("simple/consumer.py").ready()
        self.publish(monkeypatch, channel, "hello")
        assert consumer.end() == 1
        (line,) = consumer.errors
        assert "year 56867 is out of range" in line

    def test_a_delivery_limit_saves_the_consumers_that_come_after(
        self, start, channel, monkeypatch
    ):
        script = "advanced/dead_letter/consumer.py"
        start(script, "--dead").end()
        self.publish(monkeypatch, channel, "orders")
        channel.basic_publish("", "orders", b'{"item": "tea"}')
        for _ in range(4):
            consumer = start(script)
            assert consumer.end() == 1
            assert "year 56867 is out of range" in consumer.errors[0]
        start(script).wait_for("Done 'tea'")
