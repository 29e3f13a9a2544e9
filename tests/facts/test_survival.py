"""docs/reliability.md: which messages survive what, and the first second of a queue."""

import re
import time

import pika
import pytest

from tests.helpers import (
    QUORUM,
    SETTLED,
    connect,
    documented,
    lose_connection,
    message_count,
    wait_for_message_count,
)
from tools.pages import pattern, sections


def test_chinese_page_has_the_same_outcomes():
    words = {"kept": "保留", "lost": "丢失", "redelivered": "重新投递"}
    english, chinese = (
        re.findall(rf"'({'|'.join(cells)})'", str(sections(page)[-1].tables))
        for page, cells in [
            ("docs/reliability.md", words),
            ("docs/reliability.zh-CN.md", words.values()),
        ]
    )
    assert [words[cell] for cell in english] == chinese


def outcomes_on_the_page():
    """Return them by what happens, queue, delivery_mode and auto_ack.

    If auto_ack is None, no consumer has the message.
    """
    waiting, received = sections("docs/reliability.md")[-1].tables
    found = {}
    for queue, modes, closes, restarts, _ in waiting[1:]:
        for mode in re.findall(r"\d", modes):
            found["connection closes", queue, mode, None] = closes
            found["broker restarts", queue, mode, None] = restarts
    for what, queue, modes, auto_ack, basic_ack in received[1:]:
        for mode in re.findall(r"\d", modes):
            found[what, queue, mode, True] = auto_ack
            found[what, queue, mode, False] = basic_ack
    return found


def prepare(connection, case):
    """Declare a queue with the case's name and a message, and do what happens."""
    what, queue, mode, auto_ack = case
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_declare(
        str(case),
        durable=queue == "`quorum`" or "durable" in queue,
        exclusive="exclusive" in queue,
        arguments={"x-queue-type": queue.split("`")[1]},
    )
    properties = pika.BasicProperties(delivery_mode=int(mode))
    channel.basic_publish("", str(case), b"x", properties, mandatory=True)
    if auto_ack is not None:
        next(channel.consume(str(case), auto_ack=auto_ack))
    if what == "`channel.close()`":
        channel.close()
    elif what == "connection closes":
        connection.close()
    elif "kill" in what:
        lose_connection(connection)


def outcome(broker, case):
    """Return what happened to the message, and delete its queue."""
    with connect(broker) as connection:
        channel = connection.channel()
        if case[0] != "broker restarts" and case[-1] is False:
            wait_for_message_count(1, channel, str(case))
        try:
            method, _, _ = channel.basic_get(str(case), auto_ack=True)
        except pika.exceptions.ChannelClosedByBroker:  # the queue is lost, too
            return "lost"
        channel.queue_delete(str(case))
    if not method:
        return "lost"
    return "redelivered" if method.redelivered else "kept"


@pytest.mark.faults
def test_messages_survive_as_the_page_says(broker):
    expected, refused = outcomes_on_the_page(), {}
    connections = {case: connect(broker) for case in expected}
    for case, connection in connections.items():
        try:
            prepare(connection, case)
        except pika.exceptions.ConnectionClosedByBroker as error:
            refused[case] = repr(error)
            del expected[case]
    if refused:  # 4.3 can refuse a transient queue
        row = documented("INTERNAL_ERROR … transient_nonexcl_queues")
        assert broker.version >= (4, 3)
        assert all(re.search(pattern(row), text) for text in refused.values())
        assert all("transient" in queue for _, queue, *_ in refused)
    after = [case for case in expected if case[0] == "broker restarts"]
    with connect(broker) as connection:
        connection.channel().exchange_declare("transient")
        connection.channel().exchange_declare("durable", durable=True)
    found = {case: outcome(broker, case) for case in expected if case not in after}
    broker.restart()
    # fanout's page: since 4.2, a transient exchange survives as well.
    exchanges = {exchange["name"] for exchange in broker.get("exchanges/%2F")}
    survived = {"durable", "transient"} if broker.version >= (4, 2) else {"durable"}
    assert exchanges & {"durable", "transient"} == survived
    with connect(broker) as connection:
        for exchange in survived:
            connection.channel().exchange_delete(exchange)
    found |= {case: outcome(broker, case) for case in after}
    assert found == expected


@pytest.mark.faults
def test_only_a_queue_in_its_first_second_can_lose_confirmed_messages(broker, report):
    channel = connect(broker).channel()
    channel.confirm_delivery()
    channel.queue_declare("old", durable=True, arguments=QUORUM)
    time.sleep(SETTLED)
    channel.queue_declare("young", durable=True, arguments=QUORUM)
    for queue in ["young", "old"] * 5:
        channel.basic_publish("", queue, b"x", mandatory=True)
    broker.kill()
    broker.start()
    with connect(broker) as connection:
        channel = connection.channel()
        wait_for_message_count(5, channel, "old")
        kept = message_count(channel, "young")
        channel.queue_delete("old")
        channel.queue_delete("young")
    report(f"a kill just after 5 confirms: an old queue kept 5, a young one {kept}")


@pytest.mark.faults
def test_disconnecting_loses_no_confirmed_message(broker, channel, declare, report):
    """RabbitMQ 3.10 sometimes drops unconfirmed ones. We only count them.

    It doesn't drop these few if the queue has replied to a call, as in simple.
    """
    queues = {how: declare() for how in ("confirms", "a reply", "neither")}
    for how, queue in [*queues.items()] * 200:
        with connect(broker) as connection:
            producer = connection.channel()
            if how == "confirms":
                producer.confirm_delivery()
            for _ in range(3):
                producer.basic_publish("", queue, b"x")
            if how == "a reply":
                producer.queue_declare(queue, passive=True)
    wait_for_message_count(600, channel, queues["confirms"])
    wait_for_message_count(600, channel, queues["a reply"])
    lost = 600 - message_count(channel, queues["neither"])
    report(f"{lost} of 600 lost without confirms, 0 with them")
