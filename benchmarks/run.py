"""Measure the lessons against other ways and other libraries, side by side on one broker.

    python benchmarks/run.py                 all of it, and results.md and results.svg anew
    python benchmarks/run.py --quick         less than a minute; prints the tables, writes nothing
    python benchmarks/run.py --to FOLDER     writes results.md and results.svg there

AMQP_URL names the broker; unless it is set, one is started for the benchmark alone. The queues
confirms, rpc_queue, hello and task_queue on it are deleted. A round runs every competitor once, and
every other round runs them in the opposite order. A ratio is that of two rates of the same round.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import pika
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import broker as brokers  # noqa: E402
from end import End  # noqa: E402

HERE = Path("benchmarks")
QUEUES = ["confirms", "rpc_queue", "hello", "task_queue"]
OURS = "ours, in flight"
BATCHES = "ours, in batches"
ONE_CALL = "one call after the other, direct reply-to (ours)"
TUTORIAL = "one call after the other, a reply queue (official tutorial)"

# What to run, and how many messages of 100,000 it gets: the slow ones would take minutes else.
PUBLISH = {
    OURS: ("", 100_000),
    "one confirm at a time": ("publish-one-at-a-time", 2_000),
    "no confirms": ("publish-no-confirms", 50_000),
    "aio-pika, confirms, gather over 500": ("publish-aio-pika", 10_000),
    "kombu, no confirms": ("publish-kombu", 20_000),
    "kombu, confirm_publish": ("publish-kombu-confirms", 2_000),
    "amqpstorm, confirms": ("publish-amqpstorm", 200),
    "raw socket, confirms: the limit": ("publish-raw-socket", 100_000),
}
CONSUME = {
    BATCHES: ("", 100_000),
    "prefetch 1, ack each": ("consume-prefetch-1", 2_000),
    "prefetch 100, ack each": ("consume-prefetch-100", 20_000),
    "auto_ack": ("consume-auto-ack", 50_000),
    "aio-pika, prefetch 100, ack each": ("consume-aio-pika", 10_000),
}
START = {
    "simple": (["Hello", "1"], " [x] Received"),
    "work_queue": (["Hello"], " [x] Received"),
    "fanout": (["Hello"], " [x] Received"),
    "direct": (["info", "Hello"], " [x] Received"),
    "topic": (["kern.info", "Hello"], " [x] Received"),
    "rpc": (["1"], " [.] fib"),
}


class Failed(Exception):
    """Something that was measured did not do what it had to do."""


@dataclass
class Plan:
    """How much of everything."""

    rounds: int = 5
    rpc_rounds: int = 15  # these runs are short, and vary
    size_rounds: int = 3
    share: int = 1  # of the counts above, one in so many
    calls: int = 1_000
    counts: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    bodies: tuple[tuple[int, int], ...] = ((10_000, 10_000), (1_000_000, 200))

    def steps(self) -> int:
        each = len(PUBLISH) + len(CONSUME) + len(START)
        return (
            self.rounds * each
            + self.rpc_rounds * 3
            + self.size_rounds * (len(self.counts) + len(self.bodies))
        )


QUICK = Plan(
    rounds=2,
    rpc_rounds=3,
    size_rounds=1,
    share=5,
    calls=200,
    counts=(500, 5_000, 50_000),
    bodies=((10_000, 1_000), (1_000_000, 20)),
)


@dataclass
class Figures:
    """What was measured: a figure a round."""

    publish: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    consume: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rpc: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    latency: dict[str, list[list[float]]] = field(default_factory=lambda: defaultdict(list))
    start: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    # by (bytes a message, messages): (seconds, peak bytes) of producer and consumer
    size: dict[tuple[int, int], list[tuple]] = field(default_factory=lambda: defaultdict(list))


class Bench:
    def __init__(self, url: str, plan: Plan, step: Callable[[str], None]) -> None:
        self.url = url
        self.plan = plan
        self.step = step
        self.env = os.environ | {"AMQP_URL": url}
        self.figures = Figures()

    @contextlib.contextmanager
    def channel(self) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            yield connection.channel()

    def delete(self, *queues: str) -> None:
        with self.channel() as channel:
            for queue in queues or QUEUES:
                channel.queue_delete(queue)

    def wait_for_queue(self, queue: str, condition: Callable, what: str) -> None:
        """Return once condition(message count, consumer count) of a queue is true."""
        deadline = time.monotonic() + 30
        while True:
            with (
                contextlib.suppress(pika.exceptions.ChannelClosedByBroker),
                self.channel() as channel,
            ):
                found = channel.queue_declare(queue, passive=True).method
                if condition(found.message_count, found.consumer_count):
                    return
                what = f"{what}; there are {found.message_count} messages"
            if time.monotonic() > deadline:
                raise Failed(what)
            time.sleep(0.05)

    def run(self, *command: str | Path) -> list[str]:
        """Return the lines that a Python script prints."""
        command = (sys.executable, *map(str, command))
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{' '.join(command[1:])} ended with {done.returncode}: {done.stderr}")
        return done.stdout.splitlines()

    def client(self, name: str, count: int) -> dict:
        return json.loads(self.run(HERE / "clients.py", name, str(count))[-1])

    def ours(self, end: str, *arguments: object) -> tuple[float, int]:
        """Run an end of advanced/confirms; return its seconds and its peak memory in bytes."""
        script = f"advanced/confirms/{end}.py"
        lines = self.run(HERE / "peak.py", sys.executable, script, *map(str, arguments))
        said = re.search(r" in ([\d.]+) s", lines[-2])
        if not said:
            raise Failed(f"{script} did not say how long it took: {lines}")
        return float(said[1]), int(lines[-1])

    def publish(self, label: str, name: str, count: int) -> None:
        self.delete("confirms")
        seconds = self.client(name, count)["seconds"] if name else self.ours("producer", count)[0]
        self.wait_for_queue("confirms", lambda n, _: n == count, f"{label}: not all {count} came")
        self.figures.publish[label].append(count / seconds)

    def consume(self, label: str, name: str, count: int) -> None:
        self.delete("confirms")
        self.client("publish-raw-socket", count)
        seconds = self.client(name, count)["seconds"] if name else self.ours("consumer", count)[0]
        self.emptied(label)
        self.figures.consume[label].append(count / seconds)

    def emptied(self, label: str) -> None:
        # What a consumer leaves unacknowledged is in the queue again when it is gone.
        self.wait_for_queue("confirms", lambda _, consumers: not consumers, "the consumer is there")
        self.wait_for_queue("confirms", lambda n, _: n == 0, f"{label}: not all were acknowledged")

    def rpc(self, label: str, name: str, count: int) -> None:
        self.delete("rpc_queue")
        server = subprocess.Popen(
            [sys.executable, "rpc/consumer.py"], cwd=ROOT, env=self.env, stdout=subprocess.DEVNULL
        )
        try:
            self.wait_for_queue("rpc_queue", lambda _, consumers: consumers == 1, "no rpc server")
            if name:
                times = self.client(name, count)["times"]
                seconds = sum(times)
                cuts = quantiles(times, n=100)
                self.figures.latency[label].append([cuts[49], cuts[98]])
            else:
                seconds = self.rpc_in_flight(count)
            self.figures.rpc[label].append(count / seconds)
        finally:
            server.terminate()
            server.wait()

    def rpc_in_flight(self, count: int) -> float:
        """Return the seconds from the lesson's first request to its last answer."""
        client = subprocess.Popen(
            [sys.executable, "rpc/producer.py", *["0"] * count],
            cwd=ROOT,
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        with client:
            client.stdout.readline()
            start = time.monotonic()
            answers = 0
            for line in client.stdout:
                answers += " Got " in line
                if answers == count:
                    seconds = time.monotonic() - start
        if client.returncode or answers != count:
            raise Failed(f"rpc/producer.py got {answers} answers to {count} requests")
        return seconds

    def start(self, lesson: str, arguments: list[str], first: str) -> None:
        """Measure how long a lesson's producer takes from its start to the first delivery."""
        self.delete()
        heard = []

        def listen(line: str) -> None:
            if line.startswith(first):
                heard.append(time.monotonic())

        consumer = End(f"{lesson}/consumer.py", url=self.url, heard=listen)
        producer = None
        try:
            consumer.ready()
            start = time.monotonic()
            producer = End(f"{lesson}/producer.py", *arguments, url=self.url)
            consumer.wait_for(first)
            self.figures.start[lesson].append(heard[0] - start)
            producer.end()
        finally:
            for end in filter(None, [producer, consumer]):
                end.kill()

    def size(self, size: int, count: int) -> None:
        self.delete("confirms")
        produced = self.ours("producer", count, "--size", size)
        self.wait_for_queue("confirms", lambda n, _: n == count, f"not all {count} came")
        consumed = self.ours("consumer", count)
        self.emptied(f"{count} messages of {size} bytes")
        self.figures.size[size, count].append((produced, consumed))

    def everything(self) -> Figures:
        share = self.plan.share
        rpc = {
            f"{self.plan.calls} requests in flight (ours)": "",
            ONE_CALL: "rpc-direct-reply-to",
            TUTORIAL: "rpc-reply-queue",
        }
        tasks = [
            *((self.publish, (label, name, n // share)) for label, (name, n) in PUBLISH.items()),
            *((self.consume, (label, name, n // share)) for label, (name, n) in CONSUME.items()),
            *((self.start, (lesson, *what)) for lesson, what in START.items()),
        ]
        calls = [(self.rpc, (label, name, self.plan.calls)) for label, name in rpc.items()]
        sizes = [
            *((self.size, (100, count)) for count in self.plan.counts),
            *((self.size, body) for body in self.plan.bodies),
        ]
        try:
            for todo, rounds in (
                (tasks, self.plan.rounds),
                (calls, self.plan.rpc_rounds),
                (sizes, self.plan.size_rounds),
            ):
                for number in range(rounds):
                    for measure, what in todo if number % 2 == 0 else reversed(todo):
                        self.step(f"round {number + 1}: {measure.__name__}, {what[0]}")
                        measure(*what)
        finally:
            self.delete()
        return self.figures


def spread(values: list[float], form: str = ",.0f") -> str:
    return f"{median(values):{form}} | {min(values):{form}} to {max(values):{form}}"


def table(*rows: str) -> str:
    """Return a Markdown table of rows that have | between their cells; the first is its head."""
    head, *body = rows
    rule = "|---" + "|---:" * head.count("|") + "|"
    return "\n".join([f"| {head} |", rule, *(f"| {row} |" for row in body)])


def ratios(figures: Figures, plan: Plan) -> list[tuple[str, str, float, list[float]]]:
    """Return of each ratio its name, "at least" or "at most", the bound, and it in each round."""

    def over(rates: dict[str, list[float]], one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(rates[one], rates[other], strict=True)]

    def growth(end: int) -> list[float]:
        few, many = ([r[end][1] for r in figures.size[100, n]] for n in plan.counts[::2])
        return [b / a for a, b in zip(few, many, strict=True)]

    publish, consume, rpc = figures.publish, figures.consume, figures.rpc
    in_flight = next(label for label in rpc if "in flight" in label)
    least, most = "at least", "at most"
    few, many = plan.counts[0], plan.counts[-1]
    memory = f"peak memory, {many:,} messages / {few:,} messages"
    names = list(PUBLISH)
    return [
        ("ours in flight / one confirm at a time", least, 15, over(publish, OURS, names[1])),
        ("ours in flight / no confirms", least, 1, over(publish, OURS, names[2])),
        ("ours in flight / aio-pika with confirms", least, 3.5, over(publish, OURS, names[3])),
        ("ours in flight / raw socket limit", least, 0.6, over(publish, OURS, names[-1])),
        (
            "consuming in batches / prefetch 1, ack each",
            least,
            6,
            over(consume, BATCHES, list(CONSUME)[1]),
        ),
        (f"rpc, {plan.calls:,} in flight / {ONE_CALL}", least, 5, over(rpc, in_flight, ONE_CALL)),
        (f"{memory}, producer", most, 1.1, growth(0)),
        (f"{memory}, consumer", most, 1.1, growth(1)),
    ]


def report(figures: Figures, plan: Plan, machine: list[str]) -> str:
    """Return everything as Markdown."""

    def rates(what: str, names: dict, measured: dict[str, list[float]]) -> str:
        rows = [f"{label} | {names[label]:,} | {spread(r)}" for label, r in measured.items()]
        return table(f"{what} | messages | a second, median | min to max", *rows)

    rows = []
    for what, bound, limit, values in ratios(figures, plan):
        held = median(values) >= limit if bound == "at least" else median(values) <= limit
        verdict = "yes" if held else "**no**"
        rows.append(f"{what} | {bound} {limit} | {spread(values, '.2f')} | {verdict}")
    targets = table("ratio | wanted | median | min to max | holds", *rows)

    counts = {label: n // plan.share for label, (_, n) in (PUBLISH | CONSUME).items()}
    calls = dict.fromkeys(figures.rpc, plan.calls)
    latencies = [
        f"{label} | {median(p50 for p50, _ in all_) * 1000:.2f} |"
        f" {median(p99 for _, p99 in all_) * 1000:.2f}"
        for label, all_ in figures.latency.items()
    ]
    sizes = []
    for (size, count), rounds in sorted(figures.size.items()):
        cells = [f"{size:,}", f"{count:,}"]
        for end in (0, 1):
            seconds = median(round_[end][0] for round_ in rounds)
            peak = median(round_[end][1] for round_ in rounds)
            cells += [f"{seconds:.2f}", f"{seconds / count * 1e6:,.1f}", f"{peak / 2**20:.1f}"]
        sizes.append(" | ".join(cells))
    starts = [
        f"{lesson} | {spread([s * 1000 for s in values])}"
        for lesson, values in figures.start.items()
    ]
    return "\n\n".join(
        [
            "# What the benchmark measured",
            "`make bench` writes this file and `results.svg`. " + " ".join(machine),
            f"Medians of {plan.rounds} rounds ({plan.rpc_rounds} for RPC, {plan.size_rounds} for"
            " the sizes) on one broker; each round runs all of it once, in alternating order. A"
            " ratio is one of a round. Messages are of 100 bytes, persistent, mandatory and with a"
            " message_id, in a quorum queue; after each run it is verified that all of them are"
            " there, or acknowledged.",
            targets,
            "## Publishing",
            rates("way", counts, figures.publish),
            "## Consuming",
            rates("way", counts, figures.consume),
            "## RPC",
            "The server is `rpc/consumer.py` for all of them; the question is fib(0).",
            rates("way", calls, figures.rpc).replace("messages", "calls", 1),
            table("latency of one call | p50, ms | p99, ms", *latencies),
            "## Size",
            "Both ends of `advanced/confirms/`, one after the other. Peak memory is the process's.",
            table(
                "bytes | messages | producer, s | µs a message | peak MiB"
                " | consumer, s | µs a message | peak MiB",
                *sizes,
            ),
            "## Start",
            "From the start of a lesson's producer, as a process, to the first delivery.",
            table("lesson | ms, median | min to max", *starts),
        ]
    )


def plot(figures: Figures, machine: list[str], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "benchmarks", "font.size": 9}
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(2, 2, figsize=(13, 8), layout="constrained")

    def bars(axis, title: str, measured: dict[str, list[float]]) -> None:
        labels = list(measured)[::-1]
        middle = [median(measured[label]) for label in labels]
        low = [m - min(measured[label]) for label, m in zip(labels, middle, strict=True)]
        high = [max(measured[label]) - m for label, m in zip(labels, middle, strict=True)]
        colours = ["#1a7f5a" if "ours" in label else "#9aa5b1" for label in labels]
        drawn = axis.barh(labels, middle, xerr=[low, high], color=colours, capsize=3)
        axis.bar_label(drawn, [f"{m:,.0f}" for m in middle], padding=6)
        axis.margins(x=0.18)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_title(title)
        axis.spines[["top", "right"]].set_visible(False)

    bars(axes[0, 0], "Published, messages a second", figures.publish)
    bars(axes[0, 1], "Consumed, messages a second", figures.consume)
    bars(axes[1, 0], "RPC, calls a second", figures.rpc)

    axis = axes[1, 1]
    counts = sorted(count for size, count in figures.size if size == 100)
    for end, name, colour in ((0, "producer", "#1a7f5a"), (1, "consumer", "#b5651d")):
        rounds = [figures.size[100, count] for count in counts]
        seconds = [median(r[end][0] for r in each) for each in rounds]
        peaks = [median(r[end][1] for r in each) / 2**20 for each in rounds]
        axis.loglog(counts, seconds, "o-", color=colour, label=f"{name}, seconds")
        axis.loglog(counts, peaks, "s--", color=colour, label=f"{name}, peak memory, MiB")
    axis.set_title("Time and memory, by number of messages")
    axis.set_xlabel("messages of 100 bytes")
    axis.legend()
    axis.spines[["top", "right"]].set_visible(False)

    chart.suptitle(f"Median, and minimum to maximum. {machine[0]}")
    chart.savefig(path, metadata={"Date": None})


def about(url: str) -> list[str]:
    """Return sentences that say what was measured where."""
    found = {}

    def on_open(connection) -> None:
        found.update(connection.server_properties)
        connection.close()

    connection = pika.SelectConnection(
        pika.URLParameters(url),
        on_open_callback=on_open,
        on_open_error_callback=lambda connection, _: connection.ioloop.stop(),
        on_close_callback=lambda connection, _: connection.ioloop.stop(),
    )
    connection.ioloop.start()
    rabbitmq = found.get("version", b"?")
    rabbitmq = rabbitmq.decode() if isinstance(rabbitmq, bytes) else rabbitmq
    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, AttributeError):
        cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    libraries = ["pika", "aio-pika", "kombu", "amqpstorm"]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in libraries)
    return [
        f"RabbitMQ {rabbitmq}, Python {platform.python_version()}, {versions}.",
        f"{cpu}, {os.cpu_count()} cores for the broker and the clients together,"
        f" {platform.system()}; {datetime.date.today():%Y-%m-%d}.",
    ]


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--to", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else Plan()
    folder = arguments.to or (None if arguments.quick else ROOT / HERE)
    console = Console()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )

    with contextlib.ExitStack() as stack:
        url = os.environ.get("AMQP_URL") or stack.enter_context(brokers.private()).url
        machine = about(url)
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        task = progress.add_task("", total=plan.steps(), completed=-1)
        figures = Bench(
            url, plan, lambda what: progress.update(task, advance=1, description=what)
        ).everything()
        progress.update(task, advance=1, description="done")

    text = report(figures, plan, machine)
    console.print(Markdown(text))
    if folder:
        (folder / "results.md").write_text(f"{text}\n\n![the same as a plot](results.svg)\n")
        plot(figures, machine, folder / "results.svg")
        console.print(f"Written: {folder / 'results.md'} and results.svg")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        pass
    except (
        Failed,
        AssertionError,
        brokers.BrokerError,
        pika.exceptions.AMQPError,
        OSError,
    ) as error:
        sys.exit(
            f"benchmark: {error!r}" if not isinstance(error, Failed) else f"benchmark: {error}"
        )
