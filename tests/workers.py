"""Workers of one lesson, of which tests kill some."""

import random
from functools import partial
from typing import Any

from tests.helpers import done, received
from tools.common import wait_until


class WorkerPool:
    """Workers that run, and those that are killed."""

    def __init__(self, start, script: str, size: int, **options: Any) -> None:
        self._start = partial(start, script, **options)
        self._running = [self._start() for _ in range(size)]
        self._all = self._running.copy()
        for worker in self._all:
            worker.wait_until_ready()

    def kill_some(self, kills: int, tasks: list[str]) -> None:
        """Kill workers at random moments. Start another in the place of each."""
        last = len(tasks) - len(self._running)
        for moment in sorted(random.sample(range(2, last), kills)):
            self._wait_for_received(moment)
            i = random.randrange(len(self._running))
            self._running[i].kill()
            self._running[i] = self._start()
            self._all.append(self._running[i])

    def _wait_for_received(self, count: int) -> None:
        wait_until(lambda: len(received(*self._all)) >= count, self._all)

    def wait_for_done(self, tasks: list[str]) -> None:
        wanted = {repr(task) for task in tasks}
        wait_until(lambda: wanted <= {*done(*self._all)}, self._all, 60)

    def stop(self) -> list[int]:
        """Send SIGTERM to all workers that run. Return their exit statuses."""
        return [worker.stop() for worker in self._running]

    def figures(self) -> str:
        tasks = received(*self._all), done(*self._all)
        again, twice = (len(each) - len(set(each)) for each in tasks)
        return f"{again} redelivered, {twice} done twice"
