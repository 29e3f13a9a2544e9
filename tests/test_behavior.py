"""How every script behaves when something goes wrong. CONTRIBUTING.md has the table.

Each test starts all the scripts it's about side by side, then looks at each of them.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading

import pika
import pytest
from broker import wait_until
from conftest import crash_with_message, wait_for_message_count
from lessons import LESSONS, SCRIPTS
from pages import blocks, commands, pattern
from script import ROOT
from test_pages import documented

PASSWORD = "not-for-your-eyes"
SOURCES = {script: (ROOT / script).read_text() for script in SCRIPTS}
CONSUMERS = [script for script in SCRIPTS if script.endswith("consumer.py")]
PRODUCERS = [script for script in SCRIPTS if script.endswith("producer.py")]
RECONNECTING = [script for script in SCRIPTS if "AMQP_URL.split" in SOURCES[script]]
PLAIN = [script for script in SCRIPTS if script not in RECONNECTING]
# One script of each kind. The others have the same boilerplate: see below.
KINDS = ["simple/producer.py", "fanout/consumer.py", "rpc/producer.py", *RECONNECTING]


def arguments(script):
    """Return the arguments with which the lesson's page first starts a script."""
    page = f"{script.rpartition('/')[0]}/README.md"
    typed = [
        command for block in blocks([page], "console") for command, _ in commands(block)
    ]
    return next(shlex.split(c)[2:] for c in typed if c.split()[1] == script)


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


@contextlib.contextmanager
def silent_server():
    """Accept connections on a port of 127.0.0.1, and send nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def answering_server(answer):
    """Accept connections on a port of 127.0.0.1. Answer and close, or reset them."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:

        def serve():
            with contextlib.suppress(OSError):  # the server is closed
                while True:
                    client, _ = server.accept()
                    if answer:
                        client.recv(4096)
                        client.sendall(answer)
                    else:  # linger for 0 seconds: close() sends a reset
                        linger = struct.pack("ii", 1, 0)
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextlib.contextmanager
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


# What goes wrong, a URL for it, and what the line contains.
FAILURES = {
    "refused": (
        closed_port,
        "amqp://guest:{}@127.0.0.1:{}/%2F",
        documented("Connection refused"),
    ),
    "unknown host": (
        closed_port,
        "amqp://guest:{}@nowhere.invalid:{}/%2F",
        documented("gaierror"),
    ),
    "impossible host": (closed_port, "amqp://guest:{}@a..b:{}/%2F", "Unicode"),
    "silence": (
        silent_server,
        "amqp://guest:{}@127.0.0.1:{}/%2F?stack_timeout=1",
        documented("StackTimeout"),
    ),
    "reset": (
        lambda: answering_server(b""),
        "amqp://guest:{}@127.0.0.1:{}/%2F",
        "Error",
    ),
    "TLS reset": (
        lambda: answering_server(b""),
        "amqps://guest:{}@127.0.0.1:{}/%2F",
        "Error",
    ),
    "no TLS": (
        lambda: answering_server(b"AMQP\0\0\x09\1"),
        "amqps://guest:{}@127.0.0.1:{}/%2F",
        "WRONG_VERSION_NUMBER",
    ),
    "HTTP": (
        lambda: answering_server(b"HTTP/1.1 4"),
        "amqp://guest:{}@127.0.0.1:{}/",
        documented("IncompatibleProtocolError"),
    ),
}


@pytest.fixture(params=FAILURES)
def failure(request):
    """A URL on which no script can connect, although it might later, and why not."""
    server, url, reason = FAILURES[request.param]
    with server() as port:
        yield url.format(PASSWORD, port), reason


def test_failed_connection_is_one_line(start_all, failure):
    url, reason = failure
    texts = "Can't connect to RabbitMQ", reason, "Is it running?"
    (process,) = start_all(["fanout/consumer.py"], url=url).values()
    check_exits_with_one_line(process, *texts)


def test_reconnecting_script_retries_until_it_is_stopped(start_all):
    with closed_port() as port:
        url = FAILURES["refused"][1].format(PASSWORD, port)
    for script, process in start_all(RECONNECTING, url=url).items():
        process.wait_for("Retrying.", times=2)
        status = process.stop(signal.SIGINT)
        assert status == (0 if script in CONSUMERS else 130), process
        line = documented("Not confirmed: …").removesuffix("…")
        assert (line in process.errors[-1]) == (script in PRODUCERS), process


