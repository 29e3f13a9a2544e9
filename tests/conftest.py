"""A broker for each test process. Scripts and queues don't outlive their test."""

import contextlib
import functools
import signal
import sys
import uuid
from collections.abc import Callable, Iterator

import psutil
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.helpers import QUORUM, connect, starting
from tools.broker import Broker, temporary_broker
from tools.common import ToolError, wait_until
from tools.script import ScriptProcess


def pytest_configure() -> None:
    """Clean up after SIGTERM, and after SIGHUP from a closed terminal."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.default_int_handler)


@pytest.fixture(scope="session")
def session_broker() -> Iterator[Broker]:
    with temporary_broker() as broker:
        yield broker


@pytest.fixture
def broker(session_broker: Broker) -> Iterator[Broker]:
    """A broker that only this test process uses, whatever AMQP_URL is.

    Fails the test if it leaves a queue behind.
    """
    yield session_broker
    # The broker deletes a private queue a moment after its connection has closed.
    with contextlib.suppress(ToolError):
        wait_until(lambda: not session_broker.queues(), "no queue", 10)
    queues = session_broker.queues()
    assert not queues, f"This test left queues behind: {queues}"


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fails a test that leaves a script running."""
    yield
    scripts = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has exited
            scripts += [child] if sys.executable in child.cmdline() else []
    assert not scripts, f"This test left processes behind: {scripts}"


@pytest.fixture
def read_only_url(broker: Broker) -> str:
    """The URL of a user who can write nowhere."""
    broker.put("users/limited", password="secret", tags="")
    broker.put("permissions/%2F/limited", configure=".*", write="^$", read=".*")
    return broker.url.replace("guest:guest", "limited:secret")


@pytest.fixture
def channel(broker: Broker) -> Iterator[BlockingChannel]:
    """A channel for the test itself, to look into queues or to act as a client."""
    with connect(broker) as connection:
        yield connection.channel()


@pytest.fixture
def queue(channel: BlockingChannel) -> str:
    """The name of a private queue."""
    return channel.queue_declare("", exclusive=True).method.queue


@pytest.fixture
def declare(broker: Broker) -> Iterator[Callable[..., str]]:
    """declare({"x-max-length": 1}) returns the name of a new, durable queue.

    Unless the arguments name another type, it's a quorum queue. No two tests use the
    same name, because a dead letter can still be on its way when a test ends.
    """
    names = []

    with connect(broker) as connection:

        def declare(arguments: dict[str, object] | None = None) -> str:
            name = f"test-{uuid.uuid4()}"
            arguments = QUORUM | (arguments or {})
            connection.channel().queue_declare(name, durable=True, arguments=arguments)
            names.append(name)
            return name

        yield declare
    with connect(broker) as connection:
        for name in names:
            connection.channel().queue_delete(name)


@pytest.fixture
def start(broker: Broker) -> Iterator[Callable[..., ScriptProcess]]:
    """start("fanout/producer.py", "Hello") starts a script. See tools/script.py."""
    with starting(broker) as start:
        yield start


@pytest.fixture
def report(record_property) -> Callable[[str], None]:
    """report("5 kills, 0 lost") prints that line in the summary of the run."""
    return functools.partial(record_property, "report")


def pytest_terminal_summary(terminalreporter) -> None:
    for test in terminalreporter.getreports("passed"):
        for _, line in test.user_properties:
            terminalreporter.write_line(f"{test.nodeid}: {line}")
