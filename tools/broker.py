"""Start a RabbitMQ broker for the lessons: in Docker, or as a node on this machine.

    python3 tools/broker.py install    get what a broker needs, unless it's here already
    python3 tools/broker.py run        run a broker on localhost:5672 until Ctrl+C

It uses Docker if an engine answers, and this machine's rabbitmq-server otherwise.
BROKER=docker or BROKER=native chooses. It needs only the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
UNPACKED = CACHE / "rabbitmq-by-example"  # see unpack()
SERVER = "usr/lib/rabbitmq/bin/rabbitmq-server"  # in Debian's package
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
        text=True,
        errors="replace",
        start_new_session=True,  # the user's Ctrl+C must not interrupt a clean-up
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException as error:
            process.terminate()  # and wait until it has exited: it might clean up
            if isinstance(error, subprocess.TimeoutExpired):
                raise BrokerError(
                    f"Not within {timeout} s: {' '.join(command)}"
                ) from None
            raise
    if process.returncode:
        # Indented lines are Docker Compose's progress.
        reasons = [line for line in errors.splitlines() if not line.startswith(" ")]
        reason = "\n".join(reasons) or f"exit status {process.returncode}"
        raise BrokerError(f"{' '.join(command)}: {reason}")
    return output


def wait_until(
    condition: Callable[[], object], description: str, timeout: float = 120
) -> None:
    """Check the condition every 50 ms until it's true.

    Raises BrokerError, with the description, after the timeout (in seconds).
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerError(f"Not within {timeout} s: {description}")
        time.sleep(0.05)


