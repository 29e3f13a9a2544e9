"""Run a script of this repository as a process, and wait for the lines it prints."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tools.common import ROOT, ToolError, wait_until

# A script that waits for messages, or for requests, prints one of these once it does.
READY = (" [*] ", " [x] Awaiting")


class ScriptProcess:
    """A running script, such as ScriptProcess("simple/consumer.py", url=broker.url).

    `output` and `errors` are the lines of its standard output and error so far. With
    stderr=subprocess.STDOUT, all are in `output`, in the order of a terminal.
    `on_line`, if given, is called with each line of either, in another thread.
    Other keyword arguments become environment variables. Timeouts are in seconds.
    """

    def __init__(
        self,
        script: str,
        *arguments: str | bytes,
        url: str | None = None,
        on_line: Callable[[str], None] | None = None,
        cwd: str | Path | None = None,
        stderr: int = subprocess.PIPE,
        **environment: str,
    ) -> None:
        self.script = script
        self.output: list[str] = []
        self.errors: list[str] = []
        self._on_line = on_line
        env = os.environ | environment
        env.pop("PYTHONUNBUFFERED", None)  # a lesson prints line by line without it
        if url is not None:
            env["AMQP_URL"] = url
        self.process = subprocess.Popen(
            [sys.executable, ROOT / script, *arguments],
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
        streams = (self.process.stdout, self.output), (self.process.stderr, self.errors)
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in streams
            if stream
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: IO[bytes], lines: list[str]) -> None:
        with stream:
            for raw in stream:
                line = raw.decode(errors="replace").rstrip("\r\n")
                if self._on_line:
                    self._on_line(line)
                lines.append(line)

    def __repr__(self) -> str:
        lines = "\n".join(f"    {line[:300]}" for line in [*self.output, *self.errors])
        return f"{self.script} (exit status {self.process.poll()}) printed:\n{lines}"

    @property
    def running(self) -> bool:
        """Whether it might still print something."""
        return any(reader.is_alive() for reader in self._readers)

    def count(self, *texts: str) -> int:
        """Return how many lines contain one of the texts."""
        lines = [*self.output, *self.errors]
        return sum(any(text in line for text in texts) for line in lines)

    def wait_for(
        self, *texts: str, times: int = 1, timeout: float = 30
    ) -> ScriptProcess:
        """Wait until that many lines contain one of the texts. Return self.

        Raises ToolError after the timeout, or if the script exits before.
        """

        def finished() -> bool:
            exited = not self.running  # look at this first: it might print, then exit
            return self.count(*texts) >= times or exited

        wait_until(finished, self, timeout)
        if self.count(*texts) < times:
            raise ToolError(f"Exited before {times} lines with {texts}\n{self}")
        return self

    def wait_until_ready(self) -> ScriptProcess:
        """Wait until it prints that it's ready. Return self. See wait_for()."""
        return self.wait_for(*READY)

    def wait(self, timeout: float = 30) -> int:
        """Wait until it has exited and we have read all its output. Return its status.

        Raises ToolError after the timeout.
        """
        wait_until(lambda: not self.running, self, timeout)
        return self.process.wait()

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send it a signal and return its exit status. See wait()."""
        self.process.send_signal(signum)
        return self.wait()

    def kill(self) -> None:
        """Kill it with SIGKILL, if it still runs."""
        self.process.kill()
        self.wait()