@pytest.mark.parametrize("failure", ["refused", "silence", "HTTP"], indirect=True)
def test_reconnecting_script_tries_each_node(start_all, failure, broker):
    urls = f"{failure[0]},{broker.url}"
    scripts = ["work_queue/consumer.py", "advanced/confirms/producer.py"]
    for script, process in start_all(scripts, url=urls).items():
        if script in CONSUMERS:
            process.wait_until_ready()
        else:
            assert process.wait() == 0, process
        assert process.count("Retrying.") == 1, process
        assert PASSWORD not in str(process)


def broken(url, **parts):
    """Return the URL with another user, password, or vhost."""
    node = pika.URLParameters(url)
    user, password = parts.get("user", "guest"), parts.get("password", "guest")
    return (
        f"amqp://{user}:{password}@{node.host}:{node.port}/{parts.get('vhost', '%2F')}"
    )


def test_wrong_password_is_one_line(start_all, broker):
    url = broken(broker.url, password=PASSWORD)
    for process in start_all(KINDS, url=url).values():
        check_exits_with_one_line(
            process,
            documented("ACCESS_REFUSED - Login was refused"),
            "password…right?",
        )


def test_unknown_vhost_is_one_line(start_all, broker):
    url = broken(broker.url, vhost="nowhere")
    for process in start_all(KINDS, url=url).values():
        check_exits_with_one_line(
            process, documented("NOT_ALLOWED - vhost … not found"), "vhost right?"
        )


INVALID_URLS = [
    "localhost",
    "localhost:5672",
    "amqp://user@host",
    "ftp://guest:{}@localhost",
    "amqp:/guest:{}@localhost:x/",
    "amqp://guest:{}@localhost:port/%2F",
    "amqp://guest:{}@localhost:99999/%2F",
    "amqp://guest:a#{}@localhost:5672/%2F",
    "amqp://guest:a/{}@localhost:5672/%2F",
    "amqp://guest:a?{}@localhost:5672/%2F",
    "amqp://[::1",
    "amqp://guest:{}@localhost/%2F?heartbeat=often",
    "amqps://guest:{}@localhost/%2F?ssl_options=nonsense",
]


@pytest.mark.parametrize("script", KINDS)
def test_invalid_url_shows_what_a_url_looks_like(start_all, script):
    # Every script reads its URL with the same lines, so each kind gets some of them.
    for url in INVALID_URLS[KINDS.index(script) :: len(KINDS)]:
        (process,) = start_all([script], url=url.format(PASSWORD)).values()
        text = documented("AMQP_URL: It should look like …")
        check_exits_with_one_line(process, text, "amqp://user:password@host:5672/%2F")


def test_unknown_url_parameter_is_named(start_all, broker):
    for process in start_all(KINDS, url=f"{broker.url}?hartbeat=5").values():
        check_exits_with_one_line(
            process, "AMQP_URL", documented("Unknown URL parameter"), "hartbeat"
        )


@pytest.fixture
def declare_otherwise(channel):
    """Declare every queue and exchange of the lessons with different arguments."""
    for lesson in LESSONS.values():
        for queue in lesson.queues:
            channel.queue_declare(queue, durable=True, arguments={"x-max-length": 99})
        for exchange in lesson.exchanges:
            channel.exchange_declare(exchange, "direct", auto_delete=True)


def test_message_is_not_called_sent_before_its_confirm(start, tmp_path):
    """The queue can be deleted while we publish."""
    others = {"simple/producer.py", "rpc/producer.py", "advanced/confirms/producer.py"}
    line = "channel.confirm_delivery()"
    for script in set(PRODUCERS) - others:
        lesson = LESSONS[script.rpartition("/")[0]]
        delete = "".join(f"; channel.queue_delete({name!r})" for name in lesson.queues)
        assert line in SOURCES[script]
        copy = tmp_path / script.replace("/", "_")
        copy.write_text(SOURCES[script].replace(line, line + delete))
        process = start(str(copy), *arguments(script), cwd=tmp_path)
        assert process.wait() == 1, process
        assert not process.count("[x] Sent"), process
        assert re.search("UnroutableError|Not delivered", process.errors[-1]), process


@pytest.mark.usefixtures("declare_otherwise")
def test_refused_declaration_is_one_line_and_not_retried(start_all):
    declaring = [script for script in SCRIPTS if "_declare(" in SOURCES[script]]
    assert set(SCRIPTS) - set(declaring) == {"rpc/producer.py"}
    for process in start_all(set(KINDS) & set(declaring)).values():
        check_exits_with_one_line(
            process, documented("PRECONDITION_FAILED - inequivalent arg")
        )


