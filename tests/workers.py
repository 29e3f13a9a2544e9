"""Workers of one lesson, of which tests kill some."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

from tools.common import wait_until
from tools.script import ScriptProcess


class WorkerPool:
    """Workers, and the tasks that all of them together have received and done."""

    def __init__(self, start, script: str, size: int, **options: Any) -> None:
        self._start, self._script, self._options = start, script, options
        self.received: list[str] = []
        self.done: list[str] = []
        self._times: list[float] = []
        self.workers = [self.start() for _ in range(size)]
        for worker in self.workers:
            worker.wait_until_ready()

    def _on_line(self, line: str) -> None:
        if " [x] Received " in line:
            self.received.append(line.split("Received ")[1])
        if " [x] Done " in line:
            self.done.append(line.split("Done ")[1])
            self._times.append(time.monotonic())

    def start(self) -> ScriptProcess:
        return self._start(self._script, on_line=self._on_line, **self._options)

    def kill_some(self, kills: int, tasks: list[str]) -> None:
        """Kill workers at random moments. Start another in the place of each."""
        last = len(tasks) - len(self.workers)
        for moment in sorted(random.sample(range(2, last), kills)):
            self.wait_for_received(moment)
            i = random.randrange(len(self.workers))
            self.workers[i].kill()
            self.workers[i] = self.start()

    def wait_for_received(self, count: int) -> None:
        wait_until(lambda: len(self.received) >= count, self)

    def wait_for_done(self, tasks: list[str]) -> None:
        wanted = {repr(task) for task in tasks}
        wait_until(lambda: wanted <= set(self.done), self, 60)

    def stop(self) -> list[int]:
        """Send SIGTERM to all workers. Return their exit statuses."""
        return [worker.stop() for worker in self.workers]

    def __str__(self) -> str:
        return "\n".join(map(str, self.workers))

    def figures(self) -> str:
        pause = max(b - a for a, b in itertools.pairwise(self._times))
        again = len(self.received) - len(set(self.received))
        twice = len(self.done) - len(set(self.done))
        return f"{again} redelivered, {twice} done twice, longest pause {pause:.1f} s"
