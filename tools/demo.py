"""Show the lessons at work: both ends of each, in one terminal, on a broker of their own.

    python tools/demo.py              all of them, one after the other
    python tools/demo.py topic rpc    these

It ends with 0 if every message arrived where it had to, and nowhere else. The broker is a private
one, gone afterwards, unless AMQP_URL names yours. NO_COLOR=1 switches the colours off.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import threading
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import dataclass, field

import pika
from broker import BrokerError, private, wait_until
from end import READY, End
from rich.console import Console
from rich.text import Text

COLORS = ("cyan", "magenta", "yellow", "green")
# The lessons whose ends do not simply run side by side: see play_confirms and play_dead_letter.
CONFIRMS, DEAD_LETTER = "advanced/confirms", "advanced/dead_letter"


@dataclass
class Demo:
    """What to start, with which arguments, and what has to be printed for it to have worked."""

    producers: list[list[str]]
    consumers: list[list[str]]
    # What each consumer has to print, or all of them together if they share a queue.
    consumed: list[list[str]]
    shared: bool = False
    produced: list[str] = field(default_factory=list)  # by all producers, answers that they print


def fib(n: int) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)


TASKS = ["First task.", "Second task..", "Third task.", "Fourth task."]
QUESTIONS = [5, 10, 20]

DEMOS = {
    "simple": Demo([[]], [[]], [[f" [x] Received '兔子{i}'" for i in range(10)]]),
    "work_queue": Demo(
        [TASKS],
        [[], []],
        [[f" [x] {verb} {task!r}" for task in TASKS for verb in ("Received", "Done")]],
        shared=True,
    ),
    "fanout": Demo(
        [[], ["warning: disk full"]],
        [[], []],
        [[" [x] Received 'info: Hello World!'", " [x] Received 'warning: disk full'"]] * 2,
    ),
    "direct": Demo(
        [["info", "All is well"], ["error", "Disk full"]],
        [["error"], []],
        [
            [" [x] Received error: 'Disk full'"],
            [" [x] Received info: 'All is well'", " [x] Received error: 'Disk full'"],
        ],
    ),
    "topic": Demo(
        [["kern.info", "Booted"], ["kern.critical", "Panic"], ["cron.critical", "No space"]],
        [["kern.*"], ["*.critical"]],
        [
            [" [x] Received 'kern.info': 'Booted'", " [x] Received 'kern.critical': 'Panic'"],
            [" [x] Received 'kern.critical': 'Panic'", " [x] Received 'cron.critical': 'No space'"],
        ],
    ),
    "rpc": Demo(
        [[str(n) for n in QUESTIONS]],
        [[], []],
        [[f" [.] fib({n})" for n in QUESTIONS]],
        shared=True,
        produced=[f" [.] Got fib({n}) = {fib(n)}" for n in QUESTIONS],
    ),
}


class Stage:
    """Starts ends and prints what they say, each line marked with its end's name and colour."""

    def __init__(self, console: Console, url: str, ends: contextlib.ExitStack) -> None:
        self.console = console
        self.url = url
        self.ends = ends
        self.colors = iter(COLORS * 9)
        self.lock = threading.Lock()

    def start(self, lesson: str, script: str, name: str, arguments: list[str]) -> End:
        color = next(self.colors)

        def heard(line: str) -> None:
            with self.lock:
                self.console.print(Text(f"{name:>10} | {line}", style=color))

        path = f"{lesson}/{script}.py"
        heard("$ " + shlex.join(["python", path, *arguments]))
        end = End(path, *arguments, url=self.url, heard=heard)
        self.ends.callback(end.kill)
        return end


