"""How every script behaves when something goes wrong. CONTRIBUTING.md has the table.

Each test starts all the scripts it's about side by side, then looks at each of them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pika
import pytest

from tests.helpers import connect, documented
from tests.scripts.sources import (
    GRACEFUL,
    KINDS,
    PLAIN,
    RECONNECTING,
    SENDERS,
    SERVERS,
    SOURCES,
    arguments,
    folder,
)
from tests.servers import answering_server, closed_port, silent_server
from tools.common import ROOT, wait_until
from tools.lessons import CONSUMERS, LESSONS, PRODUCERS, SCRIPTS
from tools.pages import pattern

PASSWORD = "not-for-your-eyes"
RESETTING = partial(answering_server, b"")


@pytest.fixture
def start_all(start, tmp_path):
    """start_all(scripts, url=...) starts them all. Returns {script: ScriptProcess}."""

    def start_all(scripts, **options):
        options.setdefault("cwd", tmp_path)
        return {
            script: start(script, *arguments(script), **options) for script in scripts
        }

    return start_all


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


# What goes wrong: a server, a URL, and what the line contains.
FAILURES: dict[str, tuple[Callable, str, str]] = {
    "refused": (closed_port, "amqp://guest:{}@127.0.0.1:{}/", "Connection refused"),
    "unknown host": (closed_port, "amqp://guest:{}@nowhere.invalid:{}/", "gaierror"),
    "impossible host": (closed_port, "amqp://guest:{}@a..b:{}/", "Unicode"),
    "silence": (
        silent_server,
        "amqp://guest:{}@127.0.0.1:{}/%2F?stack_timeout=1",
        "StackTimeout",
    ),
    "reset": (RESETTING, "amqp://guest:{}@127.0.0.1:{}/", "Error"),
    "TLS reset": (RESETTING, "amqps://guest:{}@127.0.0.1:{}/", "Error"),
    "no TLS": (
        partial(answering_server, b"AMQP\0\0\x09\1"),
        "amqps://guest:{}@127.0.0.1:{}/",
        "WRONG_VERSION_NUMBER",
    ),
    "HTTP": (
        partial(answering_server, b"HTTP/1.1 4"),
        "amqp://guest:{}@127.0.0.1:{}/",
        "IncompatibleProtocolError",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failed_connection_is_one_line(start_all, name):
    server, url, reason = FAILURES[name]
    with server() as port:
        url = url.format(PASSWORD, port)
        (process,) = start_all(["fanout/consumer.py"], url=url).values()
        texts = "Can't connect to RabbitMQ", reason, "Is it running"
        check_exits_with_one_line(process, *texts)


def test_failed_connections_are_on_the_page():
    documented("Connection refused")
    documented("gaierror")
    documented("StackTimeout")
    documented("IncompatibleProtocolError")


def broken(url, **parts):
    """Return the URL with another user, password, or vhost."""
    node = pika.URLParameters(url)
    user, password = parts.get("user", "guest"), parts.get("password", "guest")
    return (
        f"amqp://{user}:{password}@{node.host}:{node.port}/{parts.get('vhost', '%2F')}"
    )


def test_wrong_password_is_one_line(start_all, broker):
    url = broken(broker.url, password=PASSWORD)
    text = documented("ACCESS_REFUSED - Login was refused")
    for process in start_all(KINDS, url=url).values():
        check_exits_with_one_line(process, text, "password…right?")


def test_unknown_vhost_is_one_line(start_all, broker):
    url = broken(broker.url, vhost="nowhere")
    text = documented("NOT_ALLOWED - vhost … not found")
    for process in start_all(KINDS, url=url).values():
        check_exits_with_one_line(process, text, "vhost right?")


def test_vhost_without_permissions_is_one_line(start_all, broker):
    broker.put("vhosts/theirs")
    broker.delete("permissions/theirs/guest")
    try:
        (process,) = start_all(
            ["fanout/consumer.py"], url=broken(broker.url, vhost="theirs")
        ).values()
        text = documented("NOT_ALLOWED - access to vhost …")
        check_exits_with_one_line(process, text, "vhost right?")
    finally:
        broker.delete("vhosts/theirs")


INVALID_URLS = [
    "localhost",
    "localhost:5672",
    "amqp://user@host",
    "ftp://guest:{}@localhost",
    "amqp://guest:{}@localhost:port/%2F",
    "amqp://guest:{}@localhost:99999/%2F",
    "amqp://guest:a#{}@localhost:5672/%2F",
    "amqp://guest:a/{}@localhost:5672/%2F",
    "amqp://guest:a?{}@localhost:5672/%2F",
    "amqp://[::1",
    "amqp://guest:{}@localhost/%2F?heartbeat=often",
    "amqp://guest:{}@localhost/%2F?hartbeat=5",
    "amqps://guest:{}@localhost/%2F?ssl_options=nonsense",
]


@pytest.mark.parametrize("script", [*KINDS, *SERVERS])
def test_invalid_url_shows_what_a_url_looks_like(start_all, script):
    # All scripts read the URL with the same lines, so each kind gets some of them.
    kinds = [*KINDS, *SERVERS]
    text = documented("AMQP_URL should look like …")
    for url in INVALID_URLS[kinds.index(script) :: len(kinds)]:
        (process,) = start_all([script], url=url.format(PASSWORD)).values()
        check_exits_with_one_line(process, text, "amqp://user:password@host:5672/%2F")


def test_message_is_not_called_sent_before_its_confirm(start, tmp_path):
    """The queue can be deleted while we publish."""
    line = "channel.confirm_delivery()\n"
    scripts = [script for script in SENDERS if line in SOURCES[script]]
    assert set(SENDERS) - set(scripts) == {
        "simple/producer.py",
        "rpc/producer.py",
        "advanced/confirms/producer.py",
    }
    for script in scripts:
        queues = LESSONS[folder(script)].queues
        delete = "".join(f"channel.queue_delete({name!r}); " for name in queues)
        copy = tmp_path / script.replace("/", "_")
        copy.write_text(SOURCES[script].replace(line, delete + line))
        process = start(str(copy), *arguments(script), cwd=tmp_path)
        assert process.wait() == 1, process
        assert not process.count("[x] Sent"), process
        assert re.search("UnroutableError|Not delivered", process.errors[-1]), process
    documented("UnroutableError")
    documented("Not delivered: …")


@pytest.fixture
def declare_otherwise(channel):
    """Declare every queue and exchange of the lessons with different arguments."""
    for lesson in LESSONS.values():
        for queue in lesson.queues:
            channel.queue_declare(queue, durable=True, arguments={"x-max-length": 99})
        for exchange in lesson.exchanges:
            channel.exchange_declare(exchange, "direct", auto_delete=True)


@pytest.mark.usefixtures("declare_otherwise")
def test_refused_declaration_is_one_line_and_not_retried(start_all):
    text = documented("PRECONDITION_FAILED - inequivalent arg")
    for process in start_all(KINDS).values():
        check_exits_with_one_line(process, text)


def test_existing_exclusive_queue_is_one_line(start, channel):
    channel.queue_declare("hello", exclusive=True)
    line = documented("RESOURCE_LOCKED")
    check_exits_with_one_line(start("simple/consumer.py"), line)


def test_idle_consumer_uses_nothing_deprecated_and_exits_on_sigterm(start_all, broker):
    processes = start_all(CONSUMERS)
    for process in processes.values():
        process.wait_until_ready()
    if broker.version >= (3, 11):  # 3.10 has no list
        options = ("--used", "--formatter", "csv", "--silent")
        used = broker.ctl("list_deprecated_features", *options)
        # The management plugin uses this one itself.
        names = set(re.findall(r'(?m)^"?(\w+)', used))
        assert names <= {"name", "management_metrics_collection"}, used
    # One that doesn't acknowledge has auto_ack: otherwise, the broker would keep each
    # message until that consumer exits.
    count = sum("basic_ack(" not in SOURCES[script] for script in CONSUMERS)

    def right():  # once the broker has noticed that an earlier test's have exited
        # Not from the HTTP API: it can list consumers that are long gone.
        return broker.ctl("list_consumers", "ack_required").count("false") == count

    wait_until(right, f"{count} consumers with auto_ack", 20)
    for script, process in processes.items():
        # 143 in a shell. The graceful ones exit by themselves.
        expected = 0 if script in GRACEFUL else -signal.SIGTERM
        assert process.stop(signal.SIGTERM) == expected, process
        assert process.errors == []


def test_consumer_of_a_deleted_queue_exits_with_one_line(start_all, broker, channel):
    processes = start_all(CONSUMERS)
    for process in processes.values():
        process.wait_until_ready()
    for queue in broker.queues():
        if not queue.startswith("amq."):  # nobody else can delete a private queue
            channel.queue_delete(queue)
    line = documented("cancelled our consumer")
    for script, process in processes.items():
        if LESSONS[folder(script)].queues:
            check_exits_with_one_line(process, line, "Was the queue deleted")


def test_ctrl_c_ends_a_consumer_whose_broker_has_gone_silent(start_all, broker):
    processes = start_all(set(KINDS) & set(CONSUMERS))
    for process in processes.values():
        process.wait_until_ready()
    with broker.frozen():
        for process in processes.values():
            assert process.stop(signal.SIGINT, timeout=5) == 0, process
            assert process.errors == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_script_that_is_connecting(start_all, signum):
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        url = f"amqp://127.0.0.1:{server.getsockname()[1]}/%2F"
        processes = start_all(KINDS, url=url)
        clients = [server.accept()[0] for _ in processes]
        assert all(client.recv(99) for client in clients)  # each waits for a response
        for script, process in processes.items():
            status = process.stop(signum, timeout=5)
            # long_tasks waits for a task, and there is none yet.
            graceful = signum == signal.SIGINT or script in RECONNECTING
            expected = (
                [0] if script in CONSUMERS and graceful else [128 + signum, -signum]
            )
            assert status in expected, process
            unconfirmed = script in PRODUCERS and script in RECONNECTING
            assert len(process.errors) == (1 if unconfirmed else 0), process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_producer_has_a_nonzero_status(start, broker, signum):
    process = start("simple/producer.py", "x", "9999999")

    def some():
        with (
            connect(broker) as connection,
            contextlib.suppress(pika.exceptions.AMQPError),
        ):
            queue = connection.channel().queue_declare("hello", passive=True)
            return queue.method.message_count

    wait_until(some, "messages in hello")
    assert process.stop(signum) in (128 + signum, -signum), process


def test_bug_in_the_readers_code_is_a_traceback_with_its_line(start, tmp_path):
    processes = []
    for script in KINDS:
        # An OSError, because that's easily taken for a lost connection.
        copy = tmp_path / f"copy of {script.replace('/', ' ')}"
        after = r"(?m)^( *)(channel = .*connection\.channel\(.*)$"
        source, count = re.subn(after, r"\g<0>\n\g<1>open('no-file')", SOURCES[script])
        assert count == 1, script
        copy.write_text(source)
        processes.append(start(str(copy), *arguments(script), cwd=tmp_path))
    for process in processes:
        assert process.wait() == 1, process
        assert process.count("Traceback"), process
        assert process.count("open('no-file')"), process
        assert not process.count("RabbitMQ", "Retrying"), process


@pytest.mark.parametrize("script", ["simple", "advanced/reconnect"])
def test_closed_output_is_not_blamed_on_the_broker(start, broker, script):
    read, write = os.pipe()
    command = [sys.executable, ROOT / script / "consumer.py"]
    env = os.environ | {"AMQP_URL": broker.url}
    with subprocess.Popen(
        command, env=env, stdout=write, stderr=subprocess.PIPE, text=True
    ) as consumer:
        os.close(write)
        os.read(read, 100)  # the line that says ready, and then nothing more: | head -1
        os.close(read)
        start(f"{script}/producer.py", "x").wait()
        _, errors = consumer.communicate(timeout=30)
    assert consumer.returncode != 0
    assert documented("BrokenPipeError") in errors
    assert "RabbitMQ" not in errors


def test_help_describes_every_argument(start):
    assert start("simple/producer.py", "--help", url="nonsense").wait() == 0
    scripts = [script for script in SCRIPTS if "ArgumentParser" in SOURCES[script]]
    assert set(PRODUCERS) <= set(scripts)
    for script in scripts:
        calls = re.findall(r"add_argument\((?:[^()]|\([^()]*\))*\)", SOURCES[script])
        assert all("help=" in call for call in calls), script


# The frame. It's copied into each script, so one script shows what it does for all.


def part(script, start, end=None):
    """Return a script's source from the text that starts it to the one that ends it."""
    source = SOURCES[script]
    first = source.index(start)
    return source[first : source.index(end, first) if end else None]


@pytest.mark.parametrize("scripts", [PRODUCERS, CONSUMERS])
def test_frame_is_the_same_in_every_script_of_its_kind(scripts):
    plain = [script for script in scripts if script in PLAIN]
    # simple connects in main(). These exit after their task, or publish themselves.
    usual = [script for script in plain if not script.startswith("simple/")]
    ends = {
        script: part(script, "# Skip this on a first read: ")
        for script in usual
        if script not in GRACEFUL
    }
    assert len(set(ends.values())) == 1, ends.keys()
    assert (
        len({part(s, "def connect(", "if __name__") for s in plain if s in usual}) == 1
    )


@pytest.mark.parametrize(
    ("start", "end"),
    [("def parameters(", "def connect("), ("def retry(", "if __name__")],
)
def test_reconnecting_scripts_share_their_lines(start, end):
    assert len({part(script, start, end) for script in RECONNECTING}) == 1


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
