"""tools/: the demo and the broker's commands, as you type them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading

import pytest
from broker import NativeBroker, free_port, run, wait_until
from demo import run_terminals
from lessons import LESSONS
from pages import Block
from script import ROOT

# Where nothing of ours listens, unless it listens on all interfaces.
OTHER_ADDRESS = "127.0.0.2"


def test_every_lesson_has_an_entry():
    scripts = [*ROOT.glob("*/consumer.py"), *ROOT.glob("advanced/*/consumer.py")]
    folders = {script.parent.relative_to(ROOT).as_posix() for script in scripts}
    assert set(LESSONS) == folders


@pytest.mark.usefixtures("start")  # deletes the queue
def test_demo_fails_when_a_script_prints_something_else(broker):
    text = "$ python simple/producer.py\n [x] Sent '兔子' * 9"
    with pytest.raises(AssertionError, match="page:1 shows"):
        run_terminals([Block("page", 1, "console", text, "", [], "")], broker.url)


def test_demo_rejects_unknown_lesson(start):
    assert start("tools/demo.py", "no-such-lesson").wait() == 2


def test_demo_refuses_a_broker_that_it_did_not_start(start):
    demo = start("tools/demo.py", "simple")
    assert demo.wait() == 1
    assert len(demo.errors) == 1
    assert "AMQP_URL" in demo.errors[0]


def test_port_belongs_to_one_process(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tools"))
    port = free_port()
    code = "from broker import free_port; print(free_port())"
    assert int(run(sys.executable, "-c", code)) != port


@pytest.mark.faults
def test_interrupted_demo_leaves_nothing(start, tmp_path):
    # A path that RabbitMQ's scripts can't have makes no difference here, and neither do
    # another node's settings in our environment.
    project, temporary = tmp_path / "a b (文档)", tmp_path / "temporary"
    for name in ("tools", "work_queue"):
        shutil.copytree(ROOT / name, project / name)
    shutil.copy(ROOT / "docker-compose.yml", project)
    temporary.mkdir()
    demo = start(
        str(project / "tools/demo.py"),
        "work_queue",
        url="",
        TMPDIR=str(temporary),
        RABBITMQ_NODENAME="other@localhost",
        RABBITMQ_CONFIG_FILE="/no/such/file",
    )
    demo.wait_for("[x] Received", timeout=60)
    port = int(re.search(r"on localhost:(\d+)", demo.output[0])[1])
    projects = docker_projects(port)
    demo.process.send_signal(signal.SIGINT)
    assert demo.stop(signal.SIGTERM, timeout=60) == 130  # again, as the impatient do
    assert list(temporary.iterdir()) == []
    # It's in each process's arguments or, with "e", in its environment.
    assert str(temporary) not in run("ps", "axeww")
    for name in projects:
        for kind in (["container", "ls", "-a"], ["volume", "ls"], ["network", "ls"]):
            label = f"label=com.docker.compose.project={name}"
            assert run("docker", *kind, "-q", "--filter", label) == ""


def docker_projects(port: int) -> list[str]:
    """Return the Compose project that publishes the port, if any."""
    if os.environ.get("BROKER") == "native" or not shutil.which("docker"):
        return []
    label = '{{.Label "com.docker.compose.project"}}'
    command = ["docker", "ps", "--filter", f"publish={port}", "--format", label]
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


@pytest.mark.faults
def test_interrupted_tests_leave_nothing(broker, tmp_path):
    if not isinstance(broker, NativeBroker):
        return  # we couldn't tell its containers from those of other tests
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-n", "1", "tests/test_fanout.py"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: list(tmp_path.glob("*/rabbit.log")), "a node", 60)
    os.killpg(process.pid, signal.SIGHUP)  # as a terminal does that is closed
    process.wait(60)
    wait_until(
        lambda: not list(tmp_path.glob("rabbitmq-by-example-*")), "no folder", 60
    )
    assert str(tmp_path) not in run("ps", "-ww", "-e", "-o", "args")


def test_broker_listens_on_loopback_only(broker):
    ports = [broker.port]
    if isinstance(broker, NativeBroker):
        variables = ("ERL_EPMD_PORT", "RABBITMQ_DIST_PORT")
        ports += [int(broker.environment[name]) for name in variables]
    for port in ports:
        socket.create_connection(("127.0.0.1", port)).close()
        with pytest.raises(OSError, match=r"refused|assign|unreachable|timed out"):
            socket.create_connection((OTHER_ADDRESS, port), timeout=5)


def test_native_broker_reads_only_its_own_files(broker):
    if not isinstance(broker, NativeBroker):
        return  # an image has its own /etc/rabbitmq
    assert "/etc/rabbitmq" not in broker.log()
    assert f"{broker.folder}/rabbitmq.conf" in broker.log()


def error_lines(start, command: str, **environment: str) -> list[str]:
    """Run tools/broker.py until it fails, and return what it prints."""
    process = start("tools/broker.py", command, **environment)
    assert process.wait() == 1, process
    assert process.output == []
    return process.errors


def test_native_broker_names_a_path_that_it_cannot_use(start, tmp_path):
    folder = tmp_path / "文档"
    folder.mkdir()
    environment = {"BROKER": "native", "TMPDIR": str(folder)}
    demo = start("tools/demo.py", "simple", url="", **environment)
    assert demo.wait() == 1
    [line] = demo.errors
    assert f"can't run in {folder}" in line
    assert list(folder.iterdir()) == []


def test_broker_that_is_already_running_is_left_alone(start, broker):
    assert error_lines(start, "run", AMQP_PORT=str(broker.port)) == [
        f"broker: A RabbitMQ is already running on localhost:{broker.port}."
    ]


def test_port_that_another_program_uses(start):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.recv(100)

        thread = threading.Thread(target=answer)
        thread.start()
        port = server.getsockname()[1]
        lines = error_lines(start, "run", AMQP_PORT=str(port))
        thread.join()
    assert lines == [
        f"broker: Another program uses port {port}. Stop it, or set AMQP_PORT."
    ]


@pytest.mark.parametrize("port", ["abc", "0", "65536"])
def test_invalid_port(start, port):
    assert error_lines(start, "run", AMQP_PORT=port) == [
        f"broker: AMQP_PORT must be a number from 1 to 65535, not '{port}'"
    ]


def test_invalid_kind_of_broker(start):
    assert error_lines(start, "install", BROKER="podman") == [
        "broker: BROKER must be docker or native, not 'podman'"
    ]


DENIED = "permission denied while trying to connect to the Docker daemon socket"


@pytest.mark.parametrize(
    ("docker", "expected"),
    [
        (f"echo '{DENIED}' >&2; exit 1", DENIED),
        ('[ "$1" = version ] || echo 1.29.2', "Docker Compose 2 or later"),
        ('[ "$1" = version ] || echo podman-compose version 1.5.0', "podman-compose"),
        ("exit 1", "docker version"),
    ],
    ids=["denied", "old compose", "podman-compose", "unknown"],
)
def test_docker_failure_is_one_line_with_its_reason(start, tmp_path, docker, expected):
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\n{docker}\n")
    program.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    [line] = error_lines(start, "install", BROKER="docker", PATH=path)
    assert expected in line
    assert "export BROKER=native" in line


def test_install_does_nothing_when_a_broker_is_here(start):
    install = start("tools/broker.py", "install")
    assert (install.wait(), install.output, install.errors) == (0, [], [])


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name
)
def test_interrupted_download_leaves_nothing(tmp_path, signum):
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 60\n")
    apt.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", "import broker; broker.exit_on_error(broker.unpack)"],
        env=os.environ
        | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT / "tools")}
        | {"PATH": f"{apt.parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
    )
    wait_until((tmp_path / "started").exists, "the download", 30)
    process.send_signal(signum)
    assert process.wait(30) == 130
    assert list((tmp_path / "cache" / "rabbitmq-by-example").iterdir()) == []
