"""What docs/production.md and docs/troubleshooting.md claim about the broker.

Users, ports and TLS are in test_security.py. The delivery limit is in
test_dead_letters.py, and priorities are in test_reference.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pika
import pytest

from tests.helpers import documented, message_count, wait_for_message_count
from tools.broker import Broker
from tools.common import ToolError, wait_until


@pytest.fixture
def set_policy(broker: Broker) -> Iterator[Callable[..., None]]:
    """set_policy("name", {"max-length": 1}) sets it for new queues of the test."""
    names = set()

    def set_policy(name: str, definition: dict, priority: int = 0) -> None:
        names.add(name)
        policy = {"pattern": ".*", "definition": definition, "priority": priority}
        broker.put(f"policies/%2F/{name}", **policy)

    yield set_policy
    for name in names:
        broker.delete(f"policies/%2F/{name}")


def test_queue_has_one_policy_and_the_lower_limit_wins(channel, declare, set_policy):
    set_policy("bytes", {"max-length-bytes": 1})
    for priority, argument, expected in [(-1, 100, 1), (1, 100, 3), (1, 2, 2)]:
        set_policy("messages", {"max-length": 3}, priority)
        # A classic queue's limit is exact. A quorum queue can hold a message more.
        queue = declare({"x-queue-type": "classic", "x-max-length": argument})
        for _ in range(9):
            channel.basic_publish("", queue, b"x")
        wait_for_message_count(expected, channel, queue)


def test_consumer_keeps_the_timeout_it_started_with(
    broker, declare, channel, set_policy
):
    if broker.version < (4, 3):
        pytest.skip("before 4.3, the broker checks it once a minute")
    set_policy("timeout", {"consumer-timeout": 1000})
    queue = declare()
    messages = []
    channel.basic_consume(queue, lambda *message: messages.append(message))
    path, later = f"queues/%2F/{queue}", {"consumer-timeout": 3_600_000}
    set_policy("timeout", later)
    wait_until(lambda: later in broker.get(path).values(), "the changed policy")
    channel.basic_publish("", queue, b"x")
    while channel.consumer_tags:
        channel.connection.process_data_events(time_limit=30)
    assert len(messages) == 1


def test_alarm_stops_producers_and_not_consumers(broker, start):
    def default_limit() -> bool:
        (node,) = broker.get("nodes")
        return node.get("disk_free_limit") == 50_000_000

    wait_until(default_limit, "the node's statistics")
    assert start("simple/producer.py", "waiting", "3").wait() == 0
    broker.ctl("set_disk_free_limit", "1000GB")
    try:
        silent = start("work_queue/producer.py", "task")
        url = f"{broker.url}?blocked_connection_timeout=1"
        limited = start("work_queue/producer.py", "task", url=url)
        start("simple/consumer.py").wait_for("Received", times=3)
        assert limited.wait() == 1
        (line,) = limited.errors
        assert documented("ConnectionBlockedTimeout") in line
        assert silent.running
        assert silent.output == silent.errors == []
    finally:
        broker.ctl("set_disk_free_limit", "50MB")
    assert silent.wait() == 0


def test_delete_queue_if_empty_refuses_a_classic_queue_with_messages(
    broker, channel, declare
):
    queue = declare({"x-queue-type": "classic"})
    channel.basic_publish("", queue, b"x")
    wait_for_message_count(1, channel, queue)
    with pytest.raises(ToolError, match="not empty"):
        broker.ctl("delete_queue", queue, "--if-empty", "--if-unused")
    assert message_count(channel, queue) == 1


def test_missing_queue_and_second_acknowledgement_close_the_channel(channel, queue):
    def closes(channel, name, reason):
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=reason):
            channel.queue_declare(name, passive=True)

    channel.basic_publish("", queue, b"x")
    method, _, _ = next(channel.consume(queue, inactivity_timeout=30))
    channel.basic_ack(method.delivery_tag)
    channel.basic_ack(method.delivery_tag)
    closes(channel, queue, documented("PRECONDITION_FAILED - unknown delivery tag"))
    closes(channel.connection.channel(), "no such queue", "NOT_FOUND")


def test_errors_of_the_environment(start, tmp_path):
    # getaddrinfo() returns an unknown family, as if this machine had no IPv6.
    address = '(99, socket.SOCK_STREAM, 6, "", ("::1", 5672))'
    no_ipv6 = documented("Address family not supported")
    no_terminal = documented("no attribute 'reconfigure'")
    other_pika = documented("module 'pika' has no attribute")
    for code, reason in [
        (f"socket.getaddrinfo = lambda *_, **__: [{address}]", no_ipv6),
        ("sys.stdout = io.StringIO()  # as IDLE and Jupyter do", no_terminal),
        ("open(sys.path[0] + '/pika.py', 'w').close()", other_pika),
    ]:
        run_script = "runpy.run_path('simple/producer.py', run_name='__main__')"
        lines = "import io, runpy, socket, sys", code, run_script
        (tmp_path / "program.py").write_text("\n".join(lines))
        process = start(str(tmp_path / "program.py"))
        assert process.wait() == 1
        assert reason in process.errors[-1]
