"""Measure the lessons beside other ways to do the same, on a temporary broker.

    python benchmarks/run.py            all of it; writes results.md and results.svg
    python benchmarks/run.py --quick    two minutes; only prints the results

It needs Linux. A round measures everything once, and every second round does so in the
opposite order, so that a machine that becomes slower or faster favors nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import inspect
import os
import platform
import re
import sys
import threading
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import pika

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "tools"))

from broker import Broker, exit_on_error, temporary_broker, wait_until  # noqa: E402
from script import ScriptProcess  # noqa: E402


class Watch:
    """Counts the lines that contain one of the texts, for ScriptProcess's on_line."""

    def __init__(self, count: int, *texts: str) -> None:
        self.count, self.texts = count, texts
        self.times: list[float] = []
        self.finished = threading.Event()

    def __call__(self, line: str) -> None:
        if any(text in line for text in self.texts):
            self.times.append(time.monotonic())
            if len(self.times) == self.count:
                self.finished.set()

    def seconds(self) -> float:
        """Wait for that many lines. Return the time from the first to the last."""
        assert self.finished.wait(120), f"{len(self.times)} lines with {self.texts}"
        return self.times[-1] - self.times[0]


class Bench:
    """What we measure: each public method runs a command and returns a figure.

    Its docstring goes into results.md.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        parameters = pika.URLParameters(f"{broker.url}?heartbeat=0")
        self._channel = pika.BlockingConnection(parameters).channel()

    @contextlib.contextmanager
    def _running(
        self, command: str, on_line: Watch | None = None
    ) -> Iterator[ScriptProcess]:
        """Start a script. Kill it in the end, if it still runs."""
        script, *arguments = command.split()
        url = self._broker.url
        process = ScriptProcess(script, *arguments, url=url, on_line=on_line)
        try:
            yield process
        finally:
            process.kill()

    def _run(self, command: str, on_line: Watch | None = None) -> list[str]:
        """Run a script to its end, and return the lines it printed."""
        with self._running(command, on_line) as process:
            assert process.wait(120) == 0, process
            return process.output

    def _create(self, queue: str, messages: int = 0) -> None:
        """Create a queue, or recreate it, with so many messages."""
        arguments: dict[str, object] = {"x-queue-type": "quorum"}
        if queue == "confirms":
            arguments["x-delivery-limit"] = 1_000_000_000
        self._channel.queue_delete(queue)
        self._channel.queue_declare(queue, durable=True, arguments=arguments)
        for _ in range(messages):
            self._channel.basic_publish("", queue, b"task")
        self._check_count(queue, messages)

    def _check_count(self, queue: str, messages: int) -> None:
        """Wait until the queue contains so many messages."""

        def complete() -> bool:
            declared = self._channel.queue_declare(queue, passive=True)
            return declared.method.message_count == messages

        wait_until(complete, f"{messages} messages in {queue}", 30)

    def _check_acknowledged(self, queue: str) -> None:
        """Wait until the running consumers have acknowledged all messages."""

        def acknowledged() -> bool:
            arguments = ("list_channels", "--silent", "messages_unacknowledged")
            return not any(map(int, self._broker.ctl(*arguments).split()))

        wait_until(acknowledged, f"acknowledgements for {queue}", 30)
        left = self._channel.queue_purge(queue).method.message_count
        assert not left, f"{left} messages are still in {queue}"

    def publish(self, command: str, count: int) -> float:
        """Publish: messages per second

        advanced/confirms keeps up to 2000 confirms in flight. With aio-pika, we publish
        500 messages at a time, with `asyncio.gather`. *pika's ceiling* is a
        `SelectConnection` with 2000 confirms in flight, which doesn't remember which
        messages these are. The *raw socket* sends frames that were encoded once.
        """
        self._create("confirms")
        last_line = self._run(f"{command} {count}")[-1]  # "[x] Confirmed 9 in 0.05 s"
        self._check_count("confirms", count)
        return count / float(last_line.split()[-2])

    def consume(self, command: str, count: int) -> float:
        """Consume: messages per second

        advanced/confirms has a prefetch of 1000, and acknowledges in batches. The
        others acknowledge each message on its own.
        """
        self.publish("benchmarks/clients.py publish-raw-socket", count)
        watch = Watch(1 + count // 1000, "Waiting", "Received")  # a line for 1000
        with self._running(command, watch):
            seconds = watch.seconds()
            self._check_acknowledged("confirms")
        return count / seconds

    def work(self, command: str, count: int) -> float:
        """Share tasks: tasks per second

        Two workers share tasks that take no time. Those of work_queue do them in a
        second thread, so that the first one can send heartbeats during a long task.
        """
        self._create("task_queue", count)
        watch = Watch(2 * count, "Received", "Done")
        with self._running(command, watch), self._running(command, watch):
            seconds = watch.seconds()
            self._check_acknowledged("task_queue")
        return count / seconds

    def call(self, command: str, count: int) -> float:
        """RPC: calls per second

        rpc sends all requests, and then waits for the answers. The official tutorial's
        client waits for each answer before the next request. The server is
        rpc/consumer.py for both.
        """
        self._create("rpc_queue")
        arguments = " 0" * count if command.startswith("rpc/") else f" {count}"
        watch = Watch(2 * count, "Requesting", "Got")
        with self._running("rpc/consumer.py") as server:
            server.wait_until_ready()
            self._run(command + arguments, watch)
        return count / watch.seconds()

    def start(self, command: str, count: int) -> float:
        """Start: milliseconds (fewer are better)

        A process starts, sends one message, and exits. The smallest program is
        [smallest.py](smallest.py). In each round, the median of 20 runs counts.
        """
        self._create("hello")
        times = []
        for _ in range(count):
            start = time.monotonic()
            self._run(command)
            times.append((time.monotonic() - start) * 1000)
        self._check_count("hello", count)
        return median(times)

    def memory(self, command: str, count: int) -> float:
        """Memory: MiB (fewer are better)

        What both scripts of advanced/confirms together have used at most, after so many
        messages.
        """
        self._create("confirms")
        more = 10_000  # because we can read it only while the scripts are running
        with (
            self._running(f"{command}/consumer.py") as consumer,
            self._running(f"{command}/producer.py {count + more}") as producer,
        ):
            producer.wait_for("[.] Confirmed", times=count // 10_000, timeout=300)
            consumer.wait_for("Received", times=count // 1000, timeout=300)
            peak = 0
            for process in (consumer, producer):
                status = Path(f"/proc/{process.process.pid}/status").read_text()
                peak += int(status.split("VmHWM:")[1].split()[0])
            assert producer.wait() == 0, producer
            consumer.wait_for("Received", times=(count + more) // 1000)
            self._check_acknowledged("confirms")
        return peak / 1024


# How to do each: the lesson's way first, which is compared with the others. The number
# of messages is such that a way takes some seconds.
WAYS: dict[Callable[[Bench, str, int], float], dict[str, tuple[str, int]]] = {
    Bench.publish: {
        "advanced/confirms": ("advanced/confirms/producer.py", 100_000),
        "one confirm at a time": ("benchmarks/clients.py publish-one-at-a-time", 4_000),
        "no confirms": ("benchmarks/clients.py publish-no-confirms", 50_000),
        "aio-pika": ("benchmarks/clients.py publish-aio-pika", 20_000),
        "pika's ceiling": ("benchmarks/clients.py publish-select-connection", 100_000),
        "raw socket": ("benchmarks/clients.py publish-raw-socket", 100_000),
    },
    Bench.consume: {
        "advanced/confirms": ("advanced/confirms/consumer.py", 100_000),
        "prefetch 100": ("benchmarks/clients.py consume 100", 40_000),
        "prefetch 1": ("benchmarks/clients.py consume 1", 4_000),
    },
    Bench.work: {
        "work_queue": ("work_queue/consumer.py", 10_000),
        "official tutorial": ("benchmarks/clients.py worker", 10_000),
    },
    Bench.call: {
        "rpc": ("rpc/producer.py", 1_000),
        "official tutorial": ("benchmarks/clients.py rpc-client", 1_000),
    },
    Bench.start: {
        "simple/producer.py": ("simple/producer.py Hello 1", 20),
        "smallest program": ("benchmarks/smallest.py", 20),
    },
    Bench.memory: {
        "1,000,000 messages": ("advanced/confirms", 1_000_000),
        "10,000 messages": ("advanced/confirms", 10_000),
    },
}
Figures = dict[str, list[float]]  # of the ways, one in each round

RESULTS = """\
# Benchmark results

