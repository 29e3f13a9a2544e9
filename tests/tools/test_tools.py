"""tools/: the demo and the broker's commands, as you type them."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pika
import pytest

from tests.servers import answering_server
from tools.broker.base import free_port
from tools.broker.debian import DEBIAN
from tools.broker.native import NativeBroker
from tools.common import ROOT, ToolError, run, wait_until
from tools.demo import run_terminals
from tools.lessons import LESSONS
from tools.pages import Block


def popen(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen:
    """Start `python -m ARGUMENTS`."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Return its exit status, output and errors."""
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def error(*arguments, **environment):
    """Run a tool that fails, and return the only line that it prints."""
    status, output, errors = finish(popen(*arguments, **environment))
    assert (status, output) == (1, ""), errors
    assert errors.count("\n") == 1, errors
    return errors


@pytest.fixture
def only_native(broker):
    if not isinstance(broker, NativeBroker):
        pytest.skip("It's about a private node on this machine.")


def test_every_lesson_has_an_entry():
    scripts = [*ROOT.glob("*/consumer.py"), *ROOT.glob("advanced/*/consumer.py")]
    folders = {script.parent.relative_to(ROOT).as_posix() for script in scripts}
    assert set(LESSONS) == folders


# The demo.


@pytest.mark.usefixtures("start")  # deletes the queue
@pytest.mark.parametrize(
    "text",
    [
        "$ python simple/producer.py\n [x] Sent '兔子' * 9",  # another line
        "$ python simple/producer.py",  # a line more than shown
        "$ python simple/producer.py a b\n…",  # status 2
    ],
)
def test_demo_fails_when_a_script_does_something_else(broker, text):
    with pytest.raises(ToolError, match="page:1"):
        run_terminals([Block("page", 1, "console", text, "", [], "")], broker.url)


@pytest.mark.faults
def test_interrupted_demo_leaves_nothing(tmp_path):
    # A path that RabbitMQ's scripts can't have makes no difference here, and neither do
    # another node's setting in our environment.
    project, temporary = tmp_path / "a b (文档)", tmp_path / "temporary"
    temporary.mkdir()
    for name in ("tools", "work_queue"):
        shutil.copytree(ROOT / name, project / name)
    shutil.copy(ROOT / "docker-compose.yml", project)
    demo = popen(
        "tools.demo",
        "work_queue",
        cwd=project,
        TMPDIR=str(temporary),
        RABBITMQ_PLUGINS_DIR="/no/such/folder",
    )
    first = demo.stdout.readline()
    port = re.search(r"on localhost:(\d+)", first)[1]
    label = '{{.Label "com.docker.compose.project"}}'
    list_projects = ("docker", "ps", "--filter", f"publish={port}", "--format", label)
    projects = run(*list_projects).split() if "in Docker" in first else []
    while "[x] Received" not in demo.stdout.readline():
        assert demo.poll() is None
    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGTERM)  # again, as the impatient do
    assert finish(demo)[0] == 130
    assert list(temporary.iterdir()) == []
    # It's in each process's arguments or, with "e", in its environment. A child of a
    # node that's killed exits a moment later.
    wait_until(lambda: str(temporary) not in run("ps", "axeww"), "no process")
    for name in projects:
        for kind in (["container", "ls", "-a"], ["volume", "ls"], ["network", "ls"]):
            label = f"label=com.docker.compose.project={name}"
            assert run("docker", *kind, "-q", "--filter", label) == ""


# The broker.


def test_broker_listens_on_loopback_only(broker):
    ports = [broker.port, broker.ui_port]
    if isinstance(broker, NativeBroker):
        variables = ("ERL_EPMD_PORT", "RABBITMQ_DIST_PORT")
        ports += [int(broker.environment[name]) for name in variables]
    for port in ports:
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(OSError, match=r"refused|assign|unreachable|timed out"):
            # It would answer there, too, if it listened on all interfaces.
            socket.create_connection(("127.0.0.2", port), timeout=5)


@pytest.mark.usefixtures("only_native")
def test_native_broker_reads_only_its_own_files(broker):
    settings = broker.ctl("eval", "rabbit_prelaunch:get_context().")
    found = re.findall(r'(\w+) =>\s+"/etc/rabbitmq', settings)
    assert set(found) <= {"config_base_dir"}  # for files that we don't name
    assert f"{broker.folder}/rabbitmq.conf" in settings


@pytest.mark.faults  # it starts other brokers
@pytest.mark.usefixtures("only_native")
def test_run_keeps_its_data_and_its_port(tmp_path):
    port, ui_port = str(free_port()), str(free_port())
    cache = tmp_path / "rabbitmq-by-example"
    cache.mkdir()
    if DEBIAN.exists():
        (cache / "debian").symlink_to(DEBIAN)
    environment = {"XDG_CACHE_HOME": str(tmp_path), "UI_PORT": ui_port}
    for options in ({"durable": True}, {"passive": True}):  # create it, then find it
        runner = popen("tools.broker", "run", AMQP_PORT=port, **environment)
        try:
            assert f"on localhost:{port}, is ready" in runner.stdout.readline()
            parameters = pika.ConnectionParameters(port=port)
            with pika.BlockingConnection(parameters) as connection:
                connection.channel().queue_declare("kept", **options)
        finally:
            runner.send_signal(signal.SIGINT)
            assert finish(runner)[0] == 130


def test_broker_that_is_already_running_is_left_alone(broker):
    line = error("tools.broker", "run", AMQP_PORT=str(broker.port))
    assert line == f" [!] A RabbitMQ is already running on localhost:{broker.port}.\n"


def test_port_that_another_program_uses():
    with answering_server(b"HTTP/1.1 400 Bad\r\n\r\n") as port:
        line = error("tools.broker", "run", AMQP_PORT=str(port))
    expected = f"Another program uses port {port}. Stop it, or set AMQP_PORT."
    assert line == f" [!] {expected}\n"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"AMQP_PORT": "abc"}, "AMQP_PORT must be a number from 1 to 65535, not 'abc'"),
        ({"BROKER": "podman"}, "BROKER must be docker or native, not 'podman'"),
        # Root may write anywhere. Here, even root can't.
        ({"BROKER": "native", "XDG_CACHE_HOME": "/dev/null"}, "Does it belong to you"),
    ],
)
def test_what_a_user_can_cure_is_one_line(variables, expected):
    unused_port = {"AMQP_PORT": str(free_port())}
    assert expected in error("tools.broker", "run", **unused_port | variables)


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        ("echo 'permission denied' >&2; exit 1", "permission denied"),
        ('[ "$1" = version ] || exit 125', "Docker has no Compose plugin. Install it"),
    ],
    ids=["denied", "no compose"],
)
def test_docker_failure_is_one_line_with_its_reason(tmp_path, docker, expected):
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\n{docker}\n")
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    line = error("tools.broker", "install", BROKER="docker", PATH=path)
    assert expected in line
    assert "export BROKER=native" in line


def test_path_that_rabbitmq_cannot_have_is_named(tmp_path):
    folder = tmp_path / "文档"
    folder.mkdir()
    line = error("tools.demo", "simple", BROKER="native", TMPDIR=str(folder))
    assert f"can't run in {folder}" in line
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("broker")  # it can run here
def test_install_does_nothing_when_a_broker_is_here():
    assert finish(popen("tools.broker", "install")) == (0, "", "")
