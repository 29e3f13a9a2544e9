"""What a user can get wrong, at every script there is: one line, an exit code, no traceback."""

import os
import re
import socket
import subprocess
import sys

import pika
import pytest
from end import ROOT
from test_readme import ENGLISH, pattern, sections

SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for end in ("producer", "consumer")
    for path in ROOT.glob(f"*/{end}.py")
) + sorted(
    str(path.relative_to(ROOT))
    for end in ("producer", "consumer")
    for path in ROOT.glob(f"advanced/*/{end}.py")
)
PASSWORD = "not-for-your-eyes"


def address(broker) -> tuple[str, int]:
    parameters = pika.URLParameters(broker.url)
    return parameters.host, parameters.port


def complaint(end, code=1) -> str:
    """Return the one line on standard error of a script that has ended with code."""
    assert end.end() == code, str(end)
    assert len(end.errors) == 1, str(end)
    assert PASSWORD not in end.errors[0]
    assert "Received" not in "".join(end.lines)
    return end.errors[0]


@pytest.fixture(params=SCRIPTS)
def script(request):
    return request.param


def test_every_lesson_has_both_ends():
    folders = {script.rsplit("/", 1)[0] for script in SCRIPTS}
    assert {"simple", "work_queue", "fanout", "direct", "topic", "rpc"} <= folders
    assert len(SCRIPTS) == 2 * len(folders)


def test_broker_away(start, script):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    line = complaint(start(script, url=f"amqp://guest:{PASSWORD}@localhost:{port}/%2F"))
    assert line.startswith(f" [!] localhost:{port}: ")
    assert "Connection refused" in line
    assert "has RabbitMQ started there" in line


def test_unknown_host(start, script):
    line = complaint(start(script, url=f"amqp://guest:{PASSWORD}@nowhere.invalid:5672/%2F"))
    assert line.startswith(" [!] nowhere.invalid:5672: ")


def test_a_host_that_can_have_no_address(start):
    line = complaint(start("fanout/producer.py", url=f"amqp://guest:{PASSWORD}@a..b/%2F"))
    assert line.startswith(" [!] a..b:5672: UnicodeError")


def test_closed_output_is_no_traceback(broker):
    command = ["sh", "-c", 'exec "$0" "$1" >&-', sys.executable, ROOT / "work_queue/producer.py"]
    env = os.environ | {"AMQP_URL": f"amqp://{':'.join(map(str, address(broker)))}/nowhere"}
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


# A BlockingConnection, one that is made again when it is lost, and a SelectConnection.
@pytest.mark.parametrize(
    "script", ["simple/producer.py", "work_queue/consumer.py", "advanced/confirms/producer.py"]
)
def test_a_broker_that_takes_the_connection_and_says_nothing(start, script):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        url = f"amqp://guest:{PASSWORD}@localhost:{port}/%2F?stack_timeout=1"
        line = complaint(start(script, url=url))
    assert line.startswith(f" [!] localhost:{port}: ")
    assert "imeout" in line


def test_wrong_password(start, script, broker):
    host, port = address(broker)
    line = complaint(start(script, url=f"amqp://guest:{PASSWORD}@{host}:{port}/%2F"))
    assert line.startswith(f" [!] {host}:{port}: ")
    assert "ACCESS_REFUSED" in line
    assert "does AMQP_URL name" in line


