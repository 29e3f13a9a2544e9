"""Measure the lessons against other ways to do the same, on a temporary broker.

    python -m benchmarks.run      five rounds
    python -m benchmarks.run 1    one round

It prints the tables and the plots of results.md. A round measures everything once, and
every second round does so in the opposite order, so that a machine that becomes slower
or faster favors nothing.
"""

import os
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
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

    def work(self, command: str, count: int) -> float:
        queue = "jobs" if "reconnect" in command else "task_queue"
        self.create(queue, count)
        lines = 2 + 2 * count  # Waiting from each worker, Received, Done for each task
        times: list[float] = []
        with ExitStack() as stack:
            for _ in range(2):
                worker = ScriptProcess(
                    *command.split(),
                    url=self.broker.url,
                    on_line=lambda line: times.append(time.monotonic()),
                )
                stack.callback(worker.kill)
            wait_until(lambda: len(times) == lines, f"{lines} lines", 120)
            self.check(queue, 0)
        return count / (times[-1] - times[0])

    def start(self, command: str, count: int) -> float:
        self.create("hello")
        times = []
        for _ in range(count):
            start = time.monotonic()
            self.run(command)
            times.append((time.monotonic() - start) * 1000)
        self.check("hello", count)
        return median(times)


# The ways to do something: commands, and numbers of messages with which they take a few
# seconds. The first way is the lesson's. The others compare.
MEASUREMENTS = {
    "Publish: messages per second": (
        Bench.publish,
        {
            "advanced/confirms": ("advanced/confirms/producer.py", 100_000),
            "one confirm at a time": (f"{CLIENTS} publish_one_at_a_time", 4_000),
            "pika's ceiling": (f"{CLIENTS} publish_select_connection", 100_000),
        },
    ),
    "Share tasks: tasks per second": (
        Bench.work,
        {
            "work_queue": ("work_queue/consumer.py", 10_000),
            "official tutorial": (f"{CLIENTS} worker", 10_000),
            "advanced/reconnect": ("advanced/reconnect/consumer.py", 10_000),
        },
    ),
    "Start: milliseconds (lower is better)": (
        Bench.start,
        {
            "simple/producer.py": ("simple/producer.py Hello 1", 20),
            "smallest program": ("benchmarks/smallest.py", 20),
        },
    ),
}

SECTION = """
## {title}

| way | median | min to max | {lesson} ÷ this |
| --- | ---: | ---: | ---: |
{rows}

```mermaid
xychart-beta horizontal
  x-axis [{names}]
  bar [{medians}]
```"""


def section(title: str, figures: dict[str, list[float]]) -> str:
    """Return a measurement's table, and its medians as a plot."""
    lesson, *_ = figures
    rows = []
    for way, values in figures.items():
        ratio = median(a / b for a, b in zip(figures[lesson], values, strict=True))
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        rows.append(f"| {way} | {median(values):,.0f} | {spread} | {ratio:.2f} |")
    return SECTION.format(
        title=title,
        lesson=lesson,
        rows="\n".join(rows),
        names=", ".join(f'"{way}"' for way in figures),
        medians=", ".join(f"{median(values):.0f}" for values in figures.values()),
    )


def main() -> None:
    rounds = int(sys.argv[1]) if sys.argv[1:] else 5
    jobs = [(title, way) for title in MEASUREMENTS for way in MEASUREMENTS[title][1]]
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with temporary_broker() as broker:
        print(broker)
        bench = Bench(broker)
        for number in range(rounds):
            for title, way in jobs if number % 2 == 0 else reversed(jobs):
                print(f"Round {number + 1} of {rounds}: {title}, {way}")
                measure, ways = MEASUREMENTS[title]
                figures[title][way].append(measure(bench, *ways[way]))
    for title in MEASUREMENTS:
        print(section(title, figures[title]))


if __name__ == "__main__":
    exit_on_error(main)