`make bench` measured this on {date} with RabbitMQ {rabbitmq}, Python {python}, pika
{pika} and aio-pika {aio_pika}. The broker and the programs shared {cores} cores of this
processor: {cpu}.

A figure is the median of {rounds} rounds (of 2 for memory). A ratio compares the
lesson's way with another one in the same round.

Messages have 100 bytes and a message ID, are persistent and mandatory, and go to a
quorum queue. After each run, the benchmark checks that the queue contains all messages,
or that the consumers have acknowledged all of them. The official tutorials' programs
are our own code, which makes the same calls. All programs print line by line, as to a
terminal.

![The medians as bars](results.svg)
"""


def spread(values: list[float], form: str) -> list[str]:
    return [f"{median(values):{form}}", f"{min(values):{form}} to {max(values):{form}}"]


def table(ways: dict[str, tuple[str, int]], figures: Figures) -> str:
    """Return the figures as Markdown."""
    lesson = next(iter(ways))
    rows = [
        ["way", "count", "median", "min to max", f"{lesson} ÷ this", "min to max"],
        ["---", *["---:"] * 5],
    ]
    for way, (_, count) in ways.items():
        pairs = zip(figures[lesson], figures[way], strict=True)
        ratios = spread([a / b for a, b in pairs], ".2f") if way != lesson else ["", ""]
        rows.append([way, f"{count:,}", *spread(figures[way], ",.0f"), *ratios])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(tables: dict[str, Figures]) -> str:
    """Return the medians as an SVG, with a background for any page."""
    y, shapes = 0, []
    for title, figures in tables.items():
        y += 38
        shapes.append(f'<text x="10" y="{y}" font-weight="bold">{title}</text>')
        longest = max(map(median, figures.values()))
        for number, (way, values) in enumerate(figures.items()):
            y += 22
            width = round(190 * median(values) / longest)
            color = 'fill="#afb8c1"' if number else 'fill="#2da44e"'
            shapes += [
                f'<rect x="174" y="{y - 12}" width="{width}" height="15" {color}/>',
                f'<text x="{width + 180}" y="{y}">{median(values):,.0f}</text>',
                f'<text x="10" y="{y}">{way}</text>',
            ]
    size = f'width="430" height="{y + 16}" viewBox="0 0 430 {y + 16}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" '
        'font-size="14">\n<rect width="100%" height="100%" rx="8" fill="#fff"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def main() -> None:
    parser = ArgumentParser(
        description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="measure less")
    quick = parser.parse_args().quick
    rounds = 2 if quick else 5
    cpuinfo = Path("/proc/cpuinfo").read_text()
    if quick:
        for ways in WAYS.values():
            for way, (command, count) in ways.items():
                ways[way] = command, count // 4 if count > 10_000 else count
    results: dict[Callable, Figures] = defaultdict(lambda: defaultdict(list))
    with temporary_broker() as broker:
        bench = Bench(broker)
        jobs = [(measure, way) for measure in WAYS for way in WAYS[measure]]
        for number in range(rounds):
            for measure, way in jobs if number % 2 == 0 else reversed(jobs):
                if measure is Bench.memory and number >= 2:
                    continue
                print(f"round {number + 1} of {rounds}: {measure.__name__}, {way}")
                figure = measure(bench, *WAYS[measure][way])
                results[measure][way].append(figure)
        text = RESULTS.format(
            date=datetime.date.today(),
            rabbitmq=broker.version,
            python=platform.python_version(),
            pika=importlib.metadata.version("pika"),
            aio_pika=importlib.metadata.version("aio-pika"),
            cores=os.cpu_count(),
            cpu=[*re.findall("model name.*: (.*)", cpuinfo), platform.machine()][0],
            rounds=rounds,
        )
    tables = {}
    for measure, figures in results.items():
        title, about = inspect.cleandoc(measure.__doc__ or "").split("\n\n")
        text += f"\n## {title}\n\n{about}\n\n{table(WAYS[measure], figures)}\n"
        tables[title] = figures
    print(f"\n{text}")
    if not quick:
        (FOLDER / "results.md").write_text(text)
        (FOLDER / "results.svg").write_text(draw(tables))


if __name__ == "__main__":
    exit_on_error(main)
