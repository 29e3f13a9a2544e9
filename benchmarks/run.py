"""Measure the lessons against other ways to do the same, on a temporary broker.

    python -m benchmarks.run            all of it; writes results.md
    python -m benchmarks.run --quick    two minutes; only prints the results

It needs Linux. A round measures everything once, and every second round does so in the
opposite order, so that a machine that becomes slower or faster favors nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pika

from tools.broker import Broker, temporary_broker
from tools.common import ROOT, ToolError, exit_on_error, wait_until
from tools.script import ScriptProcess

RESULTS = Path(__file__).with_name("results.md")
CLIENTS = "benchmarks/clients.py"


class Watch:
    """Notes the times of lines that contain one of the texts, as on_line does."""

    def __init__(self, count: int, *texts: str) -> None:
        self.count, self.texts = count, texts
        self.times: list[float] = []

    def __call__(self, line: str) -> None:
        if any(text in line for text in self.texts):
            self.times.append(time.monotonic())

    def seconds(self) -> float:
        """Wait for that many lines. Return the time from the first to the last."""
        wait_until(lambda: len(self.times) >= self.count, self.texts, 120)
        return self.times[self.count - 1] - self.times[0]


class Bench:
    """The measurements. Each method runs a command, and returns a figure."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        parameters = pika.URLParameters(f"{broker.url}?heartbeat=0")
        self.channel = pika.BlockingConnection(parameters).channel()

    @contextlib.contextmanager
    def running(
        self, command: str, on_line: Watch | None = None
    ) -> Iterator[ScriptProcess]:
        """Start a script. Kill it in the end, if it still runs."""
        url = self.broker.url
        process = ScriptProcess(*command.split(), url=url, on_line=on_line)
        try:
            yield process
        finally:
            process.kill()

    def run(self, command: str, on_line: Watch | None = None) -> list[str]:
        """Run a script to its end, and return the lines that it printed."""
        with self.running(command, on_line) as process:
            if process.wait(120) != 0:
                raise ToolError(str(process))
            return process.output

    def create(self, queue: str, messages: int = 0) -> None:
        """Create a queue, or recreate it, with so many messages."""
        arguments: dict[str, object] = {"x-queue-type": "quorum"}
        if queue == "confirms":
            arguments["x-delivery-limit"] = 1_000_000_000
        self.channel.queue_delete(queue)
        self.channel.queue_declare(queue, durable=True, arguments=arguments)
        for _ in range(messages):
            self.channel.basic_publish("", queue, b"task")
        self.check_count(queue, messages)

    def check_count(self, queue: str, messages: int) -> None:
        """Wait until the queue contains so many messages."""

        def complete() -> bool:
            declared = self.channel.queue_declare(queue, passive=True)
            return declared.method.message_count == messages

        wait_until(complete, f"{messages} messages in {queue}")

    def check_acknowledged(self, queue: str) -> None:
        """Wait until the running consumers have acknowledged all messages."""

        def acknowledged() -> bool:
            arguments = ("list_channels", "--silent", "messages_unacknowledged")
            return not any(map(int, self.broker.ctl(*arguments).split()))

        wait_until(acknowledged, f"acknowledgements for {queue}")
        self.check_count(queue, 0)

    def publish(self, command: str, count: int) -> float:
        self.create("confirms")
        last_line = self.run(f"{command} {count}")[-1]  # "[x] Confirmed 9 in 0.05 s"
        self.check_count("confirms", count)
        return count / float(last_line.split()[-2])

    def consume(self, command: str, count: int) -> float:
        self.publish(f"{CLIENTS} publish-select-connection", count)
        watch = Watch(1 + count // 1000, "Waiting", "Received")  # a line for 1000
        with self.running(command, watch):
            seconds = watch.seconds()
            self.check_acknowledged("confirms")
        return count / seconds

    def work(self, command: str, count: int) -> float:
        queue = "jobs" if "reconnect" in command else "task_queue"
        self.create(queue, count)
        watch = Watch(2 * count, "Received", "Done")
        with self.running(command, watch), self.running(command, watch):
            seconds = watch.seconds()
            self.check_acknowledged(queue)
        return count / seconds

    def call(self, command: str, count: int) -> float:
        self.create("rpc_queue")
        arguments = " 0" * count if command.startswith("rpc/") else f" {count}"
        watch = Watch(2 * count, "Requesting", "Got")
        with self.running("rpc/consumer.py") as server:
            server.wait_until_ready()
            self.run(command + arguments, watch)
        return count / watch.seconds()

    def start(self, command: str, count: int) -> float:
        self.create("hello")
        script, *arguments = command.split()
        environment = os.environ | {"AMQP_URL": self.broker.url}
        times = []
        for _ in range(count):
            start = time.monotonic()
            # Not ScriptProcess, which looks for the exit only every 50 ms.
            subprocess.run(
                [sys.executable, ROOT / script, *arguments],
                env=environment,
                stdout=subprocess.DEVNULL,
                check=True,
            )
            times.append((time.monotonic() - start) * 1000)
        self.check_count("hello", count)
        return median(times)

    def memory(self, command: str, count: int) -> float:
        self.create("confirms")
        more = 10_000  # because we can read it only while the scripts are running
        with (
            self.running(f"{command}/consumer.py") as consumer,
            self.running(f"{command}/producer.py {count + more}") as producer,
        ):
            producer.wait_for("[.] Confirmed", times=count // 10_000, timeout=300)
            consumer.wait_for("Received", times=count // 1000, timeout=300)
            peak = 0
            for process in (consumer, producer):
                status = Path(f"/proc/{process.process.pid}/status").read_text()
                peak += int(status.split("VmHWM:")[1].split()[0])
            producer.wait()
        return peak / 1024


@dataclass
class Measurement:
    """A table of the results. The first way is the lesson's. The others compare."""

    title: str
    about: str
    measure: Callable[[Bench, str, int], float]
    # A command and a number of messages, with which it takes a few seconds.
    ways: dict[str, tuple[str, int]]
    rounds: int = 5


MEASUREMENTS = [
    Measurement(
        "Publish: messages per second",
        "advanced/confirms and aio-pika keep up to 2000 confirms in flight. *pika's "
        "ceiling* is a `SelectConnection` that does the same, but doesn't remember "
        "which messages these are, so it couldn't send them again.",
        Bench.publish,
        {
            "advanced/confirms": ("advanced/confirms/producer.py", 100_000),
            "one confirm at a time": (f"{CLIENTS} publish-one-at-a-time", 4_000),
            "no confirms": (f"{CLIENTS} publish-no-confirms", 50_000),
            "aio-pika": (f"{CLIENTS} publish-aio-pika", 20_000),
            "pika's ceiling": (f"{CLIENTS} publish-select-connection", 100_000),
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
        "RPC: calls per second",
        "rpc sends all requests, and then waits for the replies. The official "
        "tutorial's client waits for each reply before the next request. The server is "
        "rpc/consumer.py for both.",
        Bench.call,
        {
            "rpc": ("rpc/producer.py", 1_000),
            "official tutorial": (f"{CLIENTS} rpc-client", 1_000),
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
    Measurement(
        "Memory: MiB (lower is better)",
        "Peak memory of both scripts of advanced/confirms together, after so many "
        "messages.",
        Bench.memory,
        {
            "1,000,000 messages": ("advanced/confirms", 1_000_000),
            "10,000 messages": ("advanced/confirms", 10_000),
        },
        rounds=2,
    ),
]
Figures = dict[str, list[float]]  # of the ways, one in each round

PAGE = """\
# Benchmark results

`make bench` measured this on {date} with RabbitMQ {rabbitmq}, Python {python}, pika
{pika} and aio-pika {aio_pika}. The broker and the programs shared {cores} cores of this
processor: {cpu}.

A figure is the median of {rounds} rounds (of at most 2 for memory). A ratio compares
the lesson's way with another one in the same round.

Messages have 100 bytes and a message ID, are persistent and mandatory, and go to a
quorum queue. After each run, the benchmark checks that the queue contains all messages,
or that the consumers have acknowledged all of them. The official tutorials' programs
are our own code, which makes the same calls. All programs print line by line, as to a
terminal.
"""


def section(measurement: Measurement, figures: Figures) -> str:
    """Return a measurement's part of the page: a table, and its medians as a plot."""

    def spread(values: list[float], form: str) -> list[str]:
        low, high = min(values), max(values)
        return [f"{median(values):{form}}", f"{low:{form}} to {high:{form}}"]

    lesson = next(iter(measurement.ways))
    rows = [
        ["way", "count", "median", "min to max", f"{lesson} ÷ this", "min to max"],
        ["---", *["---:"] * 5],
    ]
    for way, (_, count) in measurement.ways.items():
        pairs = zip(figures[lesson], figures[way], strict=True)
        ratios = spread([a / b for a, b in pairs], ".2f") if way != lesson else ["", ""]
        rows.append([way, f"{count:,}", *spread(figures[way], ",.0f"), *ratios])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    names = ", ".join(f'"{way}"' for way in figures)
    medians = ", ".join(f"{median(values):.0f}" for values in figures.values())
    return f"""
## {measurement.title}

{measurement.about}

{table}

```mermaid
xychart-beta horizontal
  x-axis [{names}]
  bar [{medians}]
```
"""


def main() -> None:
    parser = ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="measure less")
    quick = parser.parse_args().quick
    rounds = 2 if quick else 5
    figures: dict[str, Figures] = defaultdict(lambda: defaultdict(list))
    jobs = [(m, way) for m in MEASUREMENTS for way in m.ways]
    with temporary_broker() as broker:
        bench = Bench(broker)
        for number in range(rounds):
            for measurement, way in jobs if number % 2 == 0 else reversed(jobs):
                if number < measurement.rounds:
                    print(f"round {number + 1} of {rounds}: {measurement.title}, {way}")
                    command, count = measurement.ways[way]
                    count = count // 4 if quick and count > 10_000 else count
                    figure = measurement.measure(bench, command, count)
                    figures[measurement.title][way].append(figure)
    cpuinfo = Path("/proc/cpuinfo").read_text()
    page = PAGE.format(
        date=datetime.date.today(),
        rabbitmq=".".join(map(str, broker.version)),
        python=platform.python_version(),
        pika=importlib.metadata.version("pika"),
        aio_pika=importlib.metadata.version("aio-pika"),
        cores=os.cpu_count(),
        cpu=[*re.findall("model name.*: (.*)", cpuinfo), platform.machine()][0],
        rounds=rounds,
    )
    page += "".join(section(m, figures[m.title]) for m in MEASUREMENTS)
    print(f"\n{page}")
    if not quick:
        RESULTS.write_text(page)


if __name__ == "__main__":
    exit_on_error(main)
