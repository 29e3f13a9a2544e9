"""A broker as a private node of this machine's rabbitmq-server."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from tools.broker.base import Broker, check_path, free_port, server_properties
from tools.broker.debian import DEBIAN
from tools.common import ToolError, run, wait_until


class NativeBroker(Broker):
    """A node of this machine's rabbitmq-server.

    It keeps everything in one folder, reads nothing from /etc/rabbitmq, and listens
    only on 127.0.0.1, as does Erlang's port mapper (epmd), which it runs itself.
    https://www.rabbitmq.com/docs/configure#supported-environment-variables
    """

    kind = "as a private node on this machine"

    def __init__(self, port: int, folder: Path, ui_port: int) -> None:
        super().__init__(port, ui_port)
        check_path(folder)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self._processes: list[subprocess.Popen] = []
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{port}\n"
            "management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {ui_port}\n"
        )
        (folder / "enabled_plugins").write_text("[rabbitmq_management].")
        # Most of these don't exist. Naming them keeps RabbitMQ away from /etc/rabbitmq.
        files = {
            "CONF_ENV_FILE": "rabbitmq-env.conf",
            "CONFIG_FILE": "rabbitmq.conf",
            "CONFIG_FILES": "conf.d/*.conf",
            "ADVANCED_CONFIG_FILE": "advanced.config",
            "ENABLED_PLUGINS_FILE": "enabled_plugins",
            "MOTD_FILE": "motd",
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
            "RABBITMQ_NODENAME": f"{folder.name}@localhost",
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
            "PATH": f"{native_programs()}:{os.environ['PATH']}",
            # For libraries that unpack() found missing.
            "LD_LIBRARY_PATH": ":".join(map(str, DEBIAN.glob("usr/lib/*-linux-gnu*"))),
        }

    def start(self) -> None:
        with (self.folder / "output").open("wb") as file:
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
            if self._processes[-1].poll() is not None:
                reason = (self.folder / "output").read_text(errors="replace")[-2000:]
                raise ToolError(f"rabbitmq-server didn't start:\n{reason}")
            # By default, a cluster has the name of its first node. Another RabbitMQ can
            # answer on our port while ours still starts, and fails.
            name = server_properties(self.port).get("cluster_name", "")
            return name.startswith(f"{self.folder.name}@")

        wait_until(ready, f"an answer on localhost:{self.port}", 120)

    def stop(self) -> None:
        if self._processes:
            # rabbitmq-server is a shell script. On SIGTERM it shuts its node down.
            self._processes[-1].terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
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

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        # The node is a child of the script rabbitmq-server. It stops a moment later.
        node = psutil.Process(self._processes[-1].pid).children()
        stopped = psutil.STATUS_STOPPED
        try:
            self._signal(signal.SIGSTOP)
            wait_until(lambda: all(p.status() == stopped for p in node), "SIGSTOP")
            yield
        finally:
            self._signal(signal.SIGCONT)

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ctl(self, *arguments: str) -> str:
        return run("rabbitmqctl", "-q", *arguments, env=self.environment)


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
