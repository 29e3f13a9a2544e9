"""Start a RabbitMQ broker: in Docker, or as a node of this machine's rabbitmq-server.

It uses Docker if an engine answers, and rabbitmq-server otherwise. BROKER=docker or
BROKER=native chooses.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools.broker.base import FOLDER, Broker, free_port, temporary_name
from tools.broker.debian import unpack
from tools.broker.docker import DockerBroker, docker_problem, pull
from tools.broker.native import NativeBroker, native_programs
from tools.common import ToolError, ignore_signals


def install() -> None:
    """Get what temporary_broker() needs, unless it's here. Raises ToolError."""
    if uses_docker():
        pull()
    elif not native_programs():
        if not shutil.which("apt-get"):
            raise ToolError(
                "RabbitMQ isn't installed. Install it, for example with: brew install "
                "rabbitmq. Or use Docker."
            )
        unpack()


def uses_docker() -> bool:
    """Return whether brokers run in Docker.

    Raises ToolError if BROKER is wrong, or if Docker fails and there's nothing else.
    """
    choice = os.environ.get("BROKER") or "any"
    if choice not in ("any", "docker", "native"):
        raise ToolError(f"BROKER must be docker or native, not {choice!r}")
    if choice == "native":
        return False
    if docker_problem() and (
        choice == "docker" or (shutil.which("docker") and not native_programs())
    ):
        raise ToolError(
            f"{docker_problem()}. To use a broker without Docker, type: "
            "export BROKER=native"
        )
    return not docker_problem()


def broker_on(port: int, ui_port: int, name: str = "", folder: Path = FOLDER) -> Broker:
    """Return a broker for these ports, with its data under that name.

    Raises ToolError.
    """
    # The port is in the name, because a Compose project has only one broker.
    name = name or f"rabbitmq-by-example-{port}"
    if uses_docker():
        return DockerBroker(name, {"AMQP_PORT": port, "UI_PORT": ui_port})
    return NativeBroker(port, folder / name, ui_port)


@contextlib.contextmanager
def temporary_broker() -> Iterator[Broker]:
    """Start a broker on a free port. Remove it and its data afterwards.

    Raises ToolError if it doesn't start.
    """
    folder = Path(tempfile.gettempdir())
    broker = broker_on(free_port(), free_port(), temporary_name(), folder)
    try:
        broker.start()
        yield broker
    finally:
        with ignore_signals():
            broker.remove()


@contextlib.contextmanager
def temporary_cluster() -> Iterator[list[DockerBroker]]:
    """Start the three nodes of docker-compose.yml. Remove them afterwards.

    This requires Docker. Raises ToolError if they don't start.
    """
    amqp = {n: f"AMQP_PORT_{n}" for n in (1, 2, 3)}
    ports = {variable: free_port() for variable in [*amqp.values(), "UI_PORT_1"]}
    name = temporary_name()
    nodes = [DockerBroker(name, ports, f"rabbit-{n}", amqp[n]) for n in amqp]
    try:
        # All together, because each waits for the others.
        nodes[0].compose("up", "-d", "--wait", *(node.service for node in nodes))
        yield nodes
    finally:
        with ignore_signals():
            nodes[0].remove()
