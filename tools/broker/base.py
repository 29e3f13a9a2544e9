"""What all brokers share: the interface, ports, and who answers on a port."""

import base64
import contextlib
import functools
import json
import os
import re
import socket
import urllib.request
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pika.frame

from tools.common import ToolError

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
FOLDER = CACHE / "rabbitmq-by-example"


class Broker(ABC):
    """A RabbitMQ node on this machine. Its methods raise ToolError.

    `kind` says where it runs, `port` is its AMQP port, and `url` is its AMQP_URL. If it
    has a management UI, `ui_port` is its port.
    """

    kind: str

    def __init__(self, port: int, ui_port: int | None) -> None:
        self.port = port
        self.ui_port = ui_port
        self.url = f"amqp://guest:guest@localhost:{port}/%2F"

    def __str__(self) -> str:
        version = ".".join(map(str, self.version))
        return f"RabbitMQ {version}, {self.kind}, on localhost:{self.port}"

    @functools.cached_property
    def version(self) -> tuple[int, ...]:
        """RabbitMQ's version, such as (4, 3, 6)."""
        numbers = re.findall(r"\d+", server_properties(self.port)["version"])
        return tuple(map(int, numbers[:3]))

    @abstractmethod
    def start(self) -> None:
        """Start the node, with the data it had, if any. Return once it's ready."""

    @abstractmethod
    def stop(self) -> None:
        """Shut the node down as an administrator would. Keep its data."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the node with SIGKILL. Keep its data as they are at that moment."""

    @abstractmethod
    def frozen(self) -> contextlib.AbstractContextManager[None]:
        """Suspend the node in a `with` block: it doesn't respond, or disconnect."""

    @abstractmethod
    def remove(self) -> None:
        """Kill the node and delete its data."""

    @abstractmethod
    def ctl(self, *arguments: str) -> str:
        """Run https://www.rabbitmq.com/docs/man/rabbitmqctl.8 and return its output."""

    def get(self, path: str) -> Any:
        """Return what GET /api/PATH of the management UI's HTTP API returns.

        It's a hundred times as fast as ctl(). Raises OSError if there's no response.
        https://www.rabbitmq.com/docs/http-api-reference
        """
        return json.loads(self._request("GET", path))

    def put(self, path: str, **body: object) -> None:
        """Create what PUT /api/PATH describes, such as a user. See get()."""
        self._request("PUT", path, body)

    def delete(self, path: str) -> None:
        """Delete what DELETE /api/PATH names, such as a policy. See get()."""
        self._request("DELETE", path)

    def _request(self, method: str, path: str, body: object = None) -> bytes:
        request = urllib.request.Request(
            f"http://localhost:{self.ui_port}/api/{path}",
            json.dumps(body).encode() if body is not None else None,
            method=method,
        )
        login = base64.b64encode(b"guest:guest").decode()
        request.add_header("Authorization", f"Basic {login}")
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.read()

    def queues(self) -> list[str]:
        """Return the names of all queues in the vhost /. See get()."""
        return [queue["name"] for queue in self.get("queues/%2F?columns=name")]

    def restart(self) -> None:
        """Stop the node and start it again."""
        self.stop()
        self.start()


def server_properties(port: int) -> dict[str, str]:
    """Return what the RabbitMQ on localhost at that port says about itself, or {}.

    A client begins with a protocol header, and the broker responds with its properties:
    section 4.2.2 of the specification on https://www.rabbitmq.com/amqp-0-9-1-protocol.

    Raises ToolError if another program answers.
    """
    received = b""
    address = "localhost", port
    with (
        contextlib.suppress(OSError),  # nothing listens there, or it has just stopped
        socket.create_connection(address, timeout=5) as connection,
    ):
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        while chunk := connection.recv(4096):
            received += chunk
            _, frame = pika.frame.decode_frame(received)
            if isinstance(frame, pika.frame.Method):
                return frame.method.server_properties
    if received:
        raise ToolError(f"Another program uses port {port}. Stop it, or set AMQP_PORT.")
    return {}


_reservations: list[socket.socket] = []


def free_port() -> int:
    """Return a port that no other call returns until this process exits.

    We reserve it by binding the UDP port of the same number, which nobody uses. The
    system gives ports above these to programs that ask for any free port.

    Raises ToolError if none is free.
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
    raise ToolError("No port from 20000 to 31999 is free.")


def temporary_name() -> str:
    return f"rabbitmq-by-example-{uuid.uuid4().hex[:8]}"


def check_path(path: Path) -> None:
    """Raise ToolError if RabbitMQ can't run in that folder."""
    if not re.fullmatch(r"[\w./+-]+", str(path), re.ASCII):
        raise ToolError(
            f"RabbitMQ can't run in {path}, because the path contains a character "
            "other than A-Z, a-z, 0-9 and _./+- Set TMPDIR or XDG_CACHE_HOME to a "
            "folder with a simpler path."
        )
