"""Get or run a RabbitMQ broker.

    python -m tools.broker install    get what a broker needs, unless it's here already
    python -m tools.broker run        run a broker on localhost:5672 until Ctrl+C

`run` reads AMQP_PORT and UI_PORT, in case 5672 or 15672 is in use. It keeps the
broker's data for the next time.
"""

import os
import signal
import sys

from tools.broker import broker_on, install
from tools.broker.base import server_properties
from tools.common import ToolError, exit_on_error, ignore_signals


def port_from(variable: str, default: int) -> int:
    value = os.environ.get(variable) or str(default)
    if not (value.isdecimal() and 0 < int(value) < 65536):
        raise ToolError(f"{variable} must be a number from 1 to 65535, not {value!r}")
    return int(value)


def run() -> None:
    """Run a broker on localhost until a signal. Raises ToolError."""
    port, ui_port = port_from("AMQP_PORT", 5672), port_from("UI_PORT", 15672)
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
    commands = {"install": install, "run": run}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise ToolError(f"Type one of these after it: {', '.join(commands)}")
    commands[sys.argv[1]]()


if __name__ == "__main__":
    exit_on_error(main)
