"""Find a RabbitMQ for the lessons, or start one: in Docker, or as a node of this machine.

    python3 tools/broker.py up        leave a broker on localhost:5672, unless one is there
    python3 tools/broker.py down      stop the broker that `up` started; it keeps its messages

BROKER=docker or BROKER=native chooses; else Docker is used if an engine answers. AMQP_PORT and
UI_PORT choose other ports than 5672 and 15672. It needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODE_FOLDER = ROOT / ".broker"
START_TIMEOUT = 120  # seconds: a first start on a slow laptop
# Where Debian, Ubuntu, and Homebrew on both kinds of Mac put the programs themselves. Debian's
# wrappers in /usr/sbin would run them as the user rabbitmq, on the files of the system's own node.
NATIVE_FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin")


class BrokerError(Exception):
    """No broker could be had; the message says why, and what to do about it."""


def say(line: str) -> None:
    print(f"broker: {line}", file=sys.stderr, flush=True)


def run(*command: str, env: dict[str, str] | None = None, timeout: float = 300) -> str:
    """Return what a command prints. Raises BrokerError, with what it said, if it fails."""
    done = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        start_new_session=True,  # Ctrl+C is for us: what cleans up has to go on
    )
    if done.returncode:
        raise BrokerError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def wait_until(condition, what: str, timeout: float = START_TIMEOUT) -> None:
    """Return once condition() is true. Raises BrokerError after timeout seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise BrokerError(f"{what}: not within {timeout} s")
        time.sleep(0.05)


def speaks_amqp(port: int) -> bool:
    """Tell whether something on localhost answers the header of AMQP 0-9-1 as a broker does.

    Raises BrokerError if something else listens there. The answer is a method frame, whose first
    octet is 1: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, 2.3.5.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            answer = probe.recv(1)
    except ConnectionError:
        return False
    except TimeoutError:
        answer = b"?"
    if answer not in (b"\x01", b""):
        raise BrokerError(f"something that is no RabbitMQ listens on port {port}: set AMQP_PORT")
    return answer == b"\x01"


def free_port() -> int:
    """Return a port for a node, which the system gives to nobody else while the node is restarted.

    Linux, macOS and Windows hand out ports above these to those who do not name one.
    """
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


class Broker:
    """A RabbitMQ node that this program controls. `url` is its AMQP_URL."""

    kind: str

    def __init__(self, port: int, ui_port: int | None) -> None:
        self.port = port
        self.ui_port = ui_port
        self.url = f"amqp://guest:guest@localhost:{port}/%2F"

    def start(self) -> None:
        """Start the node, or start it again with the data that it had; return when it is ready."""
        raise NotImplementedError

    def stop(self) -> None:
        """Shut the node down in good order. Its data stay."""
        raise NotImplementedError

    def kill(self) -> None:
        """Kill the node with SIGKILL. Its data stay as they are at that moment."""
        raise NotImplementedError

    def freeze(self) -> None:
        """Stop the node's processes as they are: connections stay open, and nobody answers."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Let a frozen node go on."""
        raise NotImplementedError

    def remove(self) -> None:
        """Stop the node and delete its data."""
        raise NotImplementedError

    def ctl(self, *arguments: str) -> str:
        """Return what `rabbitmqctl ARGUMENTS` prints (https://www.rabbitmq.com/docs/man/rabbitmqctl.8)."""
        raise NotImplementedError

    def log(self) -> str:
        """Return the node's log since its data were made."""
        raise NotImplementedError

    def published(self) -> bool:
        """Tell whether it is this node that listens on the port, and not another one."""
        raise NotImplementedError

    def restart(self) -> None:
        self.stop()
        self.start()

    @functools.cached_property
    def version(self) -> str:
        return self.ctl("version").strip()


class DockerBroker(Broker):
    """A service of docker-compose.yml, in a compose project of its own name."""

    kind = "in Docker"

    def __init__(
        self,
        port: int,
        ui_port: int | None,
        project: str | None,
        service: str = "rabbitmq",
        env: dict[str, str] | None = None,
    ) -> None:
        super().__init__(port, ui_port)
        self.service = service
        self.env = os.environ | (env or {"AMQP_PORT": str(port), "UI_PORT": str(ui_port)})
        self.command = ["docker", "compose", "-f", str(ROOT / "docker-compose.yml")]
        self.command += ["-p", project] if project else []

    def compose(self, *arguments: str) -> str:
        return run(*self.command, *arguments, env=self.env)

    def start(self) -> None:
        image = self.compose("config", "--images", self.service).split()[0]
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode:
            say(f"pulling {image}, once")
            subprocess.run([*self.command, "pull", "-q"], env=self.env, check=False)
        self.compose("up", "-d", "--wait", self.service)

    def stop(self) -> None:
        self.compose("stop", self.service)

    def kill(self) -> None:
        self.compose("kill", self.service)

    def freeze(self) -> None:
        self.compose("pause", self.service)

    def thaw(self) -> None:
        self.compose("unpause", self.service)

    def remove(self) -> None:
        self.compose("--profile", "*", "down", "-v", "-t", "0")

    def ctl(self, *arguments: str) -> str:
        return self.compose("exec", "-T", self.service, "rabbitmqctl", "-q", *arguments)

    def published(self) -> bool:
        with contextlib.suppress(BrokerError):
            return self.compose("port", self.service, "5672").strip().endswith(f":{self.port}")
        return False

    def log(self) -> str:
        return self.compose("logs", "--no-log-prefix", "--no-color", self.service)


