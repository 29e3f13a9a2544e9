"""Measure the lessons against other ways to do the same, on a temporary broker.

    python -m benchmarks.run      five rounds
    python -m benchmarks.run 1    one round

It writes results.md. A round measures everything once, and every second round does so
in the opposite order, so that a machine that becomes slower or faster favors nothing.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import pika

from tools.broker import Broker, temporary_broker
from tools.common import ROOT, exit_on_error, run, wait_until
from tools.script import ScriptProcess

CLIENTS = "benchmarks/clients.py"


class Bench:
    """The measurements. Each runs a command for so many messages."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        parameters = pika.URLParameters(f"{broker.url}?heartbeat=0")
        self.channel = pika.BlockingConnection(parameters).channel()

    def create(self, queue: str, messages: int = 0) -> None:
        """Create a queue, or recreate it, with so many messages."""
        arguments: dict[str, object] = {"x-queue-type": "quorum"}
        if queue == "confirms":
            arguments["x-delivery-limit"] = 1_000_000_000
        self.channel.queue_delete(queue)
        self.channel.queue_declare(queue, durable=True, arguments=arguments)
        for _ in range(messages):
            self.channel.basic_publish("", queue, b"task")
        self.check(queue, messages)

    def check(self, queue: str, messages: int) -> None:
        """Wait until the queue has so many messages, and no consumer has any."""
        columns = ("list_channels", "--silent", "messages_unacknowledged")

        def complete() -> bool:
            declared = self.channel.queue_declare(queue, passive=True)
            if declared.method.message_count != messages:
                return False
            return not any(map(int, self.broker.ctl(*columns).split()))

        wait_until(complete, f"{messages} messages in {queue}")

    def run(self, command: str) -> str:
        """Run a script to its end, and return its output."""
        script, *arguments = command.split()
        environment = os.environ | {"AMQP_URL": self.broker.url}
        return run(sys.executable, str(ROOT / script), *arguments, env=environment)

    def publish(self, command: str, count: int) -> float:
        self.create("confirms")
        output = self.run(f"{command} {count}")
        self.check("confirms", count)
        return count / float(output.split()[-2])  # "[x] Confirmed 9 in 0.05 s"

    def consume(self, command: str, count: int) -> float:
        self.publish(f"{CLIENTS} publish_select_connection", count)
        return count / self._seconds([command], "confirms", 1 + count // 1000)

    def work(self, command: str, count: int) -> float:
        queue = "jobs" if "reconnect" in command else "task_queue"
        self.create(queue, count)
        return count / self._seconds([command, command], queue, 2 + 2 * count)

    def _seconds(self, consumers: list[str], queue: str, lines: int) -> float:
        """Return the time from their first line, " [*] Waiting", to their last one."""
        times: list[float] = []
        with ExitStack() as stack:
            for command in consumers:
                consumer = ScriptProcess(
                    *command.split(),
                    url=self.broker.url,
                    on_line=lambda line: times.append(time.monotonic()),
                )
                stack.callback(consumer.kill)
            wait_until(lambda: len(times) >= lines, f"{lines} lines", 120)
            self.check(queue, 0)
        return times[lines - 1] - times[0]

    def start(self, command: str, count: int) -> float:
        self.create("hello")
        times = []
        for _ in range(count):
            start = time.monotonic()
            self.run(command)
            times.append((time.monotonic() - start) * 1000)
        self.check("hello", count)
        return median(times)


@dataclass
class Measurement:
    """A table of the results. The first way is the lesson's. The others compare."""

    title: str
    about: str
    measure: Callable[[Bench, str, int], float]
    # A command and a number of messages, with which it takes a few seconds.
    ways: dict[str, tuple[str, int]]
    # One for each round.
    figures: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


MEASUREMENTS = [
    Measurement(
        "Publish: messages per second",
        "advanced/confirms keeps up to 2000 confirms in flight. *pika's ceiling* is a "
        "`SelectConnection` that does the same, but doesn't remember which messages "
        "these are, so it couldn't send them again.",
        Bench.publish,
        {
            "advanced/confirms": ("advanced/confirms/producer.py", 100_000),
            "one confirm at a time": (f"{CLIENTS} publish_one_at_a_time", 4_000),
            "no confirms": (f"{CLIENTS} publish_no_confirms", 50_000),
            "pika's ceiling": (f"{CLIENTS} publish_select_connection", 100_000),
        },
    ),
    Measurement(
        "Consume: messages per second",
        "advanced/confirms has a prefetch of 1000, and acknowledges in batches. The "
        "others acknowledge each message on its own.",
        Bench.consume,
        {
            "advanced/confirms": ("advanced/confirms/consumer.py", 100_000),
            "prefetch 100": (f"{CLIENTS} consume 100", 40_000),
            "prefetch 1": (f"{CLIENTS} consume 1", 4_000),
        },
    ),
    Measurement(
        "Share tasks: tasks per second",
        "Two workers share tasks that take no time. advanced/reconnect starts a thread "
        "for each task, so that heartbeats continue during a long one.",
        Bench.work,
        {
            "work_queue": ("work_queue/consumer.py", 10_000),
            "official tutorial": (f"{CLIENTS} worker", 10_000),
            "advanced/reconnect": ("advanced/reconnect/consumer.py", 10_000),
        },
    ),
    Measurement(
        "Start: milliseconds (lower is better)",
        "A process starts, sends one message, and exits. The smallest program is "
        "[smallest.py](smallest.py). In each round, the median of 20 runs counts.",
        Bench.start,
        {
            "simple/producer.py": ("simple/producer.py Hello 1", 20),
            "smallest program": ("benchmarks/smallest.py", 20),
        },
    ),
]

PAGE = """\
# Benchmark results

`make bench` measured this on {date} with RabbitMQ {rabbitmq}, Python {python} and pika
{pika}. The broker and the programs shared {cores} processor cores.

A figure is the median of {rounds} rounds. A ratio is the median of the lesson's figure
divided by the other way's figure in the same round.

Messages have 100 bytes and a message ID, are persistent and mandatory, and go to a
quorum queue. After each run, the benchmark checks that the queue contains all messages,
or that the consumers have acknowledged all of them. The official tutorial's worker is
our own code, which makes the same calls. All programs print line by line, as to a
terminal.
"""

SECTION = """
## {title}

{about}

| way | median | min to max | {lesson} ÷ this |
| --- | ---: | ---: | ---: |
{rows}

```mermaid
xychart-beta horizontal
  x-axis [{names}]
  bar [{medians}]
```
"""


def section(measurement: Measurement) -> str:
    """Return a measurement's part of the page: a table, and its medians as a plot."""
    figures = measurement.figures
    lesson, *_ = figures
    rows = []
    for way, values in figures.items():
        ratio = median(a / b for a, b in zip(figures[lesson], values, strict=True))
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        rows.append(f"| {way} | {median(values):,.0f} | {spread} | {ratio:.2f} |")
    return SECTION.format(
        title=measurement.title,
        about=measurement.about,
        lesson=lesson,
        rows="\n".join(rows),
        names=", ".join(f'"{way}"' for way in figures),
        medians=", ".join(f"{median(values):.0f}" for values in figures.values()),
    )


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else 5
    jobs = [(m, way) for m in MEASUREMENTS for way in m.ways]
    with temporary_broker() as broker:
        bench = Bench(broker)
        for number in range(rounds):
            for measurement, way in jobs if number % 2 == 0 else reversed(jobs):
                print(f"round {number + 1} of {rounds}: {measurement.title}, {way}")
                figure = measurement.measure(bench, *measurement.ways[way])
                measurement.figures[way].append(figure)
    page = PAGE.format(
        date=datetime.date.today(),
        rabbitmq=".".join(map(str, broker.version)),
        python=platform.python_version(),
        pika=importlib.metadata.version("pika"),
        cores=os.cpu_count(),
        rounds=rounds,
    )
    page += "".join(map(section, MEASUREMENTS))
    print(f"\n{page}")
    Path(__file__).with_name("results.md").write_text(page)


if __name__ == "__main__":
    exit_on_error(main)
