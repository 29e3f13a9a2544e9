"""How every script behaves when something goes wrong. CONTRIBUTING.md has the table.

Each test starts all the scripts it's about side by side, then looks at each of them.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from functools import partial

import pytest

from tests.helpers import documented, edited
from tests.servers import answering_server, silent_server
from tools.broker.base import free_port
from tools.common import ROOT
from tools.lessons import CONSUMERS, LESSONS, PRODUCERS, SCRIPTS
from tools.pages import pattern

PASSWORD = "not-for-your-eyes"

SOURCES = {script: (ROOT / script).read_text() for script in SCRIPTS}
# A web server instead of a script that sends something and exits.
SERVERS = [script for script in PRODUCERS if "serve_forever()" in SOURCES[script]]
RECONNECTING = [script for script in SCRIPTS if "AMQP_URL.split" in SOURCES[script]]
LONG_TASKS = "advanced/long_tasks/consumer.py"
# One script of each kind. The others have the same frame, and a test compares it.
KINDS = ["simple/producer.py", "fanout/consumer.py", LONG_TASKS, *RECONNECTING]


@pytest.fixture
def start_all(start, tmp_path):
    """start_all(scripts, url=...) starts them all. Returns {script: ScriptProcess}.

    If edits(script) is given, it returns the lines to change, as in edited().
    """

    def start_all(scripts, *arguments, edits=None, **options):
        processes = {}
        for script in scripts:
            path = edited(tmp_path, script, edits(script)) if edits else script
            processes[script] = start(path, *arguments, cwd=tmp_path, **options)
        return processes

    return start_all


def lesson_of(script):
    return LESSONS[script.rpartition("/")[0]]


def check_exits_with_one_line(process, *texts):
    """Check for status 1 and a line on standard error that contains all the texts.

    In a text, … stands for anything.
    """
    assert process.wait() == 1, process
    lines = [line for line in process.errors if "[!] Not confirmed" not in line]
    assert len(lines) == 1, process
    assert lines[0].startswith(" [!] "), process
    assert all(re.search(pattern(text), lines[0]) for text in texts), process
    assert PASSWORD not in lines[0]


# simple connects in main(), the others in connect().
CONNECTING = "simple/producer.py", "simple/consumer.py", "fanout/consumer.py"
URL = f"amqp://guest:{PASSWORD}@127.0.0.1:%s/%%2F"
CLOSED = partial(contextlib.nullcontext, free_port())  # nothing listens there
HTTP, RESETTING = (partial(answering_server, b) for b in (b"HTTP/1.1 4", b""))


@pytest.mark.parametrize(
    ("server", "url", "reason"),
    [
        (CLOSED, URL, "Connection refused"),
        (CLOSED, URL.replace("127.0.0.1", "a.invalid"), "gaierror"),
        (silent_server, f"{URL}?stack_timeout=1", "StackTimeout"),
        (HTTP, URL, "IncompatibleProtocolError"),
    ],
)
def test_failed_connection_is_one_line(start_all, server, url, reason):
    texts = "Can't connect to RabbitMQ", documented(reason), "Is it running"
    with server() as port:
        for process in start_all(CONNECTING, url=url % port).values():
            check_exits_with_one_line(process, *texts)


def test_reset_during_the_tls_handshake_is_one_line(start_all):
    with RESETTING() as port:
        url = URL.replace("amqp", "amqps") % port
        for process in start_all(CONNECTING, url=url).values():
            check_exits_with_one_line(process, "Can't connect to RabbitMQ")


@pytest.mark.parametrize(
    ("part", "other", "reason"),
    [
        (":guest@", f":{PASSWORD}@", "ACCESS_REFUSED - Login was refused"),
        ("%2F", "nowhere", "NOT_ALLOWED - vhost … not found"),
        ("%2F", "theirs", "NOT_ALLOWED - access to vhost …"),
    ],
)
def test_refused_login_is_one_line(start_all, broker, part, other, reason):
    texts = documented(reason), "password…and vhost right?"
    broker.put("vhosts/theirs")
    broker.delete("permissions/theirs/guest")
    try:
        for process in start_all(KINDS, url=broker.url.replace(part, other)).values():
            check_exits_with_one_line(process, *texts)
    finally:
        broker.delete("vhosts/theirs")


def test_invalid_url_shows_what_a_url_looks_like(start_all):
    text = documented("AMQP_URL should look like …")
    for url in (
        "localhost",
        f"amqp://guest:a#{PASSWORD}@localhost:5672/%2F",  # it isn't percent-encoded
        f"amqp://guest:{PASSWORD}@localhost:5672/%2F?hartbeat=5",
    ):
        for process in start_all([*KINDS, *SERVERS], url=url).values():
            check_exits_with_one_line(process, text, "user:password@host:5672/%2F")


def test_message_is_not_called_sent_before_its_confirm(start_all):
    """The queue can be deleted while we publish."""

    def delete_queues(script):
        publish = "channel.basic_publish("
        names = lesson_of(script).queues
        lines = [f"channel.queue_delete(queue={name!r})" for name in names]
        return {publish: "\n".join([*lines, publish])}

    # simple's page explains why it doesn't wait. The others have their own tests.
    others = "simple", "rpc", "advanced/confirms", "advanced/web"
    producers = {s for s in PRODUCERS if lesson_of(s).queues}
    producers -= {f"{name}/producer.py" for name in others}
    for process in start_all(producers, "x", edits=delete_queues).values():
        assert process.wait() == 1, process
        assert not process.count("[x] Sent"), process
        assert documented("UnroutableError") in process.errors[-1], process


def test_refused_declaration_is_one_line_and_not_retried(start_all, channel):
    for lesson in LESSONS.values():
        for queue in lesson.queues:
            channel.queue_declare(queue, durable=True)  # it isn't a quorum queue
        for exchange in lesson.exchanges:
            channel.exchange_declare(exchange, "direct", auto_delete=True)
    text = documented("PRECONDITION_FAILED - inequivalent arg")
    for process in start_all(KINDS).values():
        check_exits_with_one_line(process, text)


def test_consumer_of_a_deleted_queue_exits_with_one_line(start_all, broker, channel):
    def delete_queue(script):  # a private one, because only its owner can do that
        consume = "channel.start_consuming()"
        return {consume: f"channel.queue_delete(queue=queue)\n{consume}"}

    private = [s for s in CONSUMERS if not lesson_of(s).queues]
    processes = start_all({*CONSUMERS} - {*private})
    for process in processes.values():
        process.wait_until_ready()
    for script in processes:  # one is enough: the consumer in ordered has two
        channel.queue_delete(lesson_of(script).queues[0])
    processes |= start_all(private, edits=delete_queue)
    line = documented("cancelled our consumer")
    for process in processes.values():
        check_exits_with_one_line(process, line, "Was the queue deleted")


def test_ctrl_c_ends_a_consumer_whose_broker_has_gone_silent(start_all, broker):
    processes = start_all(set(KINDS) & set(CONSUMERS))
    for process in processes.values():
        process.wait_until_ready()
    with broker.frozen():
        for process in processes.values():
            assert process.stop(signal.SIGINT) == 0, process
            assert process.errors == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_script_that_is_connecting(start_all, signum):
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        url = f"amqp://127.0.0.1:{server.getsockname()[1]}/%2F?stack_timeout=60"
        processes = start_all(KINDS, url=url)
        clients = [server.accept()[0] for _ in processes]
        assert all(client.recv(99) for client in clients)  # each waits for a response
        for script, process in processes.items():
            # long_tasks handles SIGTERM only once it has connected.
            clean = signum == signal.SIGINT or script in RECONNECTING
            expected = [0] if clean and script in CONSUMERS else [128 + signum, -signum]
            assert process.stop(signum) in expected, process
            assert all("[!] Not confirmed" in line for line in process.errors), process


def test_bug_in_the_readers_code_is_a_traceback_with_its_line(start_all):
    def add_bug(script):
        (line,) = re.findall(r"channel = .*connection\.channel\(.*", SOURCES[script])
        # An OSError, because that's easily taken for a lost connection.
        return {line: f"{line}\nopen('no-file')"}

    for process in start_all(KINDS, edits=add_bug).values():
        assert process.wait() == 1, process
        assert process.count("Traceback"), process
        assert process.count("open('no-file')"), process
        assert not process.count("RabbitMQ", "Retrying"), process


@pytest.mark.usefixtures("start")  # deletes the queue
@pytest.mark.parametrize("lesson", ["simple", "advanced/reconnect"])
def test_closed_output_is_not_blamed_on_the_broker(broker, lesson):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, ROOT / lesson / "consumer.py"],
        env=os.environ | {"AMQP_URL": broker.url},
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
    )
    os.close(write)
    assert process.returncode != 0
    assert documented("BrokenPipeError") in process.stderr
    assert "RabbitMQ" not in process.stderr


# The frame. It's copied into each script, so one script shows what it does for all.
FRAME = "# Skip this on a first read: "
# simple connects in main(). long_tasks exits after its task.
CONNECT = {s for s in SCRIPTS if not s.startswith("simple/")}
CONNECT -= {*RECONNECTING, *SERVERS}
USUAL = CONNECT - {LONG_TASKS}


@pytest.mark.parametrize(
    ("scripts", "start", "end"),
    [
        (USUAL & {*PRODUCERS}, FRAME, "$"),
        (USUAL & {*CONSUMERS}, FRAME, "$"),
        (["simple/consumer.py", "fanout/consumer.py"], "if __name__", "$"),
        (["simple/producer.py", "fanout/producer.py"], "if __name__", "$"),
        (CONNECT, r"def connect\(\)", "if __name__"),
        (RECONNECTING, r"def parameters\(", "def connect"),
        (RECONNECTING, r"def retry\(", "if __name__"),
    ],
)
def test_frame_is_the_same_in_every_script_of_its_kind(scripts, start, end):
    part = re.compile(f"{start}.*?{end}", re.DOTALL)
    assert len({part.findall(SOURCES[script])[0] for script in scripts}) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_needs_only_pika_and_the_standard_library(script):
    assert SOURCES[script].startswith(
        '# /// script\n# requires-python = ">=3.10"\n'
        '# dependencies = ["pika>=1.3,<1.5"]\n# ///\n'
    )
    imports = re.findall(r"(?m)^\s*(?:import|from) (\w+)", SOURCES[script])
    assert set(imports) - sys.stdlib_module_names == {"pika"}


def test_script_runs_alone_with_uv(tmp_path):
    shutil.copy(ROOT / "fanout/producer.py", tmp_path / "alone.py")
    done = subprocess.run(
        [sys.executable, "-m", "uv", "run", "--no-project", "alone.py"],
        cwd=tmp_path,
        env=os.environ | {"AMQP_URL": "nonsense"},
        capture_output=True,
        text=True,
        timeout=80,
    )
    assert "AMQP_URL" in done.stderr, done.stderr


def test_missing_pika_is_on_the_page():
    command = [sys.executable, "-S", "-I", str(ROOT / "simple/producer.py")]
    errors = subprocess.run(command, capture_output=True, text=True).stderr
    assert errors.endswith(documented("No module named 'pika'") + "\n")