class NativeBroker(Broker):
    """A node of this machine's own rabbitmq-server, with all that it writes in one folder."""

    kind = "a private node of this machine"

    def __init__(self, port: int, ui_port: int | None, folder: Path) -> None:
        super().__init__(port, ui_port)
        self.programs = native_programs() or install()
        self.folder = folder
        self.pid_file = folder / "pid"
        self.ports = folder / "ports"

    def _env(self) -> dict[str, str]:
        epmd_port, distribution_port = self.ports.read_text().split()
        return os.environ | {
            "HOME": str(self.folder),  # where Erlang keeps its cookie
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": epmd_port,
            "RABBITMQ_NODENAME": "example@localhost",
            "RABBITMQ_DIST_PORT": distribution_port,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_LOGS": str(self.folder / "rabbit.log"),
        }

    def _configure(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.ports.exists():  # rabbitmqctl and a later `down` have to find the same ones
            self.ports.write_text(f"{free_port()} {free_port()}")
        conf = [f"listeners.tcp.1 = 127.0.0.1:{self.port}"]
        if self.ui_port:
            conf += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {self.ui_port}"]
        plugins = "rabbitmq_management" if self.ui_port else ""
        (self.folder / "rabbitmq.conf").write_text("\n".join(conf) + "\n")
        (self.folder / "enabled_plugins").write_text(f"[{plugins}].\n")
        (self.folder / "rabbitmq-env.conf").touch()  # so that the system's own is not read

    def _pid(self) -> int:
        return int(self.pid_file.read_text())

    def _gone(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid(), os.WNOHANG)
        try:
            os.killpg(self._pid(), 0)
        except ProcessLookupError:
            return True
        return False

    def _signal(self, number: int) -> None:
        # The server is a shell script that waits for the virtual machine. SIGTERM is for the
        # script, which shuts the node down. SIGKILL is for both: they are a process group of their
        # own.
        if not self.pid_file.exists():
            return
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._pid(), number)
            else:
                os.kill(self._pid(), number)
        wait_until(self._gone, "the end of rabbitmq-server", 60)
        self.pid_file.unlink()

    def start(self) -> None:
        if self.pid_file.exists() and not self._gone():
            raise BrokerError(f"the node of {self.folder} is running already, on another port")
        self._configure()
        env = self._env()
        log = self.folder / "rabbit.log"
        earlier = len(log.read_bytes()) if log.exists() else 0
        output = self.folder / "output"
        with output.open("ab") as file:
            process = subprocess.Popen(
                [str(self.programs / "rabbitmq-server")],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.pid_file.write_text(str(process.pid))

        def ready() -> bool:
            if process.poll() is not None:
                raise BrokerError(f"rabbitmq-server did not start:\n{output.read_text()[-2000:]}")
            # A port that somebody else has taken meanwhile would listen, too.
            said = log.read_bytes()[earlier:] if log.exists() else b""
            return f"started TCP listener on 127.0.0.1:{self.port}\n".encode() in said

        try:
            wait_until(ready, "rabbitmq-server's listener")
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        self._signal(signal.SIGTERM)
        # Erlang leaves its port mapper running for the next node. Nobody else uses this one.
        if self.ports.exists():
            epmd = shutil.which("epmd") or str(self.programs / "epmd")
            with contextlib.suppress(BrokerError, FileNotFoundError):
                run(epmd, "-kill", env=self._env())

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        os.killpg(self._pid(), signal.SIGSTOP)

    def thaw(self) -> None:
        os.killpg(self._pid(), signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        return run(str(self.programs / "rabbitmqctl"), "-q", *arguments, env=self._env())

    def published(self) -> bool:
        conf = self.folder / "rabbitmq.conf"
        return conf.exists() and f"127.0.0.1:{self.port}\n" in conf.read_text()

    def log(self) -> str:
        return (self.folder / "rabbit.log").read_text(errors="replace")


def native_programs() -> Path | None:
    """Return the folder of this machine's rabbitmq-server, or None."""
    for folder in NATIVE_FOLDERS:
        if (Path(folder) / "rabbitmq-server").exists():
            return Path(folder)
    found = shutil.which("rabbitmq-server")
    return Path(found).parent if found else None


def install() -> Path:
    """Install Debian's rabbitmq-server and return its folder, if this is Debian and we are root.

    Raises BrokerError, with the command to type, otherwise.
    """
    if sys.platform == "darwin":
        raise BrokerError("no Docker engine and no RabbitMQ here. Type: brew install rabbitmq")
    if not shutil.which("apt-get"):
        raise BrokerError("no Docker engine and no RabbitMQ here: install one, or set AMQP_URL")
    if os.geteuid() != 0:
        raise BrokerError(
            "no Docker engine and no RabbitMQ here. Type: sudo apt-get install rabbitmq-server"
        )
    say("no RabbitMQ here: installing Debian's rabbitmq-server")
    # The package would start a node of its own on port 5672. This file, if there, forbids it:
    # https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    apt = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        run("apt-get", "update", "-q", env=apt)
        packages = ["--no-install-recommends", "rabbitmq-server"]
        run("apt-get", "install", "-y", "-q", *packages, env=apt, timeout=1800)
    finally:
        if ours:
            policy.unlink()
    programs = native_programs()
    if not programs:
        raise BrokerError("rabbitmq-server was installed, but is in none of the usual folders")
    return programs


def uses_docker() -> bool:
    """Tell whether to use Docker. Raises BrokerError if BROKER insists and no engine answers."""
    wanted = os.environ.get("BROKER", "")
    if wanted not in ("", "docker", "native"):
        raise BrokerError(f"BROKER is {wanted!r}; it may be docker or native")
    if wanted == "native":
        return False
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            run(*command, timeout=30)
        except (BrokerError, FileNotFoundError, subprocess.TimeoutExpired) as error:
            if wanted:
                raise BrokerError(f"BROKER=docker, but no engine answers: {error}") from None
            return False
    return True


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let no signal that a user can send from a terminal interrupt a clean-up."""
    before = {}
    with contextlib.suppress(ValueError):  # signals interrupt no thread but the main one
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before[number] = signal.signal(number, signal.SIG_IGN)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def private() -> Iterator[Broker]:
    """Start a broker that nobody else uses, on free ports; remove it and its data afterwards."""
    if uses_docker():
        name = f"rabbitmq-by-example-{uuid.uuid4().hex[:8]}"
        broker: Broker = DockerBroker(free_port(), free_port(), name)
    else:
        broker = NativeBroker(free_port(), None, Path(tempfile.mkdtemp(prefix="rabbitmq-")))
    try:
        broker.start()
        yield broker
    finally:
        with undisturbed():
            broker.remove()


@contextlib.contextmanager
def private_cluster() -> Iterator[list[DockerBroker]]:
    """Start the three nodes of docker-compose.yml on free ports; remove them afterwards.

    Raises BrokerError if there is no Docker engine.
    """
    if not uses_docker():
        raise BrokerError("a cluster of three needs Docker")
    project = f"rabbitmq-by-example-{uuid.uuid4().hex[:8]}"
    names = (1, 2, 3)
    ports = {n: free_port() for n in names}
    env = {f"AMQP_PORT_{n}": str(ports[n]) for n in names} | {"UI_PORT_1": str(free_port())}
    nodes = [DockerBroker(ports[n], None, project, f"rabbit-{n}", env) for n in names]
    try:
        nodes[0].compose("up", "-d", "--wait", *(node.service for node in nodes))
        yield nodes
    finally:
        with undisturbed():
            nodes[0].remove()


def port_of(variable: str, default: int) -> int:
    """Return the port that an environment variable names. Raises BrokerError if it names none."""
    value = os.environ.get(variable) or str(default)
    if not (value.isdecimal() and 0 < int(value) < 65536):
        raise BrokerError(f"{variable} is {value!r}; it may be from 1 to 65535")
    return int(value)


def shared() -> Broker:
    """Return the broker of `up` and `down`, running or not."""
    port, ui_port = port_of("AMQP_PORT", 5672), port_of("UI_PORT", 15672)
    if uses_docker():
        return DockerBroker(port, ui_port, None)
    return NativeBroker(port, ui_port, NODE_FOLDER)


def up() -> None:
    port = port_of("AMQP_PORT", 5672)
    if speaks_amqp(port):
        print(f"A broker is there already, on localhost:{port}.")
        return
    broker = shared()
    say(f"starting RabbitMQ, {broker.kind}")
    broker.start()
    print(f"RabbitMQ {broker.version} is ready on localhost:{broker.port}.")
    print(f"Its management UI: http://localhost:{broker.ui_port} (user guest, password guest)")
    here = ""
    if port != 5672:
        print(f"For the lessons: export AMQP_URL={broker.url}")
        here = f"AMQP_PORT={port} "
    print(f"To stop it: {here}python3 tools/broker.py down")


def down() -> None:
    broker = shared()
    if not speaks_amqp(broker.port):
        print(f"There is no broker on localhost:{broker.port}.")
        return
    # Docker may have come or gone since `up`: the node's folder tells which kind it started.
    if (NODE_FOLDER / "pid").exists():
        broker = NativeBroker(broker.port, broker.ui_port, NODE_FOLDER)
    if not broker.published():
        raise BrokerError(f"`up` did not start the broker on localhost:{broker.port}")
    broker.stop()
    print("The broker has stopped. Its data are kept for the next time.")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["up", "down"])
    {"up": up, "down": down}[parser.parse_args().command]()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # nobody reads any more: | head
        os._exit(1)
    except BrokerError as error:
        sys.exit(f"broker: {error}")
