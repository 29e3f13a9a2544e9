"""advanced/web/: what its comments and its page claim."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import signal
import socket
import threading
import time
import uuid
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

    def post(self, body, **headers):
        """Return the response's status and text. Raises OSError without one in time."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        with contextlib.closing(client):
            client.request("POST", "/", body, headers)
            response = client.getresponse()
            return response.status, response.read().decode().rstrip()

    def post_all(self, bodies):
        """Post all of them simultaneously. Return their statuses."""
        with ThreadPoolExecutor(max_workers=50) as pool:
            return [status for status, _ in pool.map(self.post, bodies)]

    def connections(self, broker):
        """Return the addresses of its open connections to the broker."""
        return [
            connection.laddr
            for connection in self.process.net_connections("tcp")
            if connection.raddr
            and connection.raddr.port == broker.port
            and connection.status == psutil.CONN_ESTABLISHED
        ]

    def wait_until_idle(self, broker):
        """Wait until each request's thread has ended. It has at most one connection."""
        wait_until(lambda: self.process.num_threads() == 2, self.script)
        assert len(self.connections(broker)) <= 1


@pytest.fixture
def queue(broker, start):
    """The queue `signups`, without a consumer. `start` deletes it."""
    with connect(broker) as connection:
        declare(connection.channel())
    return QUEUE


def declare(channel, **arguments):
    channel.queue_declare(QUEUE, durable=True, arguments=QUORUM | arguments)


def bodies(channel):
    """Take all messages out of the queue, and return their bodies."""
    count = message_count(channel, QUEUE)
    return [get(channel, QUEUE)[2].decode() for _ in range(count)]


# Requests and their responses.


def test_responds_after_the_message_is_in_the_queue(start, queue, channel):
    server = Server(start)
    ids = set()
    for name in ("alice", "bob"):
        assert server.post(name) == (202, "Accepted.")
        _, properties, body = get(channel, queue)
        assert (body.decode(), properties.delivery_mode) == (name, 2)
        ids.add(str(uuid.UUID(properties.message_id)))
    assert len(ids) == 2
    assert server.script.output[1:] == [" [x] Sent 'alice'", " [x] Sent 'bob'"]