def test_unknown_vhost(start, script, broker):
    host, port = address(broker)
    line = complaint(start(script, url=f"amqp://guest:guest@{host}:{port}/nowhere"))
    assert line.startswith(f" [!] {host}:{port}: ")
    assert "nowhere" in line
    assert "vhost" in line


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "localhost:5672",
        "ftp://guest:{}@localhost",
        "amqp://guest:{}@localhost:port/%2F",
        "amqp://guest:{}@localhost:99999/%2F",
        "amqp://guest:12#{}@localhost:5672/%2F",
        "amqp://guest:12/{}@localhost:5672/%2F",
        "amqp://guest:12?{}@localhost:5672/%2F",
        "amqp://guest:{},x@localhost:5672/%2F",
        "amqp://[::1",
        "amqp://guest:{}\udcff@localhost/%2F",
        "amqp://guest:{}@localhost/%2F?heartbeat=often",
        "amqps://guest:{}@localhost/%2F?ssl_options=nonsense",
        "amqps://guest:{}@localhost/%2F?ssl_options=%7B%27cafile%27:%27missing.pem%27%7D",
    ],
)
def test_malformed_url(start, url):
    # The lines that read AMQP_URL are alike in every script (test_house.py): one of them will do.
    line = complaint(start("fanout/producer.py", url=url.format(PASSWORD)))
    assert line.startswith(" [!] AMQP_URL")
    assert "amqp://user:password@host:5672/%2F" in line
    assert "12" not in line.replace("%2F", "")


def test_malformed_url_at_every_script(start, script):
    line = complaint(start(script, url=f"amqp:/guest:{PASSWORD}@localhost:x/"))
    assert line.startswith(" [!] AMQP_URL")


@pytest.mark.parametrize(
    ("script", "queue"),
    [
        ("simple/producer.py", "hello"),
        ("simple/consumer.py", "hello"),
        ("work_queue/producer.py", "task_queue"),
        ("work_queue/consumer.py", "task_queue"),
        ("rpc/consumer.py", "rpc_queue"),
    ],
)
def test_a_queue_declared_otherwise(start, broker, channel, script, queue):
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "classic"})
    line = complaint(start(script))
    assert line.startswith(" [!] {}:{}: ".format(*address(broker)))
    assert f"PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue '{queue}'" in line
    assert "delete that queue or exchange" in line


@pytest.mark.parametrize(
    ("lesson", "exchange"),
    [("fanout", "logs"), ("direct", "direct_logs"), ("topic", "topic_logs")],
)
@pytest.mark.parametrize("end", ["producer", "consumer"])
def test_an_exchange_declared_otherwise(start, broker, channel, lesson, exchange, end):
    channel.exchange_declare(exchange, "headers")
    line = complaint(start(f"{lesson}/{end}.py"))
    assert line.startswith(" [!] {}:{}: ".format(*address(broker)))
    assert f"PRECONDITION_FAILED - inequivalent arg 'type' for exchange '{exchange}'" in line


def test_the_first_node_that_answers_is_used(start, broker, script):
    if script == "rpc/producer.py":
        start("rpc/consumer.py").ready()
    if script in ("fanout/producer.py", "direct/producer.py", "topic/producer.py"):
        start(script.replace("producer", "consumer")).ready()
    few = ["10"] if script == "advanced/confirms/producer.py" else []
    end = start(script, *few, url=f"amqp://guest:guest@localhost:1/%2F,{broker.url}")
    if script.endswith("producer.py"):
        assert end.end() == 0, str(end)
    else:
        end.ready()


def test_help_is_the_docstring(start, script):
    end = start(script, "--help", url="malformed, and nobody cares")
    assert end.end() == 0
    docstring = compile((ROOT / script).read_text(), script, "exec").co_consts[0]
    assert docstring.strip() in "\n".join(end.lines)


def test_an_unknown_option_is_a_wrong_argument(start, script):
    end = start(script, "--no-such-option")
    assert end.end() == 2
    assert end.lines == []
    assert end.errors[0].startswith("usage: ")


@pytest.mark.parametrize(
    "script", ["direct/producer.py", "direct/consumer.py", "topic/producer.py", "topic/consumer.py"]
)
@pytest.mark.parametrize("key", ["x" * 256, "é" * 128, b"\xff"], ids=["long", "bytes", "no UTF-8"])
def test_a_key_that_amqp_cannot_carry_is_a_wrong_argument(start, script, key):
    end = start(script, key)
    assert end.end() == 2
    assert "usage: " in end.errors[0]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "99999999999"])
