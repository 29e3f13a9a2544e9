"""advanced/web/: what its comments and its page claim."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.helpers import (
    QUORUM,
    SETTLED,
    connect,
    documented,
    edited,
    get,
    message_count,
    received,
    wait_for_message_count,
)
from tests.servers import silent_server
from tools.broker.base import free_port
from tools.common import ROOT, wait_until

CONSUMER = "advanced/web/consumer.py"
PRODUCER = "advanced/web/producer.py"
QUEUE = "signups"
QUEUE_PROCESS = "{'%2F_signups',node()}"  # in the broker
CONFIRMS = "channel.confirm_delivery()"  # a line of the producer
REQUEST = b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\n"

# The server responds within 5 seconds of a request. This leaves a slow machine time.
LIMIT = 9


class Server:
    """A web server that was started with start(), and a client of it."""

    def __init__(self, start, script=PRODUCER, **options):
        self.port = free_port()
        self.script = start(script, str(self.port), **options).wait_until_ready()
        self.process = psutil.Process(self.script.process.pid)

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), LIMIT)

    def post(self, body, **headers):
        """Return the response's status and text. Raises OSError without one in time."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        with contextlib.closing(client):
            client.request("POST", "/", body, headers)
            response = client.getresponse()
            return response.status, response.read().decode().rstrip()

    def connections(self, port):
        """Return the addresses of its open connections to the broker on that port."""
        found = self.process.net_connections("tcp")
        found = [c for c in found if c.status == psutil.CONN_ESTABLISHED]
        return [c.laddr for c in found if c.raddr.port == port]

    def wait_until_idle(self, broker):
        """Wait until each request's thread has ended. It has at most one connection."""
        wait_until(lambda: self.process.num_threads() == 2, self.script)
        assert len(self.connections(broker.port)) <= 1


@pytest.fixture
def queue(broker, start):
    """The queue `signups`, without a consumer. `start` deletes it."""
    with connect(broker) as connection:
        connection.channel().queue_declare(QUEUE, durable=True, arguments=QUORUM)
    return QUEUE


def bodies(channel):
    """Take all messages out of the queue, and return their bodies."""
    count = message_count(channel, QUEUE)
    return [get(channel, QUEUE)[2].decode() for _ in range(count)]


def test_responds_202_once_the_message_is_in_the_queue(start, queue, channel, tmp_path):
    line = "timeout = 10  # seconds, for a client that sends nothing"
    server = Server(start, edited(tmp_path, PRODUCER, {line: "timeout = 1"}))
    assert server.post("") == (400, "The body is empty or incomplete.")
    refused = 400, "Content-Length must be a number up to 9999."
    for size in ("10000", "1e3", "-1"):
        assert server.post("", **{"Content-Length": size}) == refused
    assert server.post("", **{"Transfer-Encoding": "chunked"}) == refused
    with server.connect() as leaving, server.connect() as silent:
        for client in leaving, silent:
            client.sendall(REQUEST + b"ali")
        leaving.shutdown(socket.SHUT_WR)
        assert b" 400 " in leaving.recv(4096)
        assert silent.recv(4096) == b""
    assert message_count(channel, queue) == 0

    ids = {None}
    for sent in ("alice", "x" * 9999):
        assert server.post(sent) == (202, "Accepted.")
        _, properties, body = get(channel, queue)
        assert (body.decode(), properties.delivery_mode) == (sent, 2)
        ids.add(properties.message_id)
    assert len(ids) == 3
    assert server.script.output[1] == " [x] Sent 'alice'"


def test_consumers_share_the_signups_and_lose_none_in_a_crash(start, channel, tmp_path):
    line = "print(f\" [x] Received {body.decode(errors='replace')!r}\")"
    slow = edited(tmp_path, CONSUMER, {line: f"{line}\nimport time; time.sleep(60)"})
    consumers = [start(slow).wait_until_ready() for _ in range(2)]
    for name in ("alice", "bob", "carol"):
        channel.basic_publish("", QUEUE, name)
    for consumer in consumers:
        consumer.wait_for("Received")
    wait_for_message_count(1, channel, QUEUE)  # neither takes another one
    for consumer in consumers:
        consumer.kill()
    consumer = start(CONSUMER).wait_for("Received", times=3)
    assert sorted(received(consumer)) == ["'alice'", "'bob'", "'carol'"]


