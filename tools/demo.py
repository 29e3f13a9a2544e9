"""Show the lessons: run the terminals on their pages, with a temporary broker.

    python tools/demo.py              all lessons, one after the other
    python tools/demo.py topic rpc    these

Exits with status 0 if every terminal printed what its page shows.
NO_COLOR=1 switches the colors off.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from functools import partial

from broker import BrokerError, exit_on_error, temporary_broker
from lessons import LESSONS
from pages import Block, commands, pattern, terminal_groups
from script import READY, ScriptProcess

COLORS = (36, 35, 33)  # cyan, magenta, yellow


def ready_or_finished(process: ScriptProcess) -> bool:
    return process.count(*READY) > 0 or not process.running


def matches(process: ScriptProcess, shown: list[str]) -> bool:
    """Return whether a script has printed what a terminal shows, on either stream.

    A lesson's lines on standard output begin with [x], [*] or [.].
    """
    for stream, printed in enumerate((process.errors, process.output)):
        expected = [
            line
            for line in shown
            if line == "…" or bool(re.match(r" \[[x*.]\]", line)) == stream
        ]
        parts = [r"(.*\n)*" if e == "…" else pattern(e) + r"\n" for e in expected]
        if not re.fullmatch("".join(parts), "".join(f"{line}\n" for line in printed)):
            return False
    return True


def run(block: Block, start: Callable[[str], ScriptProcess]) -> Iterator[None]:
    """Run a terminal's commands. Pause while a consumer waits for other terminals.

    Raises AssertionError if one fails, or prints something else than the page shows.
    """
    for command, shown in commands(block):
        process = start(command)
        process.wait_until(partial(ready_or_finished, process), process)
        if process.running:
            yield  # until the other terminals have started their scripts
            with contextlib.suppress(AssertionError):  # the next one says more
                process.wait_until(partial(matches, process, shown), process)
            yield  # until the other consumers have their messages, too
            process.process.send_signal(signal.SIGINT)  # the reader presses Ctrl+C
        status = process.wait()
        lines = "\n".join(shown)
        assert matches(process, shown), f"{block.place} shows\n{lines}\nbut {process}"
        assert status == 0, f"{block.place}: {process}"


def run_terminals(terminals: list[Block], url: str) -> None:
    """Run terminals side by side, in an empty folder, and print what they print.

    Raises AssertionError if a terminal prints something else than its page shows.
    """
    use_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))

        def starter(block: Block) -> Callable[..., ScriptProcess]:
            color = COLORS[int(block.terminal) % len(COLORS)]

            def print_line(line: str) -> None:
                line = f"terminal {block.terminal} | {line}"
                print(f"\033[{color}m{line}\033[0m" if use_color else line, flush=True)

            def start(command: str) -> ScriptProcess:
                print_line(f"$ {command}")
                python, script, *arguments = shlex.split(command)
                assert python == "python", f"{block.place}: we can't run {command!r}"
                process = ScriptProcess(
                    script, *arguments, url=url, on_line=print_line, cwd=folder
                )
                stack.callback(process.kill)
                return process

            return start

        runs = [run(block, starter(block)) for block in terminals]
        while runs:
            runs = [r for r in runs if next(r, "finished") != "finished"]


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("lesson", nargs="*", help=f"one of {', '.join(LESSONS)}")
    names = parser.parse_args().lesson or list(LESSONS)
    if unknown := [name for name in names if name not in LESSONS]:
        parser.error(f"unknown lesson {unknown[0]}: choose from {', '.join(LESSONS)}")
    if os.environ.get("AMQP_URL"):
        raise BrokerError(
            "AMQP_URL is set, but the demo uses only a broker that it starts itself, "
            "so that it can't mix with your messages. Type: unset AMQP_URL"
        )
    failed = []
    with temporary_broker() as broker:
        print(f"RabbitMQ {broker.version}, {broker.kind}, on localhost:{broker.port}")
        for name in names:
            print(f"\n== {name} ==")
            try:
                for terminals in terminal_groups([f"{name}/README.md"]):
                    run_terminals(terminals, broker.url)
            except AssertionError as error:
                failed.append(name)
                print(f"   failed: {error}")
    if failed:
        raise BrokerError(f"These lessons failed: {', '.join(failed)}")
    print(f"\nEach lesson printed what its page shows: {', '.join(names)}.")


if __name__ == "__main__":
    exit_on_error(main)
