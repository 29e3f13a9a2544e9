"""Servers on 127.0.0.1 that aren't RabbitMQ."""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator


def reset(client: socket.socket) -> None:
    """Close a connection with a reset: linger for 0 seconds."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


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
                        client.close()
                    else:
                        reset(client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
