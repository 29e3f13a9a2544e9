"""What the tests of all scripts know about them, from the scripts and their pages."""

from __future__ import annotations

import shlex

from tools.common import ROOT
from tools.lessons import CONSUMERS, PRODUCERS, SCRIPTS
from tools.pages import blocks, commands

SOURCES = {script: (ROOT / script).read_text() for script in SCRIPTS}

# A web server instead of a script that sends something and exits.
SERVERS = [script for script in SCRIPTS if "serve_forever()" in SOURCES[script]]
SENDERS = [script for script in PRODUCERS if script not in SERVERS]
RECONNECTING = [script for script in SCRIPTS if "AMQP_URL.split" in SOURCES[script]]
# These finish their task after a signal.
GRACEFUL = [script for script in CONSUMERS if "signal.SIGTERM, stop" in SOURCES[script]]
PLAIN = [script for script in SCRIPTS if script not in [*RECONNECTING, *SERVERS]]
# One script of each kind. The others have the same frame, and a test compares it.
KINDS = [
    "simple/producer.py",
    "fanout/consumer.py",
    "advanced/long_tasks/consumer.py",
    *RECONNECTING,
]


def folder(script: str) -> str:
    """Return the lesson that a script belongs to."""
    return script.rpartition("/")[0]


def arguments(script: str) -> list[str]:
    """Return the arguments with which the lesson's page first starts a script."""
    consoles = blocks([f"{folder(script)}/README.md"], "console")
    typed = [command for block in consoles for command, _ in commands(block.text)]
    return next(
        shlex.split(line)[2:] for line in typed if line.startswith(f"python {script}")
    )
