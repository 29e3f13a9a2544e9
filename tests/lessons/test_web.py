"""advanced/web/: what its comments and its page claim."""

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
    edited,
    get,
    message_count,
    page_block,
    received,
    wait_for_message_count,
)
from tests.servers import reset
from tools.broker.base import free_port
from tools.common import ROOT, wait_until

CONSUMER = "advanced/web/consumer.py"
PRODUCER = "advanced/web/producer.py"
QUEUE = "signups"

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
        client.request("POST", "/", body, headers)
        response = client.getresponse()
        return response.status, response.read().decode().rstrip()

    def connections(self, broker):
        """Return the addresses of its open connections to the broker."""
        found = self.process.net_connections("tcp")
        found = [c for c in found if c.status == psutil.CONN_ESTABLISHED]
        return [c.laddr for c in found if c.raddr.port == broker.port]

    def wait_until_idle(self, broker):
        """Wait until each request's thread has ended. It has at most one connection."""
        wait_until(lambda: self.process.num_threads() == 2, self.script)
        assert len(self.connections(broker)) <= 1


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
    for size in ("0", "-1", "10000"):
        assert server.post("", **{"Content-Length": size})[0] == 400
    with server.connect() as leaving, server.connect() as silent:
        for client in leaving, silent:
            client.sendall(b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nali")
        leaving.shutdown(socket.SHUT_WR)
        assert b" 400 " in leaving.recv(4096)
        assert silent.recv(4096) == b""
    assert message_count(channel, queue) == 0

    ids = {None}
    for sent in ("alice", "alice", "x" * 9999):
        assert server.post(sent) == (202, "Accepted.")
        _, properties, body = get(channel, queue)
        assert (body.decode(), properties.delivery_mode) == (sent, 2)
        ids.add(properties.message_id)
    assert len(ids) == 4
    assert server.script.output[1] == " [x] Sent 'alice'"


def test_client_that_resets_its_connection_is_ignored(start, broker):
    server = Server(start)
    for request in b"", b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nali":
        client = server.connect()
        client.sendall(request)
        wait_until(lambda: server.process.num_threads() == 3, server.script)
        reset(client)
        server.wait_until_idle(broker)
    assert server.script.errors == []


def test_port_in_use_is_one_line(start):
    server = Server(start)
    connections = server.process.net_connections("tcp")
    listening = [c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    other = start(PRODUCER, str(server.port))
    assert other.wait() == 1
    (line,) = other.errors
    assert line.startswith(" [!] Can't listen on port ")


def test_consumers_share_the_signups_and_lose_none_in_a_crash(start, channel, tmp_path):
    line = "print(f\" [x] Received {body.decode(errors='replace')!r}\")"
    slow = edited(tmp_path, CONSUMER, {line: f"{line}\nimport time; time.sleep(60)"})
    first = start(slow).wait_until_ready()
    for name in ("alice", "bob"):
        channel.basic_publish("", QUEUE, name)
    first.wait_for("Received")
    wait_for_message_count(1, channel, QUEUE)  # for another consumer
    first.kill()
    second = start(CONSUMER).wait_for("Received", times=2)
    assert sorted(received(second)) == ["'alice'", "'bob'"]


def test_responds_503_with_the_reason(start, channel, broker, read_only_url, tmp_path):
    def refused(server, reason, times=1):
        assert server.post("alice") == (503, "Try again later.")
        server.script.wait_for(f" [!] Not confirmed: {reason}", times=times)

    server = Server(start)
    refused(server, "the queue doesn't exist. Start consumer.py first")
    unconfirmed = {"channel.confirm_delivery()": ""}
    careless = Server(start, edited(tmp_path, PRODUCER, unconfirmed))
    assert careless.post("alice") == (202, "Accepted.")  # although it's lost
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    channel.queue_declare(QUEUE, durable=True, arguments=QUORUM | full)
    wait_until(lambda: server.post("bob")[0] == 503, "a full queue")
    refused(server, "the broker refused the message. Is the queue full?", times=2)
    channel.queue_purge(QUEUE)
    assert server.post("carol") == (202, "Accepted.")

    # Each 403 closes a channel. Its connection must not stay open.
    for url, reason in [
        (read_only_url, "ChannelClosedByBroker: (403)"),
        ("amqp://unknown.invalid/", "AMQPConnectionError: (gaierror("),
    ]:
        server = Server(start, url=url)
        for times in range(1, 4):
            refused(server, reason, times)
        server.wait_until_idle(broker)
        assert len(server.script.errors) == 3


@pytest.mark.faults
def test_waits_no_longer_than_the_limit(start, queue, broker, channel, tmp_path):
    lines = {
        "jobs = queue.Queue(maxsize=1000)": "jobs = queue.Queue(maxsize=30)",
        "confirmed.result(timeout=5)": "confirmed.result(timeout=2)",
    }
    server = Server(start, edited(tmp_path, PRODUCER, lines))
    assert server.post("first") == (202, "Accepted.")
    with broker.frozen():
        assert server.post("unknown")[0] == 503
        # The publisher's thread still waits for that confirm.
        with server.connect() as leaving:
            leaving.sendall(b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\nlost")
        with ThreadPoolExecutor(max_workers=50) as pool:
            assert [s for s, _ in pool.map(server.post, ["lost"] * 50)] == [503] * 50
        server.wait_until_idle(broker)
    assert server.script.count("too many requests are waiting") == 21
    assert server.script.count("no confirm within") == 31
    assert len(server.script.errors) == 52  # each is one line
    wait_until(lambda: server.post("last")[0] == 202, server.script)
    # 503 means that we don't know.
    assert set(bodies(channel)) == {"first", "unknown", "last"}
    server.wait_until_idle(broker)
    with server.connect():
        wait_until(lambda: server.process.num_threads() == 3, server.script)
        assert server.script.stop(signal.SIGINT) == 130


@pytest.mark.faults
def test_connection_stays_open_until_the_broker_closes_it(start, queue, broker):
    idle, suspended = (Server(start, url=f"{broker.url}?heartbeat=2") for _ in range(2))
    assert idle.post("idle") == (202, "Accepted.")
    before = idle.connections(broker)
    # Without heartbeats, the broker closes a connection after two or three of them. In
    # two rounds, that would be the end of both.
    for _ in range(2):
        assert suspended.post("suspended") == (202, "Accepted.")
        suspended.process.suspend()
        wait_until(lambda: not suspended.connections(broker), suspended.script)
        suspended.process.resume()
    assert idle.connections(broker) == before
    assert suspended.script.errors == idle.script.errors == []


@pytest.mark.faults
def test_kills_under_load_lose_no_accepted_signup(start, queue, broker, report):
    time.sleep(SETTLED)
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
            for _ in range(2):
                wait_for_more(accepted)
                assert len(server.connections(broker)) == 1
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


def test_forked_process_publishes_with_the_lines_on_the_page(
    start, queue, channel, tmp_path
):
    functions = (ROOT / PRODUCER).read_text().split("class Handler")[0]
    lines = page_block("advanced/web/README.md", "after_in_child")
    program = 'child = os.fork()\npublish(b"alice")\nif child:\n    os.wait()\n'
    (tmp_path / "app.py").write_text(functions + lines + program)
    assert start(str(tmp_path / "app.py")).wait() == 0
    assert bodies(channel) == ["alice", "alice"]