def answers(port: int) -> bool:
    """Return whether a RabbitMQ on localhost accepts connections on that port.

    A client begins with a protocol header, and the broker answers with a method that
    contains its product name: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf,
    4.2.2, and https://www.rabbitmq.com/docs/connections.

    Raises BrokerError if something else listens there.
    """
    try:
        with socket.create_connection(("localhost", port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            answer = connection.recv(4096)
    except TimeoutError:
        answer = b"nothing"
    except OSError:
        return False
    if answer and b"RabbitMQ" not in answer:
        raise BrokerError(
            f"A program that isn't RabbitMQ listens on port {port}. Stop it, or set "
            "AMQP_PORT to another port."
        )
    return bool(answer)


def free_port() -> int:
    """Return a free port below those that the system gives to programs that ask for any.

    So the port stays free while a broker restarts.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Broker:
    """A RabbitMQ node that we control. Its methods raise BrokerError.

    `url` is its AMQP_URL, `version` is RabbitMQ's, `kind` is how it runs.
    """

    kind: str

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"amqp://guest:guest@localhost:{port}/%2F"

    def start(self) -> None:
        """Start the node, with the data it had, if any. Return once it's ready."""
        raise NotImplementedError

    def stop(self) -> None:
        """Shut the node down as an administrator would. Keep its data."""
        raise NotImplementedError

    def kill(self) -> None:
        """Kill the node with SIGKILL. Keep its data as they are at that moment."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Suspend the node: connections stay open, and the broker doesn't respond."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Resume the node after freeze()."""
        raise NotImplementedError

    def remove(self) -> None:
        """Stop the node and delete its data."""
        raise NotImplementedError

    def ctl(self, *arguments: str) -> str:
        """Return what rabbitmqctl prints: https://www.rabbitmq.com/docs/man/rabbitmqctl.8"""
        raise NotImplementedError

    def log(self) -> str:
        """Return the node's log."""
        raise NotImplementedError

    def restart(self) -> None:
        """Stop the node and start it again."""
        self.stop()
        self.start()

    @functools.cached_property
    def version(self) -> str:
        return self.ctl("version").strip()


class DockerBroker(Broker):
    """A service of docker-compose.yml. The project's name separates it from others."""

    kind = "in Docker"

    def __init__(
        self, project: str, ports: dict[str, int], service: str = "rabbitmq"
    ) -> None:
        """ports has a value for each variable in docker-compose.yml's ports."""
        suffix = service.removeprefix("rabbitmq").replace("rabbit-", "_")
        super().__init__(ports["AMQP_PORT" + suffix])
        self.service = service
        self._env = os.environ | {name: str(port) for name, port in ports.items()}
        self._command = ["docker", "compose", "-f", str(ROOT / "docker-compose.yml")]
        self._command += ["-p", project, *(["--profile", "cluster"] if suffix else [])]

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        return run(*self._command, *arguments, env=self._env, timeout=timeout)

    def start(self) -> None:
        self.compose("up", "-d", "--wait", self.service)
        wait_until(lambda: answers(self.port), f"an answer on localhost:{self.port}")

    def stop(self) -> None:
        self.compose("stop", self.service)

    def kill(self) -> None:
        self.compose("kill", self.service)

    def freeze(self) -> None:
        self.compose("pause", self.service)

    def thaw(self) -> None:
        self.compose("unpause", self.service)

    def remove(self) -> None:
        self.compose("down", "-v", "-t", "0")

    def ctl(self, *arguments: str) -> str:
        return self.compose("exec", "-T", self.service, "rabbitmqctl", "-q", *arguments)

    def log(self) -> str:
        return self.compose("logs", "--no-log-prefix", "--no-color", self.service)


class NativeBroker(Broker):
    """A node of this machine's rabbitmq-server.

    It keeps everything in one folder, reads nothing from /etc/rabbitmq, and listens
    only on 127.0.0.1, as does Erlang's port mapper (epmd), which it runs itself.
    The variables: https://www.rabbitmq.com/docs/configure#supported-environment-variables
    """

    kind = "as a private node on this machine"

    def __init__(self, port: int, folder: Path, ui_port: int | None = None) -> None:
        super().__init__(port)
        self.folder = folder
        self._server: subprocess.Popen | None = None
        self._epmd: subprocess.Popen | None = None
        self._log = folder / "rabbit.log"
        self._programs = native_programs()
        if not self._programs:
            raise BrokerError(f"RabbitMQ isn't installed here. {HOW_TO_INSTALL}")
        config = [f"listeners.tcp.1 = 127.0.0.1:{port}"]
        if ui_port:
            config.append(
                f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {ui_port}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rabbitmq.conf").write_text("\n".join(config) + "\n")
        plugins = "rabbitmq_management" if ui_port else ""
        (folder / "enabled_plugins").write_text(f"[{plugins}].\n")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_"))
        }
        self._env = inherited | {
            "HOME": str(folder),  # for the Erlang cookie
            "PATH": os.pathsep.join([*map(str, self._programs), os.environ["PATH"]]),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_NODENAME": "example@localhost",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1}"
            ),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(folder / "conf.d" / "*.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": str(self._log),
        }
        # Libraries that unpack() found missing.
        libraries = map(str, UNPACKED.glob("usr/lib/*-linux-gnu*"))
        self._env["LD_LIBRARY_PATH"] = os.pathsep.join(libraries)

    def _popen(self, *command: str) -> subprocess.Popen:
        with (self.folder / "output").open("ab") as output:
            return subprocess.Popen(
                command,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start(self) -> None:
        if not self._epmd:
            self._epmd = self._popen("epmd")
        server = self._server = self._popen("rabbitmq-server")

        def ready() -> bool:
            if server.poll() is not None:
                output = (self.folder / "output").read_text(errors="replace")
                raise BrokerError(f"rabbitmq-server didn't start:\n{output[-2000:]}")
            return answers(self.port)

        wait_until(ready, f"an answer on localhost:{self.port}")

    def stop(self) -> None:
        if self._server:
            # rabbitmq-server is a shell script. On SIGTERM it shuts its node down.
            self._server.terminate()
            self._server.wait(60)

    def _signal(self, signum: int) -> None:
        if self._server:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signum)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._server:
            self._server.wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        if self._epmd:
            self._epmd.kill()
            self._epmd.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        return run("rabbitmqctl", "-q", *arguments, env=self._env)

    def log(self) -> str:
        return self._log.read_text(errors="replace")


HOW_TO_INSTALL = "Type: python3 tools/broker.py install"


def native_programs() -> list[Path]:
    """Return the folders of rabbitmq-server and Erlang, or [] if we don't find them."""
    # Debian's rabbitmq-server in /usr/sbin is a wrapper that uses the system's node.
    for folder in ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin"):
        if Path(folder, "rabbitmq-server").exists():
            return [Path(folder)]
    if (UNPACKED / SERVER).exists():
        return [(UNPACKED / SERVER).parent, UNPACKED / "usr/lib/erlang/bin"]
    found = shutil.which("rabbitmq-server")
    return [Path(found).parent] if found else []


def unpack() -> None:
    """Download Debian's rabbitmq-server and what it needs, and unpack it into ~/.cache.

    We don't install the packages, for three reasons. Installing needs root. It can be
    interrupted halfway. And it adds a service that starts at every boot and listens on
    all interfaces. Deleting the folder undoes this. Raises BrokerError.
    """
    if not re.fullmatch(r"[\w./+-]+", str(UNPACKED), re.ASCII):
        raise BrokerError(
            f"RabbitMQ's scripts can't run from {UNPACKED}, because of the path. Set "
            "XDG_CACHE_HOME to one with only ASCII letters, digits and . / + - _"
        )
    print("Downloading RabbitMQ for the lessons, once.", file=sys.stderr)
    UNPACKED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{UNPACKED}-") as name:
        folder = Path(name)
        for subfolder in ("lists/partial", "archives/partial"):
            (folder / subfolder).mkdir(parents=True)
        apt = ["apt-get", "-q", "-y"]
        for option in (
            f"Dir::State::Lists={folder}/lists",
            f"Dir::Cache={folder}",
            "APT::Sandbox::User=root",  # the user _apt can't write to our folder
            "Debug::NoLocking=true",  # we change nothing that others could lock
        ):
            apt += ["-o", option]
        run(*apt, "update")
        install = ["install", "--download-only", "--no-install-recommends"]
        run(*apt, *install, "rabbitmq-server", timeout=1800)
        for package in folder.glob("archives/*.deb"):
            run("dpkg-deb", "-x", str(package), str(folder / "root"))
        erl = folder / "root/usr/lib/erlang/bin/erl"
        home = "/usr/lib/erlang"
        erl.write_text(erl.read_text().replace(home, f"{UNPACKED}{home}"))
        with contextlib.suppress(OSError):  # another process was faster
            (folder / "root").rename(UNPACKED)


def install() -> None:
    """Make sure that temporary_broker() finds all it needs. Raises BrokerError."""
    if uses_docker():
        command = ["docker", "compose", "-f", str(ROOT / "docker-compose.yml")]
        image = run(*command, "config", "--images").split()[0]
        if not run("docker", "image", "ls", "-q", image).strip():
            print(f"Pulling {image}, once.", file=sys.stderr)
            run("docker", "pull", "-q", image, timeout=1800)
    elif not native_programs():
        if not shutil.which("apt-get"):
            brew = sys.platform == "darwin"
            advice = (
                "Type: brew install rabbitmq" if brew else "Install one of the two."
            )
            raise BrokerError(
                f"Neither Docker nor RabbitMQ is here ({docker_problem()}). {advice}"
            )
        unpack()


@functools.cache
def docker_problem() -> str:
    """Return why we can't use Docker, or "" if we can."""
    if not shutil.which("docker"):
        return "there's no docker command"
    try:
        run("docker", "info", timeout=30)
    except BrokerError as error:
        return str(error)
    try:
        version = run("docker", "compose", "version", "--short", timeout=30).strip()
    except BrokerError as error:
        version = str(error)
    if not re.match(r"v?([2-9]|\d\d)\.", version):
        return f"docker compose must be Docker Compose 2 or later, but it's: {version}"
    return ""


def uses_docker() -> bool:
    """Return whether to use Docker.

    Raises BrokerError if BROKER requires it and it doesn't work, and if Docker is
    installed, doesn't work, and nothing else is here.
    """
    choice = os.environ.get("BROKER", "")
    if choice not in ("", "docker", "native"):
        raise BrokerError(f"BROKER must be docker or native, not {choice!r}")
    if choice == "native":
        return False
    problem = docker_problem()
    if choice == "docker" and problem:
        raise BrokerError(f"BROKER is docker, but we can't use it: {problem}")
    return not problem


@contextlib.contextmanager
def ignore_signals() -> Iterator[None]:
    """Let nothing that a user can send from a terminal interrupt a clean-up."""
    handlers = {}
    with contextlib.suppress(ValueError):  # we aren't in the main thread
        for signum in SIGNALS:
            handlers[signum] = signal.signal(signum, signal.SIG_IGN)
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def temporary_broker() -> Iterator[Broker]:
    """Start a broker on a free port. Remove it and its data afterwards.

    Raises BrokerError if it doesn't start.
    """
    broker: Broker
    if uses_docker():
        ports = {"AMQP_PORT": free_port(), "UI_PORT": free_port()}
        broker = DockerBroker(f"rabbitmq-by-example-{uuid.uuid4().hex[:8]}", ports)
    else:
        broker = NativeBroker(free_port(), Path(tempfile.mkdtemp(prefix="rabbitmq-")))
    try:
        broker.start()
        yield broker
    finally:
        with ignore_signals():
            broker.remove()


@contextlib.contextmanager
def temporary_cluster() -> Iterator[list[Broker]]:
    """Start the three nodes of docker-compose.yml. Remove them afterwards.

    Raises BrokerError if they don't start, or if we can't use Docker.
    """
    if not uses_docker():
        raise BrokerError(f"A cluster needs Docker, but: {docker_problem()}")
    project = f"rabbitmq-by-example-{uuid.uuid4().hex[:8]}"
    ports = {f"AMQP_PORT_{n}": free_port() for n in (1, 2, 3)} | {
        "UI_PORT_1": free_port()
    }
    nodes = [DockerBroker(project, ports, f"rabbit-{n}") for n in (1, 2, 3)]
    try:
        nodes[0].compose("up", "-d", "--wait", *(node.service for node in nodes))
        for node in nodes:
            node.start()
        yield list(nodes)
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
    broker: Broker
    if uses_docker():
        ports = {"AMQP_PORT": port, "UI_PORT": ui_port}
        broker = DockerBroker("rabbitmq-by-example", ports)
    else:
        broker = NativeBroker(port, ROOT / ".broker", ui_port)
    try:
        broker.start()
        print(f"RabbitMQ {broker.version} is ready on localhost:{port}, {broker.kind}.")
        print(f"Management UI: http://localhost:{ui_port} (guest, guest). Stop: CTRL+C")
        signal.pause()
    finally:
        with ignore_signals():
            broker.stop()


def exit_on_error(main: Callable[[], None]) -> None:
    """Call main(). Turn signals into KeyboardInterrupt, and BrokerError into one line."""
    for signum in SIGNALS:
        signal.signal(signum, signal.default_int_handler)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
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
    if parser.parse_args().command == "install":
        install()
    else:
        install()
        run_in_foreground()


if __name__ == "__main__":
    exit_on_error(main)
