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

import pika
import psutil
import pytest

from tests.servers import answering_server, silent_server
from tools.broker import broker_on
from tools.broker.base import free_port, server_properties
from tools.broker.debian import DEBIAN
from tools.broker.docker import DockerBroker
from tools.broker.native import NativeBroker
from tools.common import ROOT, ToolError, run, wait_until
from tools.demo import run_terminals
from tools.lessons import LESSONS
from tools.pages import Block

# Where nothing of ours listens, unless it listens on all interfaces.
OTHER_ADDRESS = "127.0.0.2"


class Tool:
    """A running `python -m tools.…`."""

    def __init__(self, *arguments: str, cwd: Path = ROOT, **environment: str) -> None:
        env = {k: v for k, v in os.environ.items() if k != "AMQP_URL"} | environment
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, timeout: float = 60) -> tuple[int, str, str]:
        """Return its exit status, output and errors."""
        output, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, output, errors

    def line(self) -> str:
        """Return its next line of output."""
        assert self.process.stdout
        return self.process.stdout.readline()


def error(*arguments, **environment):
    """Run a tool that fails, and return the only line that it prints."""
    status, output, errors = Tool(*arguments, **environment).finish()
    assert (status, output) == (1, ""), errors
    assert errors.count("\n") == 1, errors
    return errors


@pytest.fixture
def only_native(broker) -> None:
    if not isinstance(broker, NativeBroker):
        pytest.skip("It's about a private node on this machine.")


@pytest.fixture
def cache(tmp_path) -> dict[str, str]:
    """An environment with another cache folder, in which RabbitMQ is installed."""
    folder = tmp_path / "rabbitmq-by-example"
    folder.mkdir()
    if DEBIAN.exists():
        (folder / "debian").symlink_to(DEBIAN)
    return {"XDG_CACHE_HOME": str(tmp_path)}


# The lessons' entries.


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


def test_demo_counts_the_lessons_that_failed(tmp_path, broker):
    project = copy_of_the_project(tmp_path, "simple", "fanout")
    page = project / "simple" / "README.md"
    page.write_text(page.read_text().replace("* 10", "* 9"))
    demo = Tool("tools.demo", "simple", "fanout", cwd=project)
    status, output, errors = demo.finish(120)
    assert status == 1
    assert errors == " [!] These lessons failed: simple\n"
    assert output.count("terminal 1 | $ python fanout/") == 1


def copy_of_the_project(folder: Path, *lessons: str) -> Path:
    for name in ("tools", *lessons):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "docker-compose.yml", folder)
    return folder


def test_demo_rejects_unknown_lesson():
    assert Tool("tools.demo", "no-such-lesson").finish()[0] == 2


def test_demo_refuses_a_broker_that_it_did_not_start(broker):
    assert "AMQP_URL" in error("tools.demo", "simple", AMQP_URL=broker.url)


@pytest.mark.faults
def test_interrupted_demo_leaves_nothing(tmp_path):
    # A path that RabbitMQ's scripts can't have makes no difference here, and neither do
    # another node's settings in our environment.
    project = tmp_path / "a b (文档)"
    project.mkdir()
    copy_of_the_project(project, "work_queue")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    demo = Tool(
        "tools.demo",
        "work_queue",
        cwd=project,
        TMPDIR=str(temporary),
        RABBITMQ_NODENAME="other@localhost",
        RABBITMQ_CONFIG_FILE="/no/such/file",
    )
    match = re.search(r"on localhost:(\d+)", demo.line())
    assert match
    projects = docker_projects(int(match[1]))
    while "[x] Received" not in demo.line():
        assert demo.process.poll() is None
    demo.process.send_signal(signal.SIGINT)
    demo.process.send_signal(signal.SIGTERM)  # again, as the impatient do
    assert demo.finish()[0] == 130
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
@pytest.mark.usefixtures("only_native")  # others' containers look like ours
def test_interrupted_tests_leave_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-n", "1", "tests/lessons/test_fanout.py"],
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


# The broker.


def test_version_comes_from_the_connection(broker):
    assert (
        ".".join(map(str, broker.version))
        == broker.get("overview")["rabbitmq_version"].split("-")[0]
    )


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
    settings = broker.ctl("environment")
    assert "/etc/rabbitmq" not in settings + broker.log()
    assert f"{broker.folder}/rabbitmq.conf" in settings + broker.log()


def test_port_belongs_to_one_process():
    port = free_port()
    code = "from tools.broker.base import free_port; print(free_port())"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True
    )
    assert int(output.stdout) != port