def test_open_request_does_not_delay_ctrl_c_or_need_its_client(start, tmp_path):
    line = "confirmed.result(timeout=5)"
    script = edited(tmp_path, PRODUCER, {line: "confirmed.result(timeout=1)"})
    with silent_server() as port:
        server = Server(start, script, url=f"amqp://127.0.0.1:{port}/")
        with server.connect() as client:
            client.sendall(REQUEST + b"alice")
            wait_until(lambda: server.connections(port), server.script)
        server.script.wait_for("Not confirmed: no confirm within")
        wait_until(lambda: server.process.num_threads() == 2, server.script)
        with server.connect():
            wait_until(lambda: server.process.num_threads() == 3, server.script)
            assert server.script.stop(signal.SIGINT) == 130
    assert len(server.script.errors) == 1


def test_port_that_cannot_be_used_is_one_line(start):
    for port in (str(Server(start).port), "70000"):
        other = start(PRODUCER, port)
        assert other.wait() == 1
        assert (len(other.output), len(other.errors)) == (0, 1)
        assert other.errors[0].startswith(f" [!] Can't listen on port {port}: ")


# 503, and 202 again afterwards.


def test_responds_503_with_the_reason(start, channel, broker, user, tmp_path):
    documented("Not confirmed: …")

    def refused(server, reason, times=1):
        assert server.post("alice") == (503, "Try again later.")
        server.script.wait_for(f" [!] Not confirmed: {reason}", times=times)

    server = Server(start)
    refused(server, "the queue doesn't exist. Start consumer.py first")
    careless = Server(start, edited(tmp_path, PRODUCER, {CONFIRMS: ""}))
    assert careless.post("alice") == (202, "Accepted.")  # although it's lost
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(QUEUE, durable=True, arguments=QUORUM | full)
    wait_until(lambda: server.post("bob")[0] == 503, "a full queue")
    refused(server, "the broker refused the message. Is the queue full?", times=2)
    assert set(bodies(channel)) == {"bob"}
    assert server.post("carol") == (202, "Accepted.")

    # Each 403 closes a channel. Its connection must not stay open.
    for url, reason in [
        (user("^$"), "ChannelClosedByBroker: (403)"),
        (broker.url.replace("guest:guest", "guest:wrong"), "AMQPConnectionError"),
        ("amqp://unknown.invalid/", "AMQPConnectionError: (gaierror("),
    ]:
        server = Server(start, url=url)
        for times in range(1, 4):
            refused(server, reason, times)
        server.wait_until_idle(broker)
        assert len(server.script.errors) == 3


@pytest.mark.faults
@pytest.mark.parametrize(
    ("begin", "end"),
    [
        ("set_vm_memory_high_watermark absolute 1", "set_vm_memory_high_watermark 0.4"),
        (f"eval sys:suspend({QUEUE_PROCESS}).", f"eval sys:resume({QUEUE_PROCESS})."),
    ],
    ids=["memory alarm", "queue that doesn't respond"],
)
def test_waits_no_longer_than_the_limit(
    start, queue, broker, channel, tmp_path, begin, end
):
    lines = {
        "jobs = queue.Queue(maxsize=1000)": "jobs = queue.Queue(maxsize=30)",
        "confirmed.result(timeout=5)": "confirmed.result(timeout=2)",
    }
    server = Server(start, edited(tmp_path, PRODUCER, lines))
    assert server.post("first") == (202, "Accepted.")
    broker.ctl(*begin.split())
    try:
        # The publisher's thread is at this one until the end.
        wait_until(lambda: server.post("unknown")[0] == 503, server.script)
        with ThreadPoolExecutor(max_workers=50) as pool:
            assert [s for s, _ in pool.map(server.post, ["lost"] * 50)] == [503] * 50
    finally:
        broker.ctl(*end.split())
    assert server.script.count("too many requests are waiting") == 20
    assert server.script.count("no confirm within") == 31
    wait_until(lambda: server.post("last")[0] == 202, server.script)
    server.wait_until_idle(broker)
    # 503 means that we don't know.
    assert set(bodies(channel)) == {"first", "unknown", "last"}


