"""tools/: the demo and the broker's commands, as you type them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import connect
from tests.servers import answering_server, silent_server
from tools.broker import broker_on
from tools.broker.base import free_port
from tools.broker.debian import DEBIAN
from tools.broker.docker import DockerBroker
from tools.broker.native import NativeBroker
from tools.common import ROOT, ToolError, run, wait_until
from tools.demo import run_terminals
from tools.lessons import LESSONS
from tools.pages import Block

# Where nothing of ours listens, unless it listens on all interfaces.
OTHER_ADDRESS = "127.0.0.2"


def popen(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen:
    """Start `python -m ARGUMENTS`."""
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "AMQP_URL"} | environment,
        stdin=subprocess.DEVNULL,
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


def copy_of_the_project(folder, *lessons):
    for name in ("tools", *lessons):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "docker-compose.yml", folder)
    return folder


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


@pytest.mark.usefixtures("broker")  # it can run here
def test_demo_counts_the_lessons_that_failed(tmp_path):
    project = copy_of_the_project(tmp_path, "simple", "fanout")
    page = project / "simple" / "README.md"
    page.write_text(page.read_text().replace("* 10", "* 9"))
    status, output, errors = finish(
        popen("tools.demo", "simple", "fanout", cwd=project)
    )
    assert status == 1
    assert errors == " [!] These lessons failed: simple\n"
    assert output.count("terminal 1 | $ python fanout/") == 1


def test_demo_rejects_unknown_lesson():
    assert finish(popen("tools.demo", "no-such-lesson"))[0] == 2


def test_demo_refuses_a_broker_that_it_did_not_start(broker):
    assert "AMQP_URL" in error("tools.demo", "simple", AMQP_URL=broker.url)


@pytest.mark.faults
def test_interrupted_demo_leaves_nothing(tmp_path):
    # A path that RabbitMQ's scripts can't have makes no difference here, and neither do
    # another node's settings in our environment.
    project, temporary = tmp_path / "a b (文档)", tmp_path / "temporary"
    project.mkdir()
    temporary.mkdir()
    demo = popen(
        "tools.demo",
        "work_queue",
        cwd=copy_of_the_project(project, "work_queue"),
        TMPDIR=str(temporary),
        RABBITMQ_NODENAME="other@localhost",
        RABBITMQ_CONFIG_FILE="/no/such/file",
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
    # It's in each process's arguments or, with "e", in its environment.
    assert str(temporary) not in run("ps", "axeww")
    for name in projects:
        for kind in (["container", "ls", "-a"], ["volume", "ls"], ["network", "ls"]):
            label = f"label=com.docker.compose.project={name}"
            assert run("docker", *kind, "-q", "--filter", label) == ""


@pytest.mark.faults
@pytest.mark.usefixtures("only_native")  # others' containers look like ours
def test_interrupted_tests_leave_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n",
        "1",
        "tests/lessons/test_fanout.py",
    ]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: list(tmp_path.glob("*/rabbit.log")), "a node", 60)
    os.killpg(process.pid, signal.SIGHUP)  # as a terminal does that is closed
    process.wait(60)
    wait_until(lambda: not list(tmp_path.glob("rabbitmq-*")), "no folder", 60)
    assert str(tmp_path) not in run("ps", "-ww", "-e", "-o", "args")


# The broker.


def test_version_comes_from_the_connection(broker):
    version = broker.get("overview")["rabbitmq_version"]
    assert version.startswith(".".join(map(str, broker.version)))


def test_broker_listens_on_loopback_only(broker):
    ports = [broker.port, broker.ui_port]
    if isinstance(broker, NativeBroker):
        variables = ("ERL_EPMD_PORT", "RABBITMQ_DIST_PORT")
        ports += [int(broker.environment[name]) for name in variables]
    for port in ports:
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(OSError, match=r"refused|assign|unreachable|timed out"):
            socket.create_connection((OTHER_ADDRESS, port), timeout=5)


@pytest.mark.usefixtures("only_native")
def test_native_broker_reads_only_its_own_files(broker):
    settings = broker.ctl("environment") + broker.log()
    assert "/etc/rabbitmq" not in settings
    assert f"{broker.folder}/rabbitmq.conf" in settings


def test_port_belongs_to_one_process():
    port = free_port()
    code = "from tools.broker.base import free_port; print(free_port())"
    other = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)
    assert int(other) != port


@pytest.mark.faults  # it starts other brokers
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("only_native")
def test_run_keeps_its_data_and_its_port(tmp_path):
    cache = tmp_path / "rabbitmq-by-example"
    cache.mkdir()
    if DEBIAN.exists():
        (cache / "debian").symlink_to(DEBIAN)
    port, ui_port = str(free_port()), str(free_port())
    environment = {
        "XDG_CACHE_HOME": str(tmp_path),
        "AMQP_PORT": port,
        "UI_PORT": ui_port,
    }

    def start():
        return popen("tools.broker", "run", **environment)

    def stop(runner):
        runner.send_signal(signal.SIGINT)
        assert finish(runner)[0] == 130

    # Two at the same moment: one of them runs, and the other doesn't say that it does.
    pair = [start(), start()]
    wait_until(lambda: any(process.poll() for process in pair), "an exit")
    pair.sort(key=lambda process: process.poll() or 0)
    runner, other = pair
    try:
        line = f" [!] A broker for localhost:{port} already runs.\n"
        assert finish(other) == (1, "", line)
        assert f"on localhost:{port}, is ready" in runner.stdout.readline()
        broker = NativeBroker(int(port), tmp_path / "unused")  # for its URL
        with connect(broker) as connection:
            connection.channel().queue_declare("kept", durable=True)
        stop(runner)
        runner = start()
        assert "is ready" in runner.stdout.readline()
        with connect(broker) as connection:
            connection.channel().queue_declare("kept", passive=True)
    finally:
        stop(runner)


@pytest.mark.faults  # it starts another broker
@pytest.mark.usefixtures("only_native")
def test_answer_of_another_node_is_not_taken_for_ours(broker, tmp_path):
    ours = NativeBroker(broker.port, tmp_path / "ours")
    try:
        with pytest.raises(ToolError, match="didn't start"):
            ours.start()
    finally:
        ours.remove()


def test_broker_that_is_already_running_is_left_alone(broker):
    line = error("tools.broker", "run", AMQP_PORT=str(broker.port))
    assert line == f" [!] A RabbitMQ is already running on localhost:{broker.port}.\n"


@pytest.mark.parametrize("server", [silent_server, None], ids=["silence", "HTTP"])
def test_port_that_another_program_uses(server):
    with server() if server else answering_server(b"HTTP/1.1 400 Bad\r\n\r\n") as port:
        line = error("tools.broker", "run", AMQP_PORT=str(port))
    assert (
        line == f" [!] Another program uses port {port}. Stop it, or set AMQP_PORT.\n"
    )


DENIED = "permission denied while trying to connect to the Docker daemon socket"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"AMQP_PORT": "abc"}, "AMQP_PORT must be a number from 1 to 65535, not 'abc'"),
        ({"AMQP_PORT": "65536"}, "AMQP_PORT must be a number from 1 to 65535"),
        ({"BROKER": "podman"}, "BROKER must be docker or native, not 'podman'"),
        # Root may write anywhere. Here, even root can't.
        ({"BROKER": "native", "XDG_CACHE_HOME": "/dev/null"}, "Does it belong to you"),
    ],
)
def test_what_a_user_can_cure_is_one_line(variables, expected):
    assert expected in error("tools.broker", "run", **variables)


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        (f"echo '{DENIED}' >&2; exit 1", DENIED),
        ('[ "$1" = version ] || exit 125', "Docker has no Compose plugin. Install it"),
        ('[ "$1" = version ] || echo 1.29.2', "Docker Compose is 1.29.2, but 2 or"),
    ],
    ids=["denied", "no compose", "old compose"],
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


def test_brokers_for_two_ports_are_two_compose_projects(monkeypatch):
    monkeypatch.setattr("tools.broker.uses_docker", lambda: True)
    nodes = [broker_on(port, 15672) for port in (5672, 5673)]
    assert all(isinstance(node, DockerBroker) for node in nodes)
    assert nodes[0]._command != nodes[1]._command


@pytest.mark.usefixtures("broker")  # it can run here
def test_install_does_nothing_when_a_broker_is_here():
    assert finish(popen("tools.broker", "install")) == (0, "", "")


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGHUP], ids=lambda signum: signum.name
)
def test_interrupted_download_leaves_nothing(tmp_path, signum):
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 60\n")
    apt.chmod(0o755)
    code = "from tools.broker.debian import unpack; from tools.common import *; "
    environment = {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": f"{apt.parent}:{os.environ['PATH']}",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code + "exit_on_error(unpack)"],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
    )
    wait_until((tmp_path / "started").exists, "the download")
    process.send_signal(signum)
    assert process.wait(30) == 130
    assert list((tmp_path / "cache" / "rabbitmq-by-example").iterdir()) == []
