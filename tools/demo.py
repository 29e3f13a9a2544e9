"""Show the lessons: run the terminals on their pages, with a temporary broker.

    python -m tools.demo              all lessons, one after the other
    python -m tools.demo topic rpc    these

Exits with status 0 if every terminal printed what its page shows.
"""

import contextlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile

from tools.broker import temporary_broker
from tools.broker.base import free_port
from tools.common import ToolError, exit_on_error, wait_until
from tools.lessons import LESSONS
from tools.pages import Block, commands, pattern, terminal_groups
from tools.script import READY, ScriptProcess


class Command:
    """A command that's running in a terminal, and the lines that its page shows."""

    def __init__(self, block: Block, typed: str, shown: list[str], url: str, cwd: str):
        self.block, self.shown = block, shown
        self.print_line(f"$ {typed}")
        program, *arguments = shlex.split(typed)
        if program == "curl":
            arguments = ["tools/curl.py", *arguments]
        elif program != "python":
            raise ToolError(f"{block.place}: we can't run {typed!r}")
        self.process = ScriptProcess(
            *arguments,
            url=url,
            cwd=cwd,
            stderr=subprocess.STDOUT,
            on_line=self.print_line,
        )

    def print_line(self, line: str) -> None:
        print(f"terminal {self.block.terminal} | {line}", flush=True)

    def keeps_running(self) -> bool:
        """Wait until it's ready for messages, or has exited. Return whether it runs."""
        process = self.process
        wait_until(lambda: process.count(*READY) or not process.running, process)
        return process.running

    def matches(self) -> bool:
        """Return whether it has printed what the page shows."""
        shown = [r"(.*\n)*" if s == "…" else pattern(s) + r"\n" for s in self.shown]
        printed = "".join(f"{line}\n" for line in self.process.output)
        return bool(re.fullmatch("".join(shown), printed))

    def check(self) -> None:
        """Raise ToolError if it failed, or printed something else than its page."""
        if self.process.wait() != 0 or not self.matches():
            shown = "\n".join(self.shown)
            raise ToolError(f"{self.block.place} shows\n{shown}\nbut {self.process}")


def run_terminals(terminals: list[Block], url: str) -> None:
    """Run terminals side by side, in an empty folder, and print what they print.

    Raises ToolError if a terminal prints something else than its page shows.
    """
    port = str(free_port())
    typed = [commands(re.sub(r"\b8000\b", port, b.text)) for b in terminals]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))
        while any(typed):
            running = []
            # Start the commands of each terminal, up to one that keeps running.
            for block, rest in zip(terminals, typed, strict=True):
                while rest:
                    command = Command(block, *rest.pop(0), url, folder)
                    stack.callback(command.process.kill)
                    if command.keeps_running():
                        running.append(command)
                        break
                    command.check()
            # Wait until each of these has printed what its page shows.
            for command in running:
                with contextlib.suppress(ToolError):  # check() says more
                    wait_until(command.matches, command.process)
            # The reader presses Ctrl+C in each terminal.
            for command in running:
                command.process.process.send_signal(signal.SIGINT)
                command.check()


def main() -> None:
    names = sys.argv[1:] or list(LESSONS)
    if not set(names) <= set(LESSONS):
        raise ToolError(f"LESSON must be one of {', '.join(LESSONS)}")
    with temporary_broker() as broker:
        print(broker)
        for name in names:
            print(f"\n== {name} ==")
            for terminals in terminal_groups(f"{name}/README.md"):
                run_terminals(terminals, broker.url)
    print(f"\nEach lesson printed what its page shows: {', '.join(names)}.")


if __name__ == "__main__":
    exit_on_error(main)
