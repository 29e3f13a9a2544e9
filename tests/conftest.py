"""A broker for the whole run, and processes and queues that do not outlive their test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pika
import pytest
from broker import Broker, private, wait_until
from end import End

QUEUES = ["hello", "task_queue", "rpc_queue", "confirms", "orders", "dead_orders"]
EXCHANGES = ["logs", "direct_logs", "topic_logs", "dead_letters"]


class Foreign(Broker):
    """The broker that AMQP_URL names: the tests may talk to it, and do nothing else to it."""

    kind = "yours"

    def __init__(self, url: str) -> None:
        self.url = url

    def __getattribute__(self, name: str):
        if name in {"start", "stop", "kill", "restart", "ctl", "log", "version"}:
            pytest.skip(f"{name} needs a broker of the tests' own: unset AMQP_URL")
        return super().__getattribute__(name)


@pytest.fixture(scope="session")
def broker() -> Iterator[Broker]:
    """A broker that the tests have started, or the one that AMQP_URL names."""
    if url := os.environ.get("AMQP_URL"):
        yield Foreign(url)
        return
    with private() as broker:
        yield broker
        left = broker.ctl("list_queues", "--silent", "name")
    assert not left.split(), f"queues left behind: {left}"


@pytest.fixture
def channel(broker: Broker) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    """A channel of the test's own, to see what is in a queue, or to play the other end."""
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        yield connection.channel()


@pytest.fixture
def report(record_property) -> Callable[[str], None]:
    """report("5 kills, 0 lost") has that line printed in the summary of the run."""
    return lambda line: record_property("report", line)


def pytest_terminal_summary(terminalreporter) -> None:
    for done in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, line in done.user_properties:
            if name == "report" and done.when == "call":
                terminalreporter.write_line(f"{done.nodeid.split('::')[-1]}: {line}")


def pytest_collection_modifyitems(items) -> None:
    """What waits in vain for a message that nobody had confirmed is tried once more."""
    for item in items:
        if item.get_closest_marker("unconfirmed"):
            item.add_marker(pytest.mark.flaky(reruns=1, only_rerun="not within"))


@contextlib.contextmanager
def starting(broker: Broker) -> Iterator[Callable[..., End]]:
    """Yield what starts scripts; in the end kill them, and delete what they declared."""
    ends: list[End] = []

    def start(script: str, *arguments: str | bytes, url: str = broker.url, **options) -> End:
        ends.append(End(script, *arguments, url=url, **options))
        return ends[-1]

    try:
        yield start
    finally:
        for end in ends:
            end.kill()
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            for queue in QUEUES:
                channel.queue_delete(queue)
            for exchange in EXCHANGES:
                channel.exchange_delete(exchange)


@pytest.fixture
def start(broker: Broker) -> Iterator[Callable[..., End]]:
    """start("fanout/producer.py", "Hello") starts a script and returns its End, of tools/end.py."""
    with starting(broker) as start:
        yield start


def received(end: End) -> list[str]:
    """Return the messages that a consumer says it has received, as it shows them."""
    return [line.split("Received ", 1)[1] for line in end.lines if " [x] Received " in line]


def waiting(channel, queue: str) -> int:
    """Return how many messages are in a queue and with no consumer yet; none if it is not there."""
    return channel.queue_declare(queue, passive=True).method.message_count


def wait_for_messages(count: int, channel, queue: str) -> None:
    """Wait until so many messages are in it: what a consumer leaves is back a moment later."""
    wait_until(lambda: waiting(channel, queue) == count, f"{count} messages in {queue}", 20)