def test_idle_consumer_uses_nothing_deprecated_and_exits_on_sigterm(start_all, broker):
    processes = start_all(CONSUMERS)
    for process in processes.values():
        process.wait_until_ready()
    if not broker.before(3, 11):  # which has no list
        options = ("--used", "--formatter", "csv", "--silent")
        used = broker.ctl("list_deprecated_features", *options)
        # The management plugin uses this one itself.
        names = set(re.findall(r'(?m)^"?(\w+)', used))
        assert names <= {"name", "management_metrics_collection"}, used
    # One that doesn't acknowledge has auto_ack: otherwise, the broker would keep each
    # message until that consumer exits.
    count = sum("basic_ack(" not in SOURCES[script] for script in CONSUMERS)

    def right():  # once the broker has noticed that an earlier test's have exited
        return broker.ctl("list_consumers", "ack_required").count("false") == count

    wait_until(right, f"{count} consumers with auto_ack", 20)
    for script, process in processes.items():
        # 143 in a shell. A worker exits by itself, after its current task.
        expected = 0 if script in RECONNECTING else -signal.SIGTERM
        assert process.stop(signal.SIGTERM) == expected, process
        assert process.errors == []


def test_consumer_of_a_deleted_queue_exits_with_one_line(start_all, channel):
    lessons = [lesson for lesson in LESSONS if LESSONS[lesson].queues]
    processes = start_all([f"{lesson}/consumer.py" for lesson in lessons]).values()
    for lesson, process in zip(lessons, processes, strict=True):
        process.wait_until_ready()
        channel.queue_delete(LESSONS[lesson].queues[0])
        line = "The broker cancelled our consumer. Was the queue deleted"
        check_exits_with_one_line(process, line)


@pytest.mark.parametrize(
    ("lesson", "queue"),
    [
        ("advanced/confirms", "confirms"),
        ("advanced/dead_letter", "dead_orders"),
        ("advanced/retry", "dead_emails"),
    ],
)
def test_message_can_return_to_the_queue_any_number_of_times(
    start, broker, channel, lesson, queue
):
    """RabbitMQ 4 would delete a message that has returned more than 20 times."""
    start(f"{lesson}/consumer.py").wait_until_ready().kill()
    channel.basic_publish("", queue, b"x")
    for _ in range(25):
        assert crash_with_message(broker, queue)[2] == b"x"
    wait_for_message_count(1, channel, queue)


def test_ctrl_c_ends_a_consumer_whose_broker_has_gone_silent(start_all, broker):
    processes = start_all(set(KINDS) & set(CONSUMERS))
    for process in processes.values():
        process.wait_until_ready()
    broker.freeze()
    try:
        for process in processes.values():
            assert process.stop(signal.SIGINT, timeout=5) == 0, process
            assert process.errors == []
    finally:
        broker.thaw()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_script_that_is_connecting(start_all, signum):
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        url = f"amqp://127.0.0.1:{server.getsockname()[1]}/%2F"
        processes = start_all(KINDS, url=url)
        clients = [server.accept()[0] for _ in processes]
        assert all(
            client.recv(99) for client in clients
        )  # each now waits for an answer
        for script, process in processes.items():
            status = process.stop(signum, timeout=5)
            graceful = signum == signal.SIGINT or script in RECONNECTING
            expected = (
                [0] if script in CONSUMERS and graceful else [128 + signum, -signum]
            )
            assert status in expected, process
            unconfirmed = script in PRODUCERS and script in RECONNECTING
            assert len(process.errors) == (1 if unconfirmed else 0), process


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_producer_has_a_nonzero_status_and_prints_what_is_unconfirmed(
    start, broker, signum
):
    """Only these two have a long list to send. The others were stopped above."""
    many = [f"task {i}" for i in range(10_000)]
    endless = {"simple/producer.py": ["x", "9999999"], "work_queue/producer.py": many}
    for script, some in endless.items():
        process = start(script, *some)
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            wait_for_some_messages(connection, script)
        assert process.stop(signum) in (128 + signum, -signum), process
        if script == "work_queue/producer.py":
            pattern = r" \[!\] Not confirmed: 'task (\d+)' and (\d+) more"
            first, more = map(int, re.fullmatch(pattern, process.errors[-1]).groups())
            assert first + 1 + more == len(many), process
            # The signal can come between a confirm and its line.
            assert first - len(process.output) in (0, 1), process


def wait_for_some_messages(connection, script):
    queue = LESSONS[script.rpartition("/")[0]].queues[0]

    def some():
        channel = connection.channel()
        with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):  # no queue yet
            return channel.queue_declare(queue, passive=True).method.message_count

    wait_until(some, f"messages in {queue}", 20)


