"""What the scripts with private queues share: fanout, direct, topic and headers."""

import re

import pika
import pytest

from tests.helpers import documented, edited
from tools.common import wait_until
from tools.lessons import LESSONS

PRIVATE = [name for name, lesson in LESSONS.items() if not lesson.queues]
START = "channel.start_consuming()"  # a line of each consumer


@pytest.mark.parametrize(
    ("lesson", "durable"),
    [
        ("fanout", False),
        ("direct", False),
        ("topic", False),
        ("advanced/headers", True),
    ],
)
def test_exchange_is_durable_only_in_headers(start, broker, lesson, durable):
    """The others are transient, as in the official tutorials."""
    start(f"{lesson}/consumer.py").wait_until_ready()
    exchange, _ = LESSONS[lesson].send_to
    assert broker.get(f"exchanges/%2F/{exchange}")["durable"] == durable


@pytest.mark.parametrize("lesson", PRIVATE)
def test_queue_is_private_and_temporary(start, broker, channel, lesson):
    consumer = start(f"{lesson}/consumer.py").wait_until_ready()
    (queue,) = broker.queues()
    assert queue.startswith("amq.gen-")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="RESOURCE_LOCKED"):
        channel.queue_declare(queue, passive=True)
    consumer.kill()
    wait_until(lambda: not broker.queues(), "no queue")


@pytest.mark.parametrize("lesson", PRIVATE)
def test_consumer_of_a_deleted_queue_exits_with_one_line(start, tmp_path, lesson):
    delete = f"channel.queue_delete(queue=queue)\n{START}"  # only its owner can do that
    consumer = start(edited(tmp_path, f"{lesson}/consumer.py", {START: delete}))
    assert consumer.wait() == 1
    (line,) = consumer.errors
    assert documented("cancelled our consumer") in line


@pytest.mark.parametrize("lesson", PRIVATE)
def test_producer_reports_a_missing_permission(start, user, lesson):
    producer = start(f"{lesson}/producer.py", url=user("^$"))
    assert producer.wait() == 1
    (line,) = producer.errors
    assert documented("ACCESS_REFUSED - … access to … refused")  # 3.10: no "write"
    assert re.search("ACCESS_REFUSED - .*access to exchange .* refused", line)
