"""Get or run a RabbitMQ broker.

    python -m tools.broker install    get what a broker needs, unless it's here already
    python -m tools.broker run        run a broker on localhost:5672 until Ctrl+C

`run` reads AMQP_PORT and UI_PORT, in case 5672 or 15672 is in use. It keeps the
broker's data for the next time.
"""

from __future__ import annotations

import fcntl
import os
import signal
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from tools.broker import broker_on, install
from tools.broker.base import FOLDER, server_properties
from tools.common import ToolError, exit_on_error, ignore_signals


def port_from(variable: str, default: int) -> int:
    value = os.environ.get(variable) or str(default)
    if not (value.isdecimal() and 0 < int(value) < 65536):
        raise ToolError(f"{variable} must be a number from 1 to 65535, not {value!r}")
    return int(value)


def run_in_foreground() -> None:
    """Run a broker on localhost until a signal. Raises ToolError."""
    port, ui_port = port_from("AMQP_PORT", 5672), port_from("UI_PORT", 15672)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f"port-{port}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process exits
        except BlockingIOError:
            raise ToolError(f"A broker for localhost:{port} already runs.") from None
        if server_properties(port):
            raise ToolError(f"A RabbitMQ is already running on localhost:{port}.")
        install()
        broker = broker_on(port, ui_port)
        try:
            broker.start()
            print(f"{broker}, is ready. To exit press CTRL+C")
            print(f"Management UI: http://localhost:{ui_port} (guest, guest)")
            signal.pause()
        finally:
            with ignore_signals():
                broker.stop()


def main() -> None:
    parser = ArgumentParser(
        prog="python -m tools.broker",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["install", "run"])
    command = parser.parse_args().command
    {"install": install, "run": run_in_foreground}[command]()


if __name__ == "__main__":
    exit_on_error(main)
