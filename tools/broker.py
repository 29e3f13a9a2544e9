"""Start a RabbitMQ broker for the lessons: in Docker, or as a node on this machine.

    python3 tools/broker.py install    get what a broker needs, unless it's here already
    python3 tools/broker.py run        run a broker on localhost:5672 until Ctrl+C

It uses Docker if an engine answers, and this machine's rabbitmq-server otherwise.
BROKER=docker or BROKER=native chooses. `run` reads AMQP_PORT and UI_PORT, in case 5672
or 15672 is in use. Everything here needs only the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from pathlib import Path

COMPOSE_FILE = str(Path(__file__).resolve().parent.parent / "docker-compose.yml")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
FOLDER = CACHE / "rabbitmq-by-example"
DEBIAN = FOLDER / "debian"  # see unpack()
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class BrokerError(Exception):
    """We can't provide a broker. The message is why, and what to do next."""


def run(*command: str, env: dict[str, str] | None = None, timeout: float = 300) -> str:
    """Run a command and return its standard output. The timeout is in seconds.

    Raises BrokerError, with the command's error output, if it fails or times out.
    """
    with subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # the user's Ctrl+C must not interrupt a clean-up
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException as error:
            process.terminate()  # and wait until it has exited: it might clean up
            if isinstance(error, subprocess.TimeoutExpired):
                raise BrokerError(f"No end within {timeout} s: {command}") from None
            raise
    if process.returncode:
        # Indented lines are Docker Compose's progress.
        lines = [line for line in errors.splitlines() if not line.startswith(" ")]
        reason = "\n".join(lines) or f"exit status {process.returncode}"
        raise BrokerError(f"{' '.join(command)}: {reason}")
    return output


def wait_until(
    condition: Callable[[], object],
    description: str,
    timeout: float = 120,
    interval: float = 0.05,
) -> None:
    """Check the condition once per interval until it's true. Times are in seconds.

    Raises BrokerError, with the description, after the timeout.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerError(f"Not within {timeout} s: {description}")
        time.sleep(interval)


def answers(port: int) -> bool:
    """Return whether a RabbitMQ on localhost answers on that port.

    A client begins with a protocol header. The broker answers with a method that
    contains its name: section 4.2.2 of the specification on
    https://www.rabbitmq.com/amqp-0-9-1-protocol.

    Raises BrokerError if another program answers.
    """
    try:
        with socket.create_connection(("localhost", port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            answer = connection.recv(4096)
    except TimeoutError:
        answer = b"silence"
    except OSError:
        answer = b""
    if answer and b"RabbitMQ" not in answer:
        raise BrokerError(
            f"Another program uses port {port}. Stop it, or set AMQP_PORT."
        )
    return bool(answer)


_reservations: list[socket.socket] = []


def free_port() -> int:
    """Return a port that no other call returns until this process exits.

    We reserve it by binding the UDP port of the same number, which nobody uses. The
    system gives ports above these to programs that have no wish.
    """
    for port in range(20_000, 32_000):
        reservation = socket.socket(type=socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port))
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            reservation.close()
        else:
            _reservations.append(reservation)
            return port
    raise BrokerError("No port from 20000 to 31999 is free.")


def temporary_name() -> str:
    return f"rabbitmq-by-example-{uuid.uuid4().hex[:8]}"


def check_path(path: Path) -> None:
    """Raise BrokerError if RabbitMQ can't run in that folder."""
    if not re.fullmatch(r"[\w./+-]+", str(path), re.ASCII):
        raise BrokerError(
            f"RabbitMQ can't run in {path}, because the path contains a character "
            "other than A-Z, a-z, 0-9 and _./+- Set TMPDIR or XDG_CACHE_HOME to a "
            "folder with a simpler path."
        )


class Node(ABC):
    """What both kinds of broker have. Their other methods are the same, too.

    `url` is the broker's AMQP_URL. The methods raise BrokerError.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"amqp://guest:guest@localhost:{port}/%2F"

    @abstractmethod
    def start(self) -> None:
        """Start the node, with the data it had, if any. Return once it's ready."""

    @abstractmethod
    def stop(self) -> None:
        """Shut the node down as an administrator would. Keep its data."""

    @abstractmethod
    def log(self) -> str:
        """Return the node's log."""

    @abstractmethod
    def ctl(self, *arguments: str) -> str:
        """Run https://www.rabbitmq.com/docs/man/rabbitmqctl.8 and return its output."""

    def restart(self) -> None:
        """Stop the node and start it again."""
        self.stop()
        self.start()

    @functools.cached_property
    def version(self) -> str:
        """RabbitMQ's version, such as "4.3.6"."""
        return re.findall(r"Starting RabbitMQ ([\d.]+)", self.log())[-1]

    def before(self, *numbers: int) -> bool:
        """Return whether it's older than a version, such as before(4, 3)."""
        return tuple(map(int, self.version.split("."))) < numbers


