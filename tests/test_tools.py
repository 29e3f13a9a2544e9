"""tools/: the demo and the broker's commands, as a user types them."""

import re
import signal
import socket
import threading

import pika
import pytest
from broker import run, uses_docker

# All but work_queue, whose tasks take their time; `make demo` and test_work_queue.py run it.
LESSONS = [
    pytest.param("simple", marks=pytest.mark.unconfirmed),
    "fanout",
    "direct",
    "topic",
    "rpc",
    "advanced/confirms",
    "advanced/dead_letter",
]


@pytest.mark.parametrize("lesson", LESSONS)
def test_the_demo_of_a_lesson_ends_well_and_marks_each_end(start, lesson):
    demo = start("tools/demo.py", lesson)
    assert demo.end(60) == 0, str(demo)
    assert demo.lines[-1] == f"All delivered: {lesson}."
    assert any(line.startswith("  producer | ") for line in demo.lines)
    assert any(line.lstrip().startswith("consumer") for line in demo.lines)
    assert "\x1b" not in "".join(demo.lines)  # no colours where there is no terminal


def test_the_demo_notices_what_did_not_arrive(start, channel):
    # A third consumer, which the demo knows nothing of, takes a share of the messages.
    channel.queue_declare("hello", durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_consume("hello", lambda *_: None, auto_ack=True)
    demo = start("tools/demo.py", "simple", "--patience", "3")
    code = demo.end(60)
    assert code == 1, str(demo)
    assert "simple" in demo.errors[-1] or "Received '兔子" in demo.errors[-1]


def test_the_demo_of_an_unknown_lesson_is_a_wrong_argument(start):
    assert start("tools/demo.py", "no-such-lesson").end() == 2


def test_a_broker_that_is_there_is_left_alone(start, broker):
    port = str(pika.URLParameters(broker.url).port)
    command = start("tools/broker.py", "up", AMQP_PORT=port)
    assert command.end() == 0
    assert command.lines == [f"A broker is there already, on localhost:{port}."]


def test_a_port_that_something_else_has_is_one_line(start):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        port = server.getsockname()[1]
        command = start("tools/broker.py", "up", AMQP_PORT=str(port))
        assert command.end() == 1
        thread.join()
    assert command.errors == [
        f"broker: something that is no RabbitMQ listens on port {port}: set AMQP_PORT"
    ]


def test_a_broker_that_up_did_not_start_is_not_stopped(start, broker):
    port = str(pika.URLParameters(broker.url).port)
    command = start("tools/broker.py", "down", AMQP_PORT=port)
    assert command.end() == 1
    assert command.errors == [f"broker: `up` did not start the broker on localhost:{port}"]
    assert broker.version  # which it tells


@pytest.mark.parametrize("port", ["abc", "-1", "0", "65536"])
def test_a_port_that_is_none_is_one_line(start, port):
    command = start("tools/broker.py", "up", AMQP_PORT=port)
    assert command.end() == 1
    assert command.errors == [f"broker: AMQP_PORT is {port!r}; it may be from 1 to 65535"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP], ids=["SIGINT", "SIGHUP"])
def test_a_demo_that_is_stopped_leaves_nothing(start, tmp_path, number):
    demo = start("tools/demo.py", "work_queue", url="", AMQP_URL="", TMPDIR=str(tmp_path))
    demo.wait_for("] Received", timeout=60)
    port = int(re.search(r"of its own is ready on localhost:(\d+)", demo.lines[0])[1])
    project = project_of(port)
    demo.process.send_signal(number)
    assert demo.stop(number, timeout=60) == 130  # and once more, as the impatient do
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port))
    assert list(tmp_path.iterdir()) == []
    if project:
        for what in (["container", "ls", "-a"], ["volume", "ls"], ["network", "ls"]):
            label = f"label=com.docker.compose.project={project}"
            assert run("docker", *what, "-q", "--filter", label) == ""


def project_of(port: int) -> str:
    """Return the compose project that publishes a port; nothing if Docker is not used."""
    if not uses_docker():
        return ""
    label = '{{.Label "com.docker.compose.project"}}'
    return run("docker", "ps", "--filter", f"publish={port}", "--format", label).strip()


def test_stopping_a_broker_that_is_not_there_says_so(start):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = start("tools/broker.py", "down", AMQP_PORT=port)
    assert command.end() == 0
    assert command.lines == [f"There is no broker on localhost:{port}."]
