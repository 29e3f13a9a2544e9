"""One end of a lesson as a process: started, listened to line by line, waited for with a limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
READY = ("[*] Waiting", "[x] Awaiting")  # how a consumer says that the broker has accepted it


class End:
    """A running script of this repository, such as End("simple/consumer.py").

    lines and errors are what it has printed so far on standard output and standard error, decoded
    as UTF-8. heard, if given, is called with each line of either. Times are in seconds.
    """

    _news = threading.Condition()  # of all ends together, so that one can wait for several

    def __init__(
        self,
        script: str,
        *arguments: str | bytes,
        url: str | None = None,
        heard: Callable[[str], None] | None = None,
        **environment: str,
    ) -> None:
        self.name = script
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.heard = heard
        self._done: set[object] = set()  # the streams that have come to their end
        env = os.environ | environment
        env.pop("PYTHONUNBUFFERED", None)  # a lesson's output comes line by line without it
        if url:
            env["AMQP_URL"] = url
        self.process = subprocess.Popen(
            [sys.executable, ROOT / script, *arguments],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A background job of a shell, as a CI run may be, has its children ignore Ctrl+C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self._readers = [
            threading.Thread(target=self._read, args=stream, daemon=True)
            for stream in (
                (self.process.stdout, self.lines),
                (self.process.stderr, self.errors),
            )
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream, lines: list[str]) -> None:
        for raw in stream:
            line = raw.decode(errors="replace").rstrip("\r\n")
            if self.heard:
                self.heard(line)
            with self._news:
                lines.append(line)
                self._news.notify_all()
        self._done.add(stream)
        with self._news:
            self._news.notify_all()

    def __str__(self) -> str:
        said = "\n".join(f"    {line[:300]}" for line in [*self.lines, *self.errors])
        return f"{self.name} (exit code {self.process.poll()}) has printed:\n{said}"

    @property
    def running(self) -> bool:
        """Tell whether it has not ended yet, or has not said all yet."""
        return len(self._done) < 2

    @classmethod
    def wait_until(cls, condition: Callable[[], bool], what: object, timeout: float = 30) -> None:
        """Return once condition() is true; it is looked at whenever any end prints or ends.

        Raises AssertionError, with the text of what, after timeout seconds.
        """
        with cls._news:
            assert cls._news.wait_for(condition, timeout), f"not within {timeout} s: {what}"

    def count(self, *texts: str) -> int:
        """Return how many lines of either stream have one of texts in them."""
        return sum(any(text in line for text in texts) for line in [*self.lines, *self.errors])

    def wait_for(self, *texts: str, times: int = 1, timeout: float = 30) -> End:
        """Wait until that many lines of either stream have one of texts in them; return self.

        Raises AssertionError if that does not come in time, or the script has ended without it.
        """

        def over() -> bool:
            return self.count(*texts) >= times or not self.running

        self.wait_until(over, f"{texts} x {times}: {self}", timeout)
        assert self.count(*texts) >= times, f"ended without {texts} x {times}: {self}"
        return self

    def ready(self) -> End:
        """Wait for the line that says that the broker has accepted the consumer."""
        return self.wait_for(*READY)

    def end(self, timeout: float = 30) -> int:
        """Wait until the script has ended and all its output is here; return its exit code."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s: {self}") from None
        for reader in self._readers:
            reader.join()
        return code

    def stop(self, number: int = signal.SIGTERM, timeout: float = 30) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.end(timeout)

    def kill(self) -> None:
        """End the script with SIGKILL, if it is still there."""
        self.process.kill()
        self.end()