def insert(script, after, line, tmp_path):
    """Copy a script, and add a line after the lines that contain a text."""
    copy = tmp_path / f"copy of {script.replace('/', ' ')}"
    pattern = rf"(?m)^( *).*{re.escape(after)}.*$"
    source, count = re.subn(pattern, rf"\g<0>\n\g<1>{line}", SOURCES[script])
    assert count, (script, after)
    copy.write_text(source)
    return str(copy)


def test_bug_in_the_readers_code_is_a_traceback_with_its_line(start, tmp_path, broker):
    processes = {}
    for script in KINDS:
        # An OSError, because that's easily taken for a lost connection.
        copy = insert(
            script, "channel = connection.channel(", "open('no-file')", tmp_path
        )
        processes[script] = start(
            copy, *arguments(script), url=broker.url, cwd=tmp_path
        )
    for process in processes.values():
        assert process.wait() == 1, process
        assert process.count("Traceback"), process
        assert process.count("open('no-file')"), process
        assert not process.count("RabbitMQ", "Retrying"), process


def test_full_disk_is_not_blamed_on_the_broker(tmp_path, broker, start):
    """A traceback, because it's not the broker's: nothing that RabbitMQ could cure."""
    env = os.environ | {"AMQP_URL": broker.url}
    processes = {}
    with open("/dev/full", "w") as full:
        for script in set(KINDS) & set(CONSUMERS):
            command = [sys.executable, ROOT / script, *arguments(script)]
            processes[script] = subprocess.Popen(
                command,
                env=env,
                cwd=tmp_path,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
    for script, process in processes.items():
        _, errors = process.communicate(timeout=30)
        assert process.returncode != 0, script
        assert "No space left on device" in errors, (script, errors)
        assert "RabbitMQ" not in errors, (script, errors)


@pytest.mark.parametrize("script", ["simple/consumer.py", "work_queue/consumer.py"])
def test_closed_output_is_not_blamed_on_the_broker(start, broker, script):
    read, write = os.pipe()
    command = [sys.executable, ROOT / script]
    env = os.environ | {"AMQP_URL": broker.url}
    with subprocess.Popen(
        command, env=env, stdout=write, stderr=subprocess.PIPE, text=True
    ) as consumer:
        os.close(write)
        os.read(read, 100)  # the line that says ready, and then nothing more: | head -1
        os.close(read)
        start(script.replace("consumer", "producer"), "x").wait()
        _, errors = consumer.communicate(timeout=30)
    assert consumer.returncode != 0
    assert "BrokenPipeError" in errors
    assert "RabbitMQ" not in errors


def test_any_body_can_be_printed_to_an_old_terminal(start):
    consumer = start("simple/consumer.py", PYTHONIOENCODING="ascii").wait_until_ready()
    assert start("simple/producer.py", PYTHONIOENCODING="ascii").wait() == 0
    consumer.wait_for(r"Received '\u5154\u5b500'")


def test_help_describes_every_argument(start):
    assert start("simple/producer.py", "--help", url="nonsense").wait() == 0
    scripts = [script for script in SCRIPTS if "ArgumentParser" in SOURCES[script]]
    assert set(PRODUCERS) <= set(scripts)
    for script in scripts:
        calls = re.findall(r"add_argument\((?:[^()]|\([^()]*\))*\)", SOURCES[script])
        assert all("help=" in call for call in calls), script


def part(script, start, end=None):
    """Return a script's source from the text that starts it to the one that ends it."""
    source = SOURCES[script]
    first = source.index(start)
    return source[first : source.index(end, first) if end else None]


@pytest.mark.parametrize("scripts", [PRODUCERS, CONSUMERS])
def test_last_part_is_the_same_in_every_script_of_its_kind(scripts):
    plain = [script for script in scripts if script in PLAIN]
    assert len({part(script, 'if __name__ == "__main__":') for script in plain}) == 1
    # In simple, ConnectionParameters come first. In rpc, there's a time limit.
    usual = [s for s in plain if s not in ("rpc/producer.py", f"simple/{s[7:]}")]
    assert len({part(script, "# The same in every ") for script in usual}) == 1


@pytest.mark.parametrize(
    ("scripts", "start", "end"),
    [
        (["simple/producer.py", "simple/consumer.py"], "def connect(", "if __name__"),
        (["fanout/producer.py", "fanout/consumer.py"], "def connect(", "if __name__"),
        (RECONNECTING[:2], "def connect(", "if __name__"),
        (RECONNECTING, "def parameters(", "def connect("),
        (RECONNECTING, "def retry(", "if __name__"),
    ],
)
def test_scripts_connect_with_the_same_lines(scripts, start, end):
    assert len({part(script, start, end) for script in scripts}) == 1


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