def test_a_time_limit_that_is_none_is_a_wrong_argument(start, seconds):
    assert start("rpc/producer.py", "--timeout", seconds).end() == 2


def elsewhere(kind, broker):
    """Return a URL that is wrong in one way."""
    host, port = address(broker)
    return {
        "port": "amqp://guest:guest@localhost:1/%2F",
        "host": "amqp://guest:guest@nowhere.invalid/%2F",
        "password": f"amqp://guest:{PASSWORD}@{host}:{port}/%2F",
        "vhost": f"amqp://guest:guest@{host}:{port}/nowhere",
        "form": "localhost",
    }[kind]


# What the README's troubleshooting table quotes: the script that says so, and how it comes to it.
TROUBLE = {
    "Connection refused": ("simple/producer.py", [], "port"),
    "gaierror(…)": ("simple/producer.py", [], "host"),
    "ACCESS_REFUSED - Login was refused": ("simple/producer.py", [], "password"),
    "NOT_ALLOWED - vhost … not found": ("simple/producer.py", [], "vhost"),
    "AMQP_URL: not of the form …": ("simple/producer.py", [], "form"),
    "Nobody got '…'": ("fanout/producer.py", [], None),
    "reached no server: there is no queue rpc_queue": ("rpc/producer.py", [], None),
    "had no answer in 10 s": ("rpc/producer.py", ["1"], "a queue without a server"),
    "fib(…) was refused": ("rpc/producer.py", ["banana"], "a server"),
    "PRECONDITION_FAILED - inequivalent arg …": ("simple/producer.py", [], "another queue"),
    "AMQPConnectorStackTimeout": ("simple/producer.py", [], "silence"),
    "IncompatibleProtocolError": ("simple/producer.py", [], "another protocol"),
    "No module named 'pika'": ("simple/producer.py", [], "no pika"),
    # These take a restart, an alarm, patience, or chance: see test_restart.py, test_confirms.py,
    # test_faults.py and test_work_queue.py.
    "CONNECTION_FORCED - broker forced connection closure": None,
    "Lost the broker: … Trying again.": None,
    "The broker takes no messages for now: …": None,
    "or a task outlasted consumer_timeout": None,
    "INTERNAL_ERROR": None,
}


def test_the_troubleshooting_table_has_these_rows():
    (table,) = [part.tables[0] for part in sections(ENGLISH) if part.title == "Troubleshooting"]
    assert {row[0].strip("`") for row in table[1:]} == set(TROUBLE)


@pytest.mark.parametrize("said", [said for said, how in TROUBLE.items() if how])
def test_what_the_troubleshooting_table_quotes_is_said(start, broker, channel, said):
    script, arguments, how = TROUBLE[said]
    url = broker.url
    quorum = {"x-queue-type": "quorum"}
    if how == "no pika":
        command = [sys.executable, "-S", "-I", ROOT / script]
        errors = subprocess.run(command, capture_output=True, text=True).stderr
        assert said in errors.splitlines()[-1]
        return
    if how == "a server":
        start("rpc/consumer.py").ready()
    elif how == "a queue without a server":
        channel.queue_declare("rpc_queue", durable=True, arguments=quorum)
    elif how == "another queue":
        channel.queue_declare("hello", durable=True, arguments={"x-queue-type": "classic"})
    elif how == "silence":
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            assert said in complaint(start(script, url=f"amqp://localhost:{port}?stack_timeout=1"))
        return
    elif how == "another protocol":
        with socket.create_server(("127.0.0.1", 0)) as server:
            end = start(script, url=f"amqp://localhost:{server.getsockname()[1]}/%2F")
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(100)
            assert said in complaint(end)
        return
    elif how:
        url = elsewhere(how, broker)
    line = complaint(start(script, *arguments, url=url))
    assert re.search(pattern([said]), line)