def test_consumer_acknowledges_and_continues_after_a_crash(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    assert Server(start).post("alice") == (202, "Accepted.")
    consumer.wait_for("[x] Received 'alice'")
    wait_for_message_count(0, channel, QUEUE)
    consumer.kill()
    channel.basic_publish("", QUEUE, b"bob")
    again = start(CONSUMER).wait_for("Received")
    assert received(again) == ["'bob'"]


def test_consumers_share_the_signups(start, tmp_path):
    # One consumer has not acknowledged its signup. The other one gets the next.
    line = "print(f\" [x] Received {body.decode(errors='replace')!r}\")"
    slow = edited(tmp_path, CONSUMER, {line: f"{line}\nimport time; time.sleep(60)"})
    consumers = [start(slow).wait_until_ready() for _ in range(2)]
    server = Server(start)
    assert server.post_all(["alice", "bob", "carol"]) == [202] * 3
    for consumer in consumers:
        consumer.wait_for("Received")
    assert len(received(consumers[0]) + received(consumers[1])) == 2


def test_responds_to_what_is_not_a_signup(start, queue, channel):
    server = Server(start)
    for body, headers, response in [
        (b"", {}, (400, "The body is empty or incomplete.")),
        (b"", {"Content-Length": "10000"}, (413, "At most 9999 bytes.")),
        (b"", {"Content-Length": "1e3"}, (411, "Content-Length is missing.")),
        (b"", {"Content-Length": "-1"}, (411, "Content-Length is missing.")),
        (None, {"Transfer-Encoding": "chunked"}, (411, "Content-Length is missing.")),
        (b"x" * 9999, {}, (202, "Accepted.")),
    ]:
        assert server.post(body, **headers) == response, (body, headers)
    assert bodies(channel) == ["x" * 9999]


def test_incomplete_body_is_refused(start, queue, channel):
    server = Server(start)
    with socket.create_connection(("127.0.0.1", server.port), LIMIT) as client:
        client.sendall(b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nali")
        client.shutdown(socket.SHUT_WR)
        assert b" 400 " in client.recv(4096)
    assert message_count(channel, queue) == 0


def test_silent_client_is_disconnected(start, broker, tmp_path):
    line = "timeout = 10  # seconds, for a client that sends nothing"
    server = Server(start, edited(tmp_path, PRODUCER, {line: "timeout = 0.1"}))
    for sent in (b"", b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nali"):
        with socket.create_connection(("127.0.0.1", server.port), LIMIT) as client:
            client.sendall(sent)
            assert client.recv(4096) == b""
    server.wait_until_idle(broker)


def test_client_that_disconnects_causes_no_traceback(start, queue, broker):
    server = Server(start)
    with broker.frozen():
        client = socket.create_connection(("127.0.0.1", server.port), LIMIT)
        client.sendall(b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nalice")
        wait_until(lambda: server.process.num_threads() == 3, server.script)
        # Close it with a reset: the server can't send a response any more.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
    server.wait_until_idle(broker)
    assert server.script.output[1:] == [" [x] Sent 'alice'"]
    assert server.script.errors == []


# 503, and 202 again afterwards.


def test_responds_503_with_the_reason(start, channel, broker, user):
    documented("Not confirmed: …")

    def refused(server, reason, times=1):
        assert server.post("alice") == (503, "Try again later.")
        server.script.wait_for(f" [!] Not confirmed: {reason}", times=times)

    server = Server(start)
    refused(server, "the queue doesn't exist. Start consumer.py first")
    declare(channel, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    wait_until(lambda: server.post("bob")[0] == 503, "a full queue")
    refused(server, "the broker refused the message. Is the queue full?", 2)

    # Each refusal closes a channel. Its connection must not stay behind.
    forbidden = Server(start, url=user("^$"))
    for times in range(1, 6):
        refused(forbidden, "ChannelClosedByBroker: (403)", times)
    forbidden.wait_until_idle(broker)

    assert set(bodies(channel)) == {"bob"}
    assert server.post("carol") == (202, "Accepted.")
    server.wait_until_idle(broker)


def test_without_confirms_a_lost_signup_is_accepted(start, queue, channel, tmp_path):
    lines = {'routing_key="signups",': 'routing_key="sign-ups",'}
    server = Server(start, edited(tmp_path, PRODUCER, lines))
    assert server.post("alice") == (503, "Try again later.")
    lines["channel.confirm_delivery()"] = ""
    server = Server(start, edited(tmp_path, PRODUCER, lines))
    assert server.post("alice") == (202, "Accepted.")
    assert message_count(channel, queue) == 0


def test_refused_connection_is_one_line(start, broker):
    for url, reason in (
        (broker.url.replace("guest:guest", "guest:wrong"), "ACCESS_REFUSED"),
        (broker.url.replace(str(broker.port), str(free_port())), "Connection refused"),
        ("amqp://unknown.invalid/", "gaierror"),
    ):
        server = Server(start, url=url)
        assert server.post("alice") == (503, "Try again later.")
        server.script.wait_for(" [!] Not confirmed: AMQPConnectionError").wait_for(
            reason
        )
        assert len(server.script.errors) == 1
        assert server.connections(broker) == []


def test_frozen_broker_delays_a_response_by_the_limit_only(
    start, queue, broker, channel
):
    server = Server(start)
    assert server.post("first") == (202, "Accepted.")
    with broker.frozen():
        assert server.post_all([f"lost {n}" for n in range(50)]) == [503] * 50
    assert server.script.count("Not confirmed: no confirm within 5 seconds") == 50
    assert server.post("last") == (202, "Accepted.")
    server.wait_until_idle(broker)
    # 503 means that we don't know: the one that the publisher had begun is stored.
    first, unknown, last = bodies(channel)
    assert (first, unknown[:4], last) == ("first", "lost", "last")


@pytest.fixture
def memory_limit(broker):
    """memory_limit("absolute", "1") raises an alarm. The test or its end clears it."""
    yield lambda *limit: broker.ctl("set_vm_memory_high_watermark", *limit)
    broker.ctl("set_vm_memory_high_watermark", "0.4")


@pytest.mark.faults
def test_alarm_delays_a_response_by_the_limit_only(
    start, queue, broker, channel, memory_limit
):
    plain = Server(start)
    limited = Server(start, url=f"{broker.url}?blocked_connection_timeout=1")
    for server in (plain, limited):
        assert server.post("first") == (202, "Accepted.")
    memory_limit("absolute", "1")
    assert plain.post_all([f"plain {n}" for n in range(10)]) == [503] * 10
    assert limited.post_all([f"limited {n}" for n in range(10)]) == [503] * 10
    memory_limit("0.4")
    for server in (plain, limited):
        wait_until(lambda server=server: server.post("last")[0] == 202, server.script)
        server.wait_until_idle(broker)
    # Nothing was published twice, and plain's publisher had begun with only one.
    found = [body for body in bodies(channel) if body not in ("first", "last")]
    assert len(set(found)) == len(found)
    assert sum(body.startswith("plain") for body in found) <= 1


def queue_process(broker, function):
    """Suspend or resume the process of the queue in the broker."""
    broker.ctl("eval", f"sys:{function}({{'%2F_{QUEUE}', node()}}).")


@pytest.mark.faults
def test_queue_that_does_not_respond_delays_a_response_by_the_limit_only(
    start, queue, broker, channel
):
    server = Server(start)
    assert server.post("first") == (202, "Accepted.")
    queue_process(broker, "suspend")
    try:
        assert server.post_all([f"lost {n}" for n in range(10)]) == [503] * 10
    finally:
        queue_process(broker, "resume")
    assert server.post("last") == (202, "Accepted.")
    first, unknown, last = bodies(channel)
    assert (first, unknown[:4], last) == ("first", "lost", "last")


def test_too_many_waiting_requests_are_refused_immediately(
    start, queue, broker, tmp_path
):
    lines = {
        "jobs = queue.Queue(maxsize=1000)": "jobs = queue.Queue(maxsize=1)",
        "confirmed.result(timeout=5)": "confirmed.result(timeout=2)",
    }
    server = Server(start, edited(tmp_path, PRODUCER, lines))
    with broker.frozen():
        assert server.post_all("abc") == [503] * 3
    # It's printed first, because the other two wait for their confirms.
    assert "too many requests are waiting" in server.script.errors[0]
    assert server.script.count("no confirm within") == 2
    wait_until(lambda: server.post("d")[0] == 202, server.script)


@pytest.mark.faults
def test_vanished_broker_is_noticed(start, queue, broker):
    server = Server(start, url=f"{broker.url}?heartbeat=2")
    assert server.post("alice") == (202, "Accepted.")
    with broker.frozen():
        assert server.post("bob") == (503, "Try again later.")
        wait_until(lambda: not server.connections(broker), server.script, 60)
    assert server.post("carol") == (202, "Accepted.")


@pytest.mark.faults
def test_idle_server_keeps_its_connection_and_a_suspended_one_reconnects(
    start, queue, broker
):
    idle, suspended = (Server(start, url=f"{broker.url}?heartbeat=2") for _ in range(2))
    assert idle.post("idle") == (202, "Accepted.")
    before = idle.connections(broker)
    # A suspended server sends no heartbeats. The broker closes its connection after two
    # of them, so after these rounds the other server has been idle for three or more.
    for n in range(2):
        assert suspended.post(f"suspended {n}") == (202, "Accepted.")
        suspended.process.suspend()
        wait_until(lambda: not suspended.connections(broker), suspended.script)
        suspended.process.resume()
    assert suspended.post("suspended 2") == (202, "Accepted.")
    assert idle.post("idle") == (202, "Accepted.")
    assert idle.connections(broker) == before
    assert suspended.script.errors == idle.script.errors == []


@pytest.mark.faults
def test_kills_under_load_lose_no_accepted_signup(start, queue, broker, report):
    server = Server(start)
    accepted, others = [], []
    stopping = threading.Event()
    declared = time.monotonic()

    def client(name):
        for n in itertools.count():
            body = f"{name}-{n}"
            is_accepted = server.post(body)[0] == 202
            (accepted if is_accepted else others).append(body)
            if stopping.wait(0 if is_accepted else 0.5):
                return

    def more(responses, count):
        count += len(responses)
        wait_until(lambda: len(responses) > count, server.script, 60)

    with ThreadPoolExecutor(max_workers=50) as pool:
        clients = [pool.submit(client, name) for name in range(50)]
        try:
            wait_until(lambda: time.monotonic() > declared + SETTLED, "an older queue")
            for _ in range(2):
                more(accepted, 50)
                broker.kill()
                more(others, 50)
                broker.start()
            more(accepted, 50)
        finally:
            stopping.set()
    for future in clients:
        future.result()  # raises what the client raised
    server.wait_until_idle(broker)
    with connect(broker) as connection:
        found = bodies(connection.channel())
    assert set(accepted) <= set(found) <= set(accepted + others)
    assert len(set(found)) == len(found)
    report(f"{len(accepted)} accepted, {len(others)} not, {len(found)} in the queue")


# Ctrl+C, and a port that isn't free.


def test_ctrl_c_exits_with_0_if_no_request_is_open(start, queue, broker):
    server = Server(start)
    assert server.post("alice") == (202, "Accepted.")
    server.wait_until_idle(broker)
    assert server.script.stop(signal.SIGINT) == 0
    assert server.script.errors == []


def test_ctrl_c_exits_immediately_with_130_if_a_request_is_open(start, queue, broker):
    server = Server(start)
    with broker.frozen(), ThreadPoolExecutor() as pool:
        response = pool.submit(server.post, "alice")
        wait_until(lambda: server.process.num_threads() == 3, server.script)
        assert server.script.stop(signal.SIGINT) == 130
        with pytest.raises(OSError):  # noqa: PT011 (reset or closed)
            response.result()
    assert server.script.errors == []


def test_port_that_cannot_be_used_is_one_line(start):
    server = Server(start)
    for port in (str(server.port), "70000"):
        other = start(PRODUCER, port)
        assert other.wait() == 1
        assert other.output == []
        (line,) = other.errors
        assert line.startswith(f" [!] Can't listen on port {port}: ")


# publish() in another program.


def run(start, folder, code, script=PRODUCER, **options):
    """Start a program with the functions of producer.py."""
    functions = (ROOT / script).read_text().split("\nif __name__")[0]
    program = folder / "app.py"
    program.write_text(functions + "\n" + code)
    return start(str(program), **options)


def output(process):
    assert process.wait() == 0, process
    return process.output


# What a program needs to count its connections to the broker.
COUNT = """
import psutil
port = pika.URLParameters(AMQP_URL).port
def connections():
    addresses = [c.raddr for c in psutil.Process().net_connections("tcp")]
    return sum(bool(address) and address.port == port for address in addresses)
"""


def test_150_threads_share_a_connection(start, queue, channel, tmp_path):
    code = """
start_publisher()
threads = [threading.Thread(target=publish, args=[b"hello"]) for _ in range(150)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(connections(), threading.active_count())
"""
    assert output(run(start, tmp_path, COUNT + code)) == ["1 2"]
    wait_for_message_count(150, channel, queue)


def test_message_that_pika_or_the_broker_refuses_leaves_no_connection(
    start, queue, broker, channel, tmp_path
):
    code = """
start_publisher()
for body in [1, None, bytes(17 * 2**20)] * 3:
    try:
        publish(body)
    except Exception as error:
        print(type(error).__name__, str(error)[:25])
publish("hello")
print(connections())
"""
    set_limit = "application:set_env(rabbit, max_message_size, {})."
    if broker.version < (4, 0):  # its default is 128 MiB
        broker.ctl("eval", set_limit.format(16 * 2**20))
    try:
        lines = output(run(start, tmp_path, COUNT + code))
    finally:
        if broker.version < (4, 0):
            broker.ctl("eval", set_limit.format(128 * 2**20))
    assert lines[2] == "ChannelClosedByBroker (406, 'PRECONDITION_FAILE"
    assert lines == [*lines[:3] * 3, "1"]
    assert bodies(channel) == ["hello"]


def test_interrupted_publish_does_not_confirm_the_next_message(
    start, queue, broker, channel, tmp_path
):
    # A task queue's soft time limit, for example, raises an exception like this one.
    code = """
import pathlib, signal, time
def interrupt(*_): raise InterruptedError
signal.signal(signal.SIGUSR1, interrupt)
start_publisher()
publish("first")
print("ready", flush=True)
try:
    while True: publish("more")
except InterruptedError:
    print("interrupted", flush=True)
while not pathlib.Path("deleted").exists(): time.sleep(0.1)
publish("lost")
"""
    program = run(start, tmp_path, code, cwd=tmp_path).wait_for("ready")
    with broker.frozen():
        program.process.send_signal(signal.SIGUSR1)
        program.wait_for("interrupted")
    channel.queue_delete(queue)
    (tmp_path / "deleted").touch()
    assert program.wait() == 1
    assert "UnroutableError" in program.errors[-1]


def test_child_process_publishes_on_its_own_connection(start, queue, channel, tmp_path):
    code = """
start_publisher()
os.register_at_fork(after_in_child=start_publisher)
publish("parent 1")
if os.fork():
    os.wait()
    publish("parent 2")
    print(connections())
else:
    publish("child")
    os._exit(0)
"""
    assert output(run(start, tmp_path, COUNT + code)) == ["1"]
    assert bodies(channel) == ["parent 1", "child", "parent 2"]


def test_child_process_without_a_publisher_times_out(start, queue, channel, tmp_path):
    lines = {"confirmed.result(timeout=5)": "confirmed.result(timeout=1)"}
    short = edited(tmp_path, PRODUCER, lines)
    code = """
start_publisher()
publish("parent 1")
if os.fork():
    _, status = os.wait()
    publish("parent 2")
else:
    try:
        publish("child")
    except futures.TimeoutError:
        os.write(1, b"not confirmed\\n")
    os._exit(0)
"""
    assert output(run(start, tmp_path, code, short)) == ["not confirmed"]
    assert bodies(channel) == ["parent 1", "parent 2"]
