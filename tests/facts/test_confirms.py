"""Publisher confirms: docs/reliability.md."""

from __future__ import annotations

import pytest

from tests.helpers import connect


@pytest.mark.faults
def test_disconnecting_loses_no_confirmed_message(broker, channel, declare, report):
    """RabbitMQ 3.10 sometimes drops unconfirmed ones. We only count them."""
    queue = declare()
    sent: dict[bool, set[bytes]] = {False: set(), True: set()}
    for i in range(400):
        confirms = i % 2 == 0
        with connect(broker) as connection:
            producer = connection.channel()
            if confirms:
                producer.confirm_delivery()
            for body in [b"%d.1" % i, b"%d.2" % i, b"%d.3" % i]:
                producer.basic_publish("", queue, body)
                sent[confirms].add(body)
    received = set()
    channel.confirm_delivery()
    channel.basic_publish("", queue, b"last")  # the queue is in order
    for _, _, body in channel.consume(queue, auto_ack=True):
        received.add(body)
        if body == b"last":
            break
    assert sent[True] <= received
    report(f"{len(sent[False] - received)} of 600 lost without confirms, 0 with them")