class DockerBroker(Node):
    """A service of docker-compose.yml."""

    kind = "in Docker"

    def __init__(
        self, project: str, ports: dict[str, int], service: str = "rabbitmq"
    ) -> None:
        """The project's name separates it from others. Ports are for the variables."""
        suffix = service.removeprefix("rabbitmq").replace("rabbit-", "_")
        super().__init__(ports[f"AMQP_PORT{suffix}"])
        self.service = service
        self.environment = os.environ | {
            name: str(port) for name, port in ports.items()
        }
        self._command = ["docker", "compose", "-f", COMPOSE_FILE, "-p", project]
        self._command += ["--profile", "cluster"] if suffix else []

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` for this project and return its output."""
        return run(*self._command, *arguments, env=self.environment)

    def start(self) -> None:
        self.compose("up", "-d", "--wait", self.service)
        wait_until(lambda: answers(self.port), f"an answer on localhost:{self.port}")

    def stop(self) -> None:
        self.compose("stop", self.service)

    def kill(self) -> None:
        """Kill the node with SIGKILL. Keep its data as they are at that moment."""
        self.compose("kill", self.service)

    def freeze(self) -> None:
        """Suspend the node: connections stay open, and the broker doesn't respond."""

        def paused() -> bool:
            # On Linux with cgroup v1, runc gives up on a busy container after a moment.
            with contextlib.suppress(BrokerError):
                self.compose("pause", self.service)
                return True
            return False

        wait_until(paused, "docker compose pause", 20)

    def thaw(self) -> None:
        """Resume the node after freeze()."""
        self.compose("unpause", self.service)

    def remove(self) -> None:
        """Stop all nodes of the project and delete their data."""
        self.compose("down", "-v", "-t", "0")

    def ctl(self, *arguments: str) -> str:
        return self.compose("exec", "-T", self.service, "rabbitmqctl", "-q", *arguments)

    def log(self) -> str:
        return self.compose("logs", "--no-log-prefix", "--no-color", self.service)


class NativeBroker(Node):
    """A node of this machine's rabbitmq-server.

    It keeps everything in one folder, reads nothing from /etc/rabbitmq, and listens
    only on 127.0.0.1, as does Erlang's port mapper (epmd), which it runs itself.
    https://www.rabbitmq.com/docs/configure#supported-environment-variables
    """

    kind = "as a private node on this machine"

    def __init__(self, port: int, folder: Path, ui_port: int | None = None) -> None:
        super().__init__(port)
        check_path(folder)
        programs = native_programs()
        if not programs:
            raise BrokerError(
                "RabbitMQ isn't here. Type: python3 tools/broker.py install"
            )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._processes: list[subprocess.Popen] = []
        config, plugins = f"listeners.tcp.1 = 127.0.0.1:{port}\n", "[]."
        if ui_port:
            config += (
                f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {ui_port}\n"
            )
            plugins = "[rabbitmq_management]."
        (folder / "rabbitmq.conf").write_text(config)
        (folder / "enabled_plugins").write_text(plugins)
        files = {
            "CONF_ENV_FILE": "rabbitmq-env.conf",  # doesn't exist, as two more of these
            "CONFIG_FILE": "rabbitmq.conf",
            "CONFIG_FILES": "conf.d/*.conf",
            "ADVANCED_CONFIG_FILE": "advanced.config",
            "ENABLED_PLUGINS_FILE": "enabled_plugins",
            "MNESIA_BASE": "data",
            "LOG_BASE": "",
            "LOGS": "rabbit.log",
        }
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_"))
        }
        self.environment |= {
            f"RABBITMQ_{name}": f"{folder}/{file}" for name, file in files.items()
        }
        self.environment |= {
            "RABBITMQ_NODENAME": "example@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            # By default, an idle thread of RabbitMQ sleeps immediately. Some virtual
            # machines wake it slowly. There, a start takes half the time if it waits
            # before it sleeps: https://www.rabbitmq.com/docs/runtime
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt short +sbwtdio short"
            ),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "HOME": str(folder),  # for the Erlang cookie
            "PATH": f"{programs}:{os.environ['PATH']}",
            # For libraries that unpack() found missing.
            "LD_LIBRARY_PATH": ":".join(map(str, DEBIAN.glob("usr/lib/*-linux-gnu*"))),
        }

    def start(self) -> None:
        output = self.folder / "output"
        with output.open("wb") as file:
            for program in ("epmd", "rabbitmq-server"):
                process = subprocess.Popen(
                    [program],
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,  # a process group for signals
                )
                self._processes.append(process)

        def ready() -> bool:
            if process.poll() is not None:
                reason = output.read_text(errors="replace")[-2000:]
                raise BrokerError(f"rabbitmq-server didn't start:\n{reason}")
            return answers(self.port)

        wait_until(ready, f"an answer on localhost:{self.port}")

    def stop(self) -> None:
        if self._processes:
            # rabbitmq-server is a shell script. On SIGTERM it shuts its node down.
            self._processes[-1].terminate()
            self._processes[-1].wait(60)
        self.kill()

    def _signal(self, signum: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                os.killpg(process.pid, signum)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        while self._processes:
            self._processes.pop().wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        return run("rabbitmqctl", "-q", *arguments, env=self.environment)

    def log(self) -> str:
        return (self.folder / "rabbit.log").read_text(errors="replace")


Broker = DockerBroker | NativeBroker


def native_programs() -> str:
    """Return where rabbitmq-server is, as the beginning of a PATH, or ""."""
    # Not Debian's /usr/sbin: that is a wrapper for the system's own node.
    for folder in ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin"):
        if Path(folder, "rabbitmq-server").exists():
            return folder
    if DEBIAN.exists():
        return f"{DEBIAN}/usr/lib/rabbitmq/bin:{DEBIAN}/usr/lib/erlang/bin"
    found = shutil.which("rabbitmq-server")
    return str(Path(found).parent) if found else ""


def unpack() -> None:
    """Download Debian's rabbitmq-server and what it needs, and unpack it into DEBIAN.

    We don't install the packages, for three reasons. Installing requires root. An
    interruption leaves packages half-configured. And the package adds a service, which
    starts at every boot and listens on all interfaces. Deleting the folder undoes this.

    Raises BrokerError.
    """
    check_path(DEBIAN)
    print(f"Downloading Debian's RabbitMQ into {FOLDER}, once.", flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        new = Path(name)
        for folder in ("lists/partial", "archives/partial"):
            (new / folder).mkdir(parents=True)
        apt = ["apt-get", "-q", "-y"]
        for option in (
            f"Dir::State::Lists={new}/lists",
            f"Dir::Cache={new}",
            "APT::Sandbox::User=root",  # the user _apt can't write to our folder
            "Debug::NoLocking=true",  # we don't change what the lock protects
        ):
            apt += ["-o", option]
        run(*apt, "update")
        install = ["install", "--download-only", "--no-install-recommends"]
        run(*apt, *install, "rabbitmq-server", timeout=1800)
        for package in new.glob("archives/*.deb"):
            run("dpkg-deb", "-x", str(package), f"{new}/root")
        erl, home = new / "root/usr/lib/erlang/bin/erl", "/usr/lib/erlang"
        erl.write_text(erl.read_text().replace(home, f"{DEBIAN}{home}"))
        with contextlib.suppress(OSError):  # another process was faster
            (new / "root").rename(DEBIAN)


def install() -> None:
    """Get what temporary_broker() needs, unless it's here. Raises BrokerError."""
    if uses_docker():
        image = run("docker", "compose", "-f", COMPOSE_FILE, "config", "--images")
        image = image.split()[0]
        if not run("docker", "image", "ls", "-q", image):
            print(f"Pulling {image}, once.", flush=True)
            run("docker", "pull", "-q", image, timeout=1800)
    elif not native_programs():
        if not shutil.which("apt-get"):
            raise BrokerError(
                f"RabbitMQ isn't here, and Docker can't run it ({docker_problem()}). "
                "Install one of them, for example with: brew install rabbitmq"
            )
        unpack()


@functools.cache
def docker_problem() -> str:
    """Return why we can't use Docker, or "" if we can."""
    if not shutil.which("docker"):
        return "there's no docker command"
    try:
        run("docker", "version", timeout=30)
        version = run("docker", "compose", "version", "--short", timeout=30).strip()
    except BrokerError as error:
        return str(error).splitlines()[0]
    if not re.match(r"v?([2-9]|\d\d)\.", version):
        return f"Docker Compose 2 or later is required, but this is {version}"
    return ""


def uses_docker() -> bool:
    """Return whether brokers run in Docker.

    Raises BrokerError if BROKER is wrong, or if Docker fails and there's nothing else.
    """
    choice = os.environ.get("BROKER") or "any"
    if choice not in ("any", "docker", "native"):
        raise BrokerError(f"BROKER must be docker or native, not {choice!r}")
    if choice == "native":
        return False
    if docker_problem() and (
        choice == "docker" or (shutil.which("docker") and not native_programs())
    ):
        raise BrokerError(
            f"Docker doesn't work ({docker_problem()}). Start it, or get permission to "
            "use it. To use a broker without Docker, type: export BROKER=native"
        )
    return not docker_problem()


@contextlib.contextmanager
def ignore_signals() -> Iterator[None]:
    """Let nothing that a user can send from a terminal interrupt a clean-up."""
    handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def temporary_broker() -> Iterator[Broker]:
    """Start a broker on a free port. Remove it and its data afterwards.

    Raises BrokerError if it doesn't start.
    """
    broker: Broker
    name = temporary_name()
    if uses_docker():
        ports = {"AMQP_PORT": free_port(), "UI_PORT": free_port()}
        broker = DockerBroker(name, ports)
    else:
        broker = NativeBroker(free_port(), Path(tempfile.gettempdir(), name))
    try:
        broker.start()
        yield broker
    finally:
        with ignore_signals():
            broker.remove()


@contextlib.contextmanager
def temporary_cluster() -> Iterator[list[DockerBroker]]:
    """Start the three nodes of docker-compose.yml. Remove them afterwards.

    Raises BrokerError if they don't start, or if we can't use Docker.
    """
    if not uses_docker():
        raise BrokerError(
            "Three nodes require Docker. Set BROKER=docker to see why not."
        )
    variables = ("AMQP_PORT_1", "AMQP_PORT_2", "AMQP_PORT_3", "UI_PORT_1")
    ports = {variable: free_port() for variable in variables}
    name = temporary_name()
    nodes = [DockerBroker(name, ports, f"rabbit-{n}") for n in (1, 2, 3)]
    try:
        # All together, because each waits for the others. Then each until it answers.
        nodes[0].compose("up", "-d", *(node.service for node in nodes))
        for node in nodes:
            node.start()
        yield nodes
    finally:
        with ignore_signals():
            nodes[0].remove()


def port_from(variable: str, default: int) -> int:
    value = os.environ.get(variable) or str(default)
    if not (value.isdecimal() and 0 < int(value) < 65536):
        raise BrokerError(f"{variable} must be a number from 1 to 65535, not {value!r}")
    return int(value)


def run_in_foreground() -> None:
    """Run a broker on localhost until a signal. Keep its data for the next time."""
    port, ui_port = port_from("AMQP_PORT", 5672), port_from("UI_PORT", 15672)
    if answers(port):
        raise BrokerError(f"A RabbitMQ is already running on localhost:{port}.")
    install()
    broker: Broker
    if uses_docker():
        ports = {"AMQP_PORT": port, "UI_PORT": ui_port}
        broker = DockerBroker("rabbitmq-by-example", ports)
    else:
        broker = NativeBroker(port, FOLDER / f"data-{port}", ui_port)
    try:
        broker.start()
        print(f"RabbitMQ {broker.version} is ready on localhost:{port}, {broker.kind}.")
        print(f"Management UI: http://localhost:{ui_port} (guest, guest). Stop: Ctrl+C")
        signal.pause()
    finally:
        with ignore_signals():
            broker.stop()


def exit_on_error(main: Callable[[], None]) -> None:
    """Call main(). Clean up after a signal. Print a BrokerError without traceback."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for signum in SIGNALS:
        signal.signal(signum, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokerError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["install", "run"])
    command = parser.parse_args().command
    {"install": install, "run": run_in_foreground}[command]()


if __name__ == "__main__":
    exit_on_error(main)
