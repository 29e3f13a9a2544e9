"""What several tests need."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pika
from pika.adapters.blocking_connection import BlockingChannel

from tools.broker import Broker
from tools.common import ROOT, wait_until
from tools.lessons import LESSONS
from tools.pages import blocks, sections
from tools.script import ScriptProcess

QUORUM = {"x-queue-type": "quorum"}

# In seconds. If the broker is killed when a queue is younger, confirmed messages can
# get lost: docs/reliability.md, "The first second of a quorum queue".
SETTLED = 3


def connect(broker: Broker) -> pika.BlockingConnection:
    """Return a connection to a broker. It's also a context manager."""
    return pika.BlockingConnection(pika.URLParameters(broker.url))


@contextlib.contextmanager
def starting(broker: Broker) -> Iterator[Callable[..., ScriptProcess]]:
    """Yield a function that starts scripts. Afterwards kill them and delete queues."""
    processes: list[ScriptProcess] = []

    def start(script: str, *arguments: str | bytes, **options: Any) -> ScriptProcess:
        process = ScriptProcess(script, *arguments, **{"url": broker.url} | options)
        processes.append(process)
        return process

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            print(process)  # if the test fails, pytest shows it
        with connect(broker) as connection:
            channel = connection.channel()
            for lesson in LESSONS.values():
                for queue in lesson.queues:
                    channel.queue_delete(queue)
                for exchange in lesson.exchanges:
                    channel.exchange_delete(exchange)


def run_script(start: Callable, script: str, *args: str, **options: str) -> list[str]:
    """Start a script, and check that it exits with status 0. Return its output."""
    process = start(script, *args, **options)
    assert process.wait() == 0, process
    return process.output


def edited(folder: Path, script: str, lines: dict[str, str]) -> str:
    """Return the path of a copy of a script with other lines in place of some.

    `lines` has the new lines by the old line, without indentation. An old line must be
    there once. New lines get its indentation, and "" deletes it.
    """
    source = (ROOT / script).read_text().splitlines()
    stripped = [line.strip() for line in source]
    for old, new in lines.items():
        assert stripped.count(old) == 1, f"{script} has not one line {old!r}"
        i = stripped.index(old)
        indent = source[i].removesuffix(old)
        source[i] = "\n".join(indent + line for line in new.splitlines())
    copy = folder / script.replace("/", "-")
    copy.write_text("\n".join([*source, ""]))
    return str(copy)


def page_block(page: str, text: str) -> str:
    """Return the page's block that contains a text."""
    (found,) = [block.text for block in blocks(page) if text in block.text]
    return found


def rows(page: str, title: str) -> list[list[str]]:
    """Return the rows of the first table in a section, without its header."""
    (part,) = [part for part in sections(page) if part.title == title]
    return part.tables[0][1:]


def message_rows() -> list[str]:
    """Return the messages in the rows of docs/troubleshooting.md, "By message"."""
    return [row[0] for row in rows("docs/troubleshooting.md", "By message")]


def documented(message: str) -> str:
    """Return the message without "…" at its end. Assert that troubleshooting has it."""
    assert f"`{message}`" in "".join(message_rows()), message
    return message.rstrip("…")


def received(*processes: ScriptProcess) -> list[str]:
    """Return the messages in their "[x] Received" lines, as they printed them."""
    return after(" [x] Received ", processes)


def done(*processes: ScriptProcess) -> list[str]:
    """Return the tasks in their "[x] Done" lines, as they printed them."""
    return after(" [x] Done ", processes)


def after(marker: str, processes: Iterable[ScriptProcess]) -> list[str]:
    lines = [line for process in processes for line in process.output]
    return [line.split(marker, 1)[1] for line in lines if marker in line]


def message_count(channel: BlockingChannel, queue: str) -> int:
    """Return how many messages in the queue aren't at a consumer."""
    return channel.queue_declare(queue, passive=True).method.message_count


def wait_for_message_count(count: int, channel: BlockingChannel, queue: str) -> None:
    """Wait until the queue has so many: the broker requeues after a moment."""
    description = f"{count} messages in {queue}"
    wait_until(lambda: message_count(channel, queue) == count, description)


def get(channel: BlockingChannel, queue: str) -> tuple:
    """Wait for a message, and take it. Return (method, properties, body)."""
    found = []

    def arrived() -> bool:
        found.append(channel.basic_get(queue))
        return found[-1][0] is not None

    wait_until(arrived, f"a message in {queue}")
    return found[-1]


def lose_connection(connection: pika.BlockingConnection) -> None:
    """Break a connection: all that the broker sees of a client's SIGKILL."""
    connection._impl._transport._sock.shutdown(2)  # no more reads, no more writes
