"""docs/reliability.md: which messages survive what, and the first second of a queue."""

from __future__ import annotations

import time

import pika
import pytest

from tests.helpers import (
    QUORUM,
    SETTLED,
    connect,
    lose_connection,
    message_count,
    wait_for_message_count,
)
from tools.broker import temporary_broker
from tools.common import wait_until
from tools.pages import sections

# A message that waits: after its queue's connection closes, and after a restart.
WAITING = {
    ("quorum", "durable", 2): ("kept", "kept"),
    ("quorum", "durable", 1): ("kept", "kept"),
    ("classic", "durable", 2): ("kept", "kept"),
    ("classic", "durable", 1): ("kept", "lost"),
    ("classic", "transient", 2): ("kept", "lost"),
    ("classic", "transient", 1): ("kept", "lost"),
    ("classic", "exclusive", 2): ("lost", "lost"),
    ("classic", "exclusive", 1): ("lost", "lost"),
}
# A message at a consumer: with auto_ack, and with basic_ack.
RECEIVED = {
    ("kill -9", "quorum", "durable", 2): ("lost", "redelivered"),
    ("channel.close()", "quorum", "durable", 2): ("lost", "redelivered"),
    ("restart", "quorum", "durable", 2): ("lost", "redelivered"),
    ("restart", "quorum", "durable", 1): ("lost", "redelivered"),
    ("restart", "classic", "durable", 2): ("lost", "redelivered"),
    ("restart", "classic", "durable", 1): ("lost", "lost"),
}


def tables(page: str) -> list[list[list[str]]]:
    """Return the two tables of a page's section, which is in the same place in both."""
    titles = [part.title for part in sections("docs/reliability.md")]
    part = sections(page)[titles.index("What survives what")]
    return [table[1:] for table in part.tables]


def test_page_shows_these_outcomes():
    waiting, received = tables("docs/reliability.md")
    for row, (case, outcomes) in zip(waiting, WAITING.items(), strict=True):
        kind, how, mode = case
        queue = "`quorum`" if kind == "quorum" else f"`{kind}`, {how}"
        assert row[:4] == [queue, f"`{mode}`", *outcomes]
    for row, (case, outcomes) in zip(received, RECEIVED.items(), strict=True):
        event, kind, how, mode = case
        queue = "`quorum`" if kind == "quorum" else f"`{kind}`, {how}"
        assert row[1:] == [queue, f"`{mode}`", *outcomes]
        assert event in row[0] or event == "restart"


def test_chinese_page_has_one_word_for_each_outcome():
    english, chinese = map(tables, ("docs/reliability.md", "docs/reliability.zh-CN.md"))
    for number, columns in ((0, slice(2, 4)), (1, slice(3, 5))):
        outcomes = [cell for row in english[number] for cell in row[columns]]
        words = [cell for row in chinese[number] for cell in row[columns]]
        pairs = {*zip(outcomes, words, strict=True)}
        assert len(pairs) == len({*outcomes}) == len({*words}), pairs


class Case:
    """A queue with one message, and what happens to that message."""

    def __init__(self, broker, event, kind, how, mode, auto_ack=None):
        """Unless auto_ack is None, a consumer gets the message."""
        self.broker = broker
        self.queue = f"{event} {kind} {how} {mode} {auto_ack}"
        self.exclusive = how == "exclusive"
        self.redelivers = auto_ack is False
        self.connection = connect(broker)
        channel = self.connection.channel()
        channel.confirm_delivery()
        durable = how == "durable"
        arguments = {"x-queue-type": kind}
        channel.queue_declare(
            self.queue, False, durable, self.exclusive, arguments=arguments
        )
        properties = pika.BasicProperties(delivery_mode=mode)
        channel.basic_publish("", self.queue, b"x", properties, mandatory=True)
        if auto_ack is not None:
            messages = []
            channel.basic_consume(
                self.queue, lambda *message: messages.append(message), auto_ack=auto_ack
            )
            while not messages:
                self.connection.process_data_events(time_limit=10)
        if event == "channel.close()":
            channel.close()
        elif event != "restart":
            lose_connection(self.connection)
            if self.exclusive:
                wait_until(lambda: self.queue not in broker.queues(), "its deletion")

    def outcome(self) -> str:
        """Return what happened to the message, and delete its queue."""
        with connect(self.broker) as connection:
            channel = connection.channel()
            if self.redelivers and not self.queue.startswith("restart"):
                wait_for_message_count(1, channel, self.queue)
            try:
                method, _, _ = channel.basic_get(self.queue, auto_ack=True)
            except pika.exceptions.ChannelClosedByBroker:  # the queue is lost, too
                return "lost"
            channel.queue_delete(self.queue)
        if not method:
            return "lost"
        return "redelivered" if method.redelivered else "kept"


def refused(broker, how):
    """Return whether this broker can refuse such a queue. The official packages do."""
    if how != "transient" or broker.version < (4, 3):
        return False
    try:
        with connect(broker) as connection:
            connection.channel().queue_declare("transient")
            connection.channel().queue_delete("transient")
    except pika.exceptions.ConnectionClosedByBroker as error:
        return "transient_nonexcl_queues" in error.reply_text
    return False


@pytest.mark.faults
def test_messages_and_exchanges_survive_as_the_page_says(broker):
    expected = {}
    for case, outcomes in WAITING.items():
        if not refused(broker, case[1]):
            for event, outcome in zip(("kill -9", "restart"), outcomes, strict=True):
                key = (event, *case)
                expected[key] = outcome
    for case, outcomes in RECEIVED.items():
        for auto_ack, outcome in zip((True, False), outcomes, strict=True):
            key = (*case, auto_ack)
            expected[key] = outcome
    cases = {key: Case(broker, *key) for key in expected}
    found = {key: cases[key].outcome() for key in cases if key[0] != "restart"}

    # One restart is enough for all of them.
    with connect(broker) as connection:
        channel = connection.channel()
        channel.exchange_declare("durable", durable=True)
        channel.exchange_declare("transient")
    broker.restart()
    found |= {key: cases[key].outcome() for key in cases if key[0] == "restart"}
    assert found == expected

    exchanges = broker.ctl("list_exchanges", "--silent", "name").split()
    assert "durable" in exchanges
    assert ("transient" in exchanges) == (broker.version >= (4, 2))
    with connect(broker) as connection:
        for exchange in ("durable", "transient"):
            connection.channel().exchange_delete(exchange)


@pytest.mark.faults
def test_only_a_queue_in_its_first_second_can_lose_confirmed_messages(report):
    with temporary_broker() as broker:
        channel = connect(broker).channel()
        channel.confirm_delivery()
        channel.queue_declare("old", durable=True, arguments=QUORUM)
        time.sleep(SETTLED)  # nothing else shows that it has settled
        channel.queue_declare("young", durable=True, arguments=QUORUM)
        for queue in ("young", "old"):
            for _ in range(5):
                channel.basic_publish("", queue, b"x", mandatory=True)
        broker.kill()
        broker.start()
        with connect(broker) as connection:
            channel = connection.channel()
            wait_for_message_count(5, channel, "old")
            kept = message_count(channel, "young")
    report(f"a kill just after 5 confirms: an old queue kept 5, a young one {kept}")
