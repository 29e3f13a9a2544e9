"""Show the lessons: run both scripts of each in one terminal, with a temporary broker.

    python tools/demo.py              all lessons, one after the other
    python tools/demo.py topic rpc    these

Exits with status 0 if every message arrived where it should, and nowhere else.
NO_COLOR=1 switches the colors off.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import signal
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterable, Sequence

import pika
from broker import BrokerError, exit_on_error, temporary_broker, wait_until
from lessons import LESSONS
from script import ScriptProcess

COLORS = (36, 35, 33, 32)  # cyan, magenta, yellow, green


def compare(expected: Sequence[str], output: Iterable[str]) -> tuple[list, list]:
    """Return which expected lines are missing, and which lines are unexpected.

    See Lesson for what an expected line means.
    """
    kinds = {tuple(text.split()[:2]) for text in expected}
    lines = [line.strip() for line in output if tuple(line.split()[:2]) in kinds]
    missing = []
    for text in expected:
        pattern = ".*".join(map(re.escape, text.split("…")))
        match = next((line for line in lines if re.fullmatch(pattern, line)), None)
        if match is None:
            missing.append(text)
        else:
            lines.remove(match)
    return missing, lines


def run_lesson(name: str, url: str, timeout: float = 30) -> None:
    """Demonstrate a lesson as Lesson describes. The timeout is for each wait, in s.

    Raises AssertionError or BrokerError if a script fails, or if a line is missing or
    unexpected.
    """
    lesson = LESSONS[name]
    colors = itertools.cycle(COLORS)
    use_color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))

        def start(script: str, arguments: Sequence[str], label: str) -> ScriptProcess:
            color = next(colors)

            def print_line(line: str) -> None:
                line = f"{label:>10} | {line}"
                print(f"\033[{color}m{line}\033[0m" if use_color else line, flush=True)

            path = f"{name}/{script}.py"
            print_line("$ " + shlex.join(["python", path, *arguments]))
            process = ScriptProcess(
                path, *arguments, url=url, on_line=print_line, cwd=folder
            )
            stack.callback(process.kill)
            return process

        def run(script: str, arguments: Sequence[str]) -> list[str]:
            process = start(script, arguments, script)
            assert process.wait(timeout) == 0, process
            return process.output

        labels = [f"consumer {i}" for i, _ in enumerate(lesson.consumers, start=1)]
        if len(labels) == 1:
            labels = ["consumer"]

        # The runs of each consumer: more than one if a message killed it.
        consumers: list[list[ScriptProcess]] = [[] for _ in labels]

        def start_consumer(index: int) -> None:
            process = start("consumer", lesson.consumers[index], labels[index])
            consumers[index].append(process.wait_until_ready())

        def missing_and_unexpected() -> list[tuple[list, list]]:
            outputs = [[line for p in runs for line in p.output] for runs in consumers]
            if len(lesson.consumed) == 1:
                outputs = [list(itertools.chain(*outputs))]
            return list(map(compare, lesson.consumed, outputs))

        def arrived() -> bool:
            return not any(missing for missing, _ in missing_and_unexpected())

        def killed() -> list[int]:
            return [
                index
                for index, runs in enumerate(consumers)
                if not runs[-1].running and runs[-1].wait() < 0
            ]

        for index in range(len(consumers)):
            start_consumer(index)
        produced = [line for args in lesson.producers for line in run("producer", args)]
        connection = pika.BlockingConnection(pika.URLParameters(url))
        channel = stack.enter_context(connection).channel()

        def finished() -> bool:
            for index in killed():
                start_consumer(index)
            return arrived() and all(
                channel.queue_declare(queue, passive=True).method.message_count == count
                for queue, count in lesson.remaining.items()
            )

        description = f"{lesson.consumed} from the consumers; then {lesson.remaining}"
        wait_until(finished, description, timeout)
        for *_, last in consumers:
            assert last.stop(signal.SIGINT) in (0, -signal.SIGKILL), last
        found = [line for args in lesson.afterwards for line in run("consumer", args)]

        comparisons = missing_and_unexpected()
        comparisons += [
            compare(lesson.produced, produced),
            compare(lesson.found, found),
        ]
        for missing, unexpected in comparisons:
            assert not missing, f"missing: {missing}"
            assert not unexpected, f"unexpected: {unexpected}"


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
                run_lesson(name, broker.url)
            except (AssertionError, BrokerError) as error:
                failed.append(name)
                print(f"   failed: {error}")
            else:
                print("   all messages arrived")
    if failed:
        raise BrokerError(f"These lessons failed: {', '.join(failed)}")
    print(f"\nAll messages arrived: {', '.join(names)}.")


if __name__ == "__main__":
    exit_on_error(main)
