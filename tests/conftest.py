"""A broker for each test process. Scripts and queues don't outlive their test."""

from __future__ import annotations

import contextlib
import functools
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pika
import pytest
from broker import Broker, temporary_broker, wait_until
from lessons import LESSONS
from pika.adapters.blocking_connection import BlockingChannel
from script import ROOT, ScriptProcess


def pytest_configure() -> None:
    """Clean up after SIGTERM, and after SIGHUP from a closed terminal."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A broker that only this test process uses, whatever AMQP_URL is."""
    with temporary_broker() as broker:
        yield broker
        remaining = broker.ctl("list_queues", "--silent", "name").split()
    assert not remaining, f"The tests left these queues behind: {remaining}"


@pytest.fixture(scope="session")
def user(broker: Broker) -> Callable[[str], str]:
    """user("^hello$") returns the URL of a user who can write only there."""

    @functools.cache
    def url(write: str) -> str:
        name = f"user-{uuid.uuid4().hex}"
        broker.ctl("add_user", name, "secret")
        broker.ctl("set_permissions", name, ".*", write, ".*")
        return broker.url.replace("guest:guest", f"{name}:secret")

    return url


@pytest.fixture
def channel(broker: Broker) -> Iterator[BlockingChannel]:
    """A channel for the test itself, to look into queues or to act as a client."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        yield connection.channel()


@contextlib.contextmanager
def starting(broker: Broker) -> Iterator[Callable[..., ScriptProcess]]:
    """Yield a function that starts scripts. Afterwards kill them and delete queues."""
    processes: list[ScriptProcess] = []

    def start(script: str, *arguments: str | bytes, **options) -> ScriptProcess:
        process = ScriptProcess(script, *arguments, **{"url": broker.url} | options)
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            print(process)  # if the test fails, pytest shows it
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            for lesson in LESSONS.values():
                for queue in lesson.queues:
                    channel.queue_delete(queue)
                for exchange in lesson.exchanges:
                    channel.exchange_delete(exchange)


@pytest.fixture
def start(broker: Broker) -> Iterator[Callable[..., ScriptProcess]]:
    """start("fanout/producer.py", "Hello") starts a script. See tools/script.py."""
    with starting(broker) as start:
        yield start


@pytest.fixture
def report(record_property) -> Callable[[str], None]:
    """report("5 kills, 0 lost") prints that line in the summary of the run."""
    return lambda line: record_property("report", line)


def pytest_terminal_summary(terminalreporter) -> None:
    for outcome in ("passed", "failed"):
        for test in terminalreporter.getreports(outcome):
            for name, line in test.user_properties:
                if name == "report" and test.when == "call":
                    test_name = test.nodeid.split("::")[-1]
                    terminalreporter.write_line(f"{test_name}: {line}")


def edited(folder: Path, script: str, line: str, *lines: str) -> str:
    """Return the path of a copy of a script with other lines in place of a line."""
    text = (ROOT / script).read_text()
    (found,) = [other for other in text.splitlines() if other.strip() == line]
    indent = found.removesuffix(line)
    copy = folder / script.replace("/", "-")
    copy.write_text(text.replace(found, "\n".join(indent + new for new in lines)))
    return str(copy)


def received(process: ScriptProcess) -> list[str]:
    """Return the messages in a consumer's "[x] Received" lines, as it printed them."""
    marker = " [x] Received "
    return [line.split(marker, 1)[1] for line in process.output if marker in line]


def done(*processes: ScriptProcess) -> list[str]:
    """Return the tasks in their "[x] Done" lines, as they printed them."""
    lines = [line for process in processes for line in process.output]
    return [line.split(" [x] Done ")[1] for line in lines if " [x] Done " in line]


def message_count(channel: BlockingChannel, queue: str) -> int:
    """Return how many messages in the queue aren't at a consumer.

    Raises pika.exceptions.ChannelClosedByBroker if the queue doesn't exist.
    """
    return channel.queue_declare(queue, passive=True).method.message_count


def wait_for_message_count(count: int, channel: BlockingChannel, queue: str) -> None:
    """Wait up to 20 s, because the broker requeues and confirms after a moment.

    Raises BrokerError after that.
    """
    description = f"{count} messages in {queue}"
    wait_until(lambda: message_count(channel, queue) == count, description, 20)


def get(channel: BlockingChannel, queue: str) -> tuple:
    """Wait for a message in the queue, and take it. Return (method, properties, body).

    Raises BrokerError after 30 s.
    """
    found = []

    def arrived() -> bool:
        found.append(channel.basic_get(queue))
        return found[-1][0] is not None

    wait_until(arrived, f"a message in {queue}", 30)
    return found[-1]


def crash_with_message(broker: Broker, queue: str) -> tuple:
    """Take a message from the queue, and disconnect without an acknowledgement."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        return get(connection.channel(), queue)