def play(console: Console, lesson: str, url: str, patience: float) -> str:
    """Run one lesson. Return what went wrong, or nothing."""
    with contextlib.ExitStack() as ends:
        stage = Stage(console, url, ends)
        if lesson in PLAYS:
            return PLAYS[lesson](stage, patience)
        demo = DEMOS[lesson]
        many = len(demo.consumers) > 1
        consumers = []
        # One after the other: of two that declare the same new quorum queue at the same moment,
        # RabbitMQ may close the connection of one with INTERNAL_ERROR.
        for i, arguments in enumerate(demo.consumers, start=1):
            name = f"consumer {i}" if many else "consumer"
            consumers.append(stage.start(lesson, "consumer", name, arguments).ready())
        answers = []
        for arguments in demo.producers:
            producer = stage.start(lesson, "producer", "producer", arguments)
            if producer.end() != 0:
                return str(producer)
            answers += [line for line in producer.lines if "Got" in line]
        for consumer, expected in zip(consumers, demo.consumed, strict=False):
            wait_for_lines(consumers if demo.shared else [consumer], expected, patience)
        codes = [consumer.stop() for consumer in consumers]
    got = [work_of(consumer) for consumer in consumers]
    if demo.shared:
        got = [sorted(line for lines in got for line in lines)]
        demo.consumed = [sorted(demo.consumed[0])]
    if any(codes) or got != demo.consumed or sorted(answers) != sorted(demo.produced):
        return f"expected {demo.consumed} and {demo.produced}, got {got} and {answers}"
    return ""


def play_confirms(stage: Stage, patience: float) -> str:
    """A consumer that ends by itself, at the count that the producer is told to send."""
    consumer = stage.start(CONFIRMS, "consumer", "consumer", ["1000"]).ready()
    producer = stage.start(CONFIRMS, "producer", "producer", ["1000"])
    codes = producer.end(patience), consumer.end(patience)
    if any(codes) or not producer.count("Confirmed 1000 of") or not consumer.count("Received 1000"):
        return f"{producer}\n{consumer}"
    return ""


def play_dead_letter(stage: Stage, patience: float) -> str:
    """A consumer that one order kills, started again until that order is dead."""
    producer = stage.start(DEAD_LETTER, "producer", "producer", [])
    if producer.end() != 0:
        return str(producer)
    consumers: list[End] = []
    nodes = [pika.URLParameters(url) for url in stage.url.split(",")]
    with pika.BlockingConnection(nodes) as connection:
        channel = connection.channel()

        def over() -> bool:
            dead = channel.queue_declare("dead_orders", passive=True).method.message_count
            return (sum(end.count("Done") for end in consumers), dead) == (2, 3)

        for _ in range(10):
            consumers.append(stage.start(DEAD_LETTER, "consumer", "consumer", []).ready())
            what = f"two orders done and three dead: {consumers[-1]}"
            wait_until(lambda: over() or not consumers[-1].running, what, patience)
            if over():
                consumers[-1].stop()
                break
            consumers[-1].heard(f"(ended by signal {-consumers[-1].end()})")
    dead = stage.start(DEAD_LETTER, "consumer", "consumer", ["--dead"])
    if dead.end() or dead.count("Dead") != 3:
        return str(dead)
    return ""


PLAYS = {CONFIRMS: play_confirms, DEAD_LETTER: play_dead_letter}


def wait_for_lines(consumers: list[End], expected: list[str], patience: float) -> None:
    """Wait until these consumers together have told of as many messages as expected has lines."""
    End.wait_until(
        lambda: sum(len(work_of(consumer)) for consumer in consumers) >= len(expected),
        expected,
        patience,
    )


def work_of(consumer: End) -> list[str]:
    """Return the lines of a consumer that tell of messages."""
    return [line for line in consumer.lines if not any(text in line for text in READY)]


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("lesson", nargs="*", choices=[*DEMOS, *PLAYS, []], metavar="lesson")
    parser.add_argument("--patience", type=float, default=30, metavar="SECONDS")
    arguments = parser.parse_args()
    lessons = arguments.lesson or [*DEMOS, *PLAYS]
    console = Console(highlight=False, soft_wrap=True)
    failed = []
    with contextlib.ExitStack() as stack:
        url = os.environ.get("AMQP_URL")
        if not url:
            broker = stack.enter_context(private())
            url = broker.url
            console.print(
                f"A RabbitMQ {broker.version} of its own is ready on localhost:{broker.port}"
                f" ({broker.kind})."
            )
        for lesson in lessons:
            console.print(f"\n== {lesson} ==", style="bold")
            wrong = play(console, lesson, url, arguments.patience)
            if wrong:
                failed.append(lesson)
            console.print(f"   not as it should be: {wrong}" if wrong else "   all delivered")
    if failed:
        sys.exit(f"demo: not delivered as they should be: {', '.join(failed)}")
    console.print(f"\nAll delivered: {', '.join(lessons)}.")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that the broker goes too
        signal.signal(number, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # nobody reads any more: | head
        os._exit(1)
    except (AssertionError, BrokerError) as error:
        sys.exit(f"demo: {error}")