@pytest.mark.faults  # it starts other brokers
@pytest.mark.usefixtures("only_native")
def test_run_keeps_its_data_and_its_port(cache):
    port, ui_port = free_port(), free_port()
    environment = cache | {"AMQP_PORT": str(port), "UI_PORT": str(ui_port)}
    first = Tool("tools.broker", "run", **environment)
    try:
        # Two at the same moment: one of them runs, and the other doesn't say so.
        second = Tool("tools.broker", "run", **environment)
        wait_until(lambda: first.process.poll() or second.process.poll(), "an exit")
        loser = first if first.process.poll() else second
        runner = second if loser is first else first
        assert loser.finish() == (
            1,
            "",
            f" [!] A broker for localhost:{port} already runs.\n",
        )
        assert re.match(
            rf"RabbitMQ [\d.]+, .*, on localhost:{port}, is ", runner.line()
        )
        declare_on(port, passive=False)
        runner.process.send_signal(signal.SIGINT)
        assert runner.finish()[0] == 130
        first = Tool("tools.broker", "run", **environment)
        assert "is ready" in first.line()
        declare_on(port, passive=True)  # the queue is still there
    finally:
        first.process.send_signal(signal.SIGTERM)
        assert first.finish()[0] == 130


def declare_on(port: int, passive: bool) -> None:
    parameters = pika.URLParameters(f"amqp://guest:guest@localhost:{port}/%2F")
    with pika.BlockingConnection(parameters) as connection:
        connection.channel().queue_declare("kept", durable=True, passive=passive)


@pytest.mark.usefixtures("only_native")
def test_answer_of_another_node_is_not_ours(broker, tmp_path):
    ours = NativeBroker(broker.port, tmp_path / "node")
    ours._name = "example-other"
    ours._processes = [psutil.Popen([sys.executable, "-c", "input()"], stdin=-1)]
    try:
        assert not ours.is_ours(server_properties(broker.port))
    finally:
        ours._processes[0].kill()
        ours._processes[0].wait()


def test_broker_that_is_already_running_is_left_alone(broker):
    line = error("tools.broker", "run", AMQP_PORT=str(broker.port))
    assert line == f" [!] A RabbitMQ is already running on localhost:{broker.port}.\n"


@pytest.mark.parametrize("server", [silent_server, None], ids=["silence", "HTTP"])
def test_port_that_another_program_uses(server):
    with server() if server else answering_server(b"HTTP/1.1 400 Bad\r\n\r\n") as port:
        line = error("tools.broker", "run", AMQP_PORT=str(port))
    assert line == (
        f" [!] Another program uses port {port}. Stop it, or set AMQP_PORT.\n"
    )


@pytest.mark.parametrize("port", ["abc", "65536"])
def test_invalid_port(port):
    assert error("tools.broker", "run", AMQP_PORT=port) == (
        f" [!] AMQP_PORT must be a number from 1 to 65535, not '{port}'\n"
    )


def test_invalid_kind_of_broker():
    assert error("tools.broker", "install", BROKER="podman") == (
        " [!] BROKER must be docker or native, not 'podman'\n"
    )


def test_path_that_rabbitmq_cannot_have_is_named(tmp_path):
    folder = tmp_path / "文档"
    folder.mkdir()
    line = error("tools.demo", "simple", BROKER="native", TMPDIR=str(folder))
    assert f"can't run in {folder}" in line
    assert list(folder.iterdir()) == []


def test_file_that_we_cannot_use_is_one_line(tmp_path):
    """Root may write anywhere. A file instead of a folder fails for everybody."""
    (tmp_path / "rabbitmq-by-example").touch()
    line = error("tools.broker", "run", XDG_CACHE_HOME=str(tmp_path), BROKER="native")
    assert str(tmp_path) in line
    assert "belong" in line


DENIED = "permission denied while trying to connect to the Docker daemon socket"


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


def test_brokers_for_two_ports_are_two_compose_projects(monkeypatch):
    monkeypatch.setattr("tools.broker.uses_docker", lambda: True)
    projects = []
    for port in (5672, 5673):
        node = broker_on(port, 15672)
        assert isinstance(node, DockerBroker)
        projects.append(node._command[-1])
    assert len(set(projects)) == 2


def test_install_does_nothing_when_a_broker_is_here(broker):
    assert Tool("tools.broker", "install").finish() == (0, "", "")


@pytest.mark.parametrize(
    "signum", [signal.SIGINT, signal.SIGHUP], ids=lambda signum: signum.name
)
def test_interrupted_download_leaves_nothing(tmp_path, signum):
    apt = tmp_path / "bin" / "apt-get"
    apt.parent.mkdir()
    apt.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 60\n")
    apt.chmod(0o755)
    code = """from tools.broker.debian import unpack
from tools.common import exit_on_error
exit_on_error(unpack)"""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ
        | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        | {"PATH": f"{apt.parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
    )
    wait_until((tmp_path / "started").exists, "the download")
    process.send_signal(signum)
    assert process.wait(30) == 130
    assert list((tmp_path / "cache" / "rabbitmq-by-example").iterdir()) == []