@pytest.mark.faults
def test_connection_stays_open_until_the_broker_or_the_server_is_gone(
    start, queue, broker
):
    idle, suspended = (Server(start, url=f"{broker.url}?heartbeat=2") for _ in range(2))
    assert idle.post("idle") == (202, "Accepted.")
    before = idle.connections(broker.port)
    # A suspended server sends no heartbeats. The broker closes its connection after two
    # of them, so after these rounds the other server has been idle for three or more.
    for _ in range(2):
        assert suspended.post("suspended") == (202, "Accepted.")
        suspended.process.suspend()
        wait_until(lambda: not suspended.connections(broker.port), suspended.script)
        suspended.process.resume()
    assert suspended.post("suspended") == (202, "Accepted.")
    assert idle.post("idle") == (202, "Accepted.")
    assert idle.connections(broker.port) == before
    assert suspended.script.errors == idle.script.errors == []

    with broker.frozen():
        wait_until(lambda: idle.post("vanished")[0] == 503, idle.script)
        wait_until(lambda: not idle.connections(broker.port), idle.script)
    assert idle.post("idle") == (202, "Accepted.")


@pytest.mark.faults
def test_kills_under_load_lose_no_accepted_signup(start, queue, broker, report):
    declared = time.monotonic()
    server = Server(start)
    accepted, others = set(), set()
    stopping = threading.Event()

    def client(name):
        for n in itertools.count():
            status, _ = server.post(f"{name}-{n}")
            (accepted if status == 202 else others).add(f"{name}-{n}")
            if stopping.wait(0 if status == 202 else 0.5):
                return

    def wait_for_more(bodies):
        count = len(bodies) + 50
        wait_until(lambda: len(bodies) > count, server.script, 60)

    with ThreadPoolExecutor(max_workers=50) as pool:
        results = pool.map(client, range(50))
        try:
            wait_until(lambda: time.monotonic() > declared + SETTLED, "an older queue")
            for _ in range(2):
                wait_for_more(accepted)
                broker.kill()
                wait_for_more(others)
                broker.start()
            wait_for_more(accepted)
        finally:
            stopping.set()
    list(results)  # raises what a client raised
    server.wait_until_idle(broker)
    with connect(broker) as connection:
        found = bodies(connection.channel())
    assert accepted <= set(found) <= accepted | others
    assert len(set(found)) == len(found)
    report(f"{len(accepted)} accepted, {len(others)} not, {len(found)} in the queue")


# publish() in another program.

PROGRAM = """
import psutil, signal

def connections():
    port = pika.URLParameters(AMQP_URL).port
    found = psutil.Process().net_connections("tcp")
    return sum(bool(c.raddr) and c.raddr.port == port for c in found)

def attempt(body):
    try:
        publish(body)
    except Exception as error:
        return type(error).__name__
    return "confirmed"

start_publisher()
threads = [threading.Thread(target=publish, args=[b"hello"]) for _ in range(150)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(threading.active_count(), connections())

print(*map(attempt, [1, None, bytes(17 * 2**20), "valid"]), connections())

# A child process has no publisher, unless it starts one.
if not os.fork():
    os._exit(attempt("child") == "TimeoutError")
os.register_at_fork(after_in_child=start_publisher)
if not os.fork():
    os._exit(attempt("child") == "confirmed")
print(os.wait()[1], os.wait()[1], attempt("parent"), connections())

# A task queue's soft time limit interrupts like this. If a confirm were one behind, it
# would pass for that of the last message.
def interrupt(*_): raise InterruptedError
signal.signal(signal.SIGALRM, interrupt)
for n in range(50):
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.005 + n / 10_000)
        while True: publish("more")
    except InterruptedError: pass
open_channel().queue_delete("signups")
print(attempt("last"))
"""


def test_publish_in_another_program(start, queue, broker, tmp_path):
    functions = (ROOT / PRODUCER).read_text().split("\nif __name__")[0]
    (tmp_path / "app.py").write_text(functions + PROGRAM)
    limit = "application:set_env(rabbit, max_message_size, {})."
    try:
        if broker.version < (4, 0):
            broker.ctl("eval", limit.format(2**24))  # the default since 4.0
        program = start(str(tmp_path / "app.py"))
        assert program.wait() == 0, program
    finally:
        if broker.version < (4, 0):
            broker.ctl("eval", limit.format(2**27))
    assert program.output == [
        "2 1",
        "AttributeError AttributeError ChannelClosedByBroker confirmed 1",
        "256 256 confirmed 1",
        "UnroutableError",
    ]
