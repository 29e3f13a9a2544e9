"""A broker in Docker: a service of docker-compose.yml."""

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator

from tools.broker.base import Broker
from tools.common import ROOT, ToolError, run, wait_until

COMPOSE = ("docker", "compose", "-f", str(ROOT / "docker-compose.yml"))


class DockerBroker(Broker):
    """A service of docker-compose.yml, in its own Compose project."""

    kind = "in Docker"

    def __init__(
        self,
        project: str,
        ports: dict[str, int],
        service: str = "rabbitmq",
        port_variable: str = "AMQP_PORT",
    ) -> None:
        """`ports` are values for the file's variables. One of them is our AMQP port."""
        super().__init__(ports[port_variable], ports.get("UI_PORT"))
        self.service = service
        self.environment = os.environ | {
            name: str(port) for name, port in ports.items()
        }
        self._command = [*COMPOSE, "--profile", "cluster", "-p", project]

    def compose(self, *arguments: str) -> str:
        """Run `docker compose` for this project and return its output."""
        return run(*self._command, *arguments, env=self.environment)

    def start(self) -> None:
        self.compose("up", "-d", "--wait", self.service)

    def stop(self) -> None:
        self.compose("stop", "-t", "60", self.service)

    def kill(self) -> None:
        self.compose("kill", self.service)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        def paused() -> bool:
            # On Linux with cgroup v1, runc gives up on a busy container after a moment.
            with contextlib.suppress(ToolError):
                self.compose("pause", self.service)
                return True
            return False

        wait_until(paused, "docker compose pause", 20)
        try:
            yield
        finally:
            self.compose("unpause", self.service)

    def remove(self) -> None:
        """Stop all nodes of the project and delete their data."""
        self.compose("down", "-v", "-t", "0")

    def ctl(self, *arguments: str) -> str:
        return self.compose("exec", "-T", self.service, "rabbitmqctl", "-q", *arguments)


def pull() -> None:
    """Pull the image of docker-compose.yml, unless it's here. Raises ToolError."""
    image = run(*COMPOSE, "config", "--images").split()[0]
    if not run("docker", "image", "ls", "-q", image):
        print(f"Pulling {image}, once.", flush=True)
        run("docker", "pull", "-q", image)


@functools.cache
def docker_problem() -> str:
    """Return why we can't use Docker and what to do about it, or "" if we can."""
    if not shutil.which("docker"):
        return "There's no docker command. Install Docker"
    try:
        run("docker", "version")
    except ToolError as error:
        reason = str(error).splitlines()[0]
        return f"Docker doesn't work ({reason}). Start it, or get permission to use it"
    try:
        run("docker", "compose", "version")
    except ToolError:
        install = "Install it (https://docs.docker.com/compose/install/)"
        return f"Docker has no Compose plugin. {install}"
    return ""
