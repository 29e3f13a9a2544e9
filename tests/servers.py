"""Servers on 127.0.0.1: some aren't RabbitMQ, and one is in front of it."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pika


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield port


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """Accept connections, and send nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def answering_server(answer: bytes) -> Iterator[int]:
    """Accept connections. Answer what a client sends, and close. b"" resets instead."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the server is closed
                while True:
                    client, _ = server.accept()
                    if answer:
                        client.recv(4096)
                        client.sendall(answer)
                    else:  # linger for 0 seconds: close() sends a reset
                        linger = struct.pack("ii", 1, 0)
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    client.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


class Proxy:
    """Forwards connections to the broker. It can keep what the broker sends.

    `sent` has everything that the clients sent, one bytearray for each connection.
    Once a client has sent `keeps_after`, the proxy keeps what the broker sends.
    """

    def __init__(self, broker_url: str, server: socket.socket) -> None:
        self.sent: list[bytearray] = []
        self.keeps_after = b""
        self._broker = pika.URLParameters(broker_url)
        self.url = f"amqp://guest:guest@127.0.0.1:{server.getsockname()[1]}/%2F"
        self._server = server
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        address = self._broker.host, self._broker.port
        with contextlib.suppress(OSError):  # the server is closed
            while True:
                client, _ = self._server.accept()
                broker = socket.create_connection(address)
                self._sockets += [client, broker]
                self.sent.append(bytearray())
                for to_broker in (True, False):
                    pair = (client, broker) if to_broker else (broker, client)
                    arguments = *pair, self.sent[-1], to_broker
                    threading.Thread(
                        target=self._forward, args=arguments, daemon=True
                    ).start()

    def _forward(
        self,
        source: socket.socket,
        target: socket.socket,
        sent: bytearray,
        to_broker: bool,
    ) -> None:
        with contextlib.suppress(OSError):  # one of the two is closed
            while data := source.recv(65536):
                if to_broker:
                    sent += data
                elif self.keeps_after and self.keeps_after in sent:
                    continue
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break all connections."""
        while self._sockets:
            with contextlib.suppress(OSError):
                self._sockets.pop().shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def proxy(broker_url: str) -> Iterator[Proxy]:
    """A proxy in front of the broker, until the end of the `with` block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = Proxy(broker_url, server)
        try:
            yield proxy
        finally:
            with contextlib.suppress(OSError):  # macOS can't shut down a listener
                server.shutdown(socket.SHUT_RDWR)
            proxy.cut()
