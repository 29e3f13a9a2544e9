"""What all scripts do when the broker restarts, and in a flood of messages."""

import itertools
import random
import signal

import pytest

from tests.helpers import documented
from tools.lessons import CONSUMERS, LESSONS

pytestmark = pytest.mark.faults


@pytest.mark.timeout(240)
@pytest.mark.parametrize("lesson", ["simple", "work_queue", "advanced/reconnect"])
def test_ctrl_c_during_a_backlog_exits_cleanly(start, channel, lesson):
    """Ten consumers share a backlog of 25,000 messages."""

    def start_and_interrupt(moment):
        """Start a consumer, and press Ctrl+C after so many lines of output."""

        lines = itertools.count()

        def on_line(line):
            if next(lines) == moment:
                consumer.process.send_signal(signal.SIGINT)

        consumer = start(f"{lesson}/consumer.py", on_line=on_line)
        return consumer.wait_until_ready()

    consumers = [start_and_interrupt(random.randint(1, 999)) for _ in range(10)]
    for consumer in consumers:
        consumer.process.send_signal(signal.SIGSTOP)
    for _ in range(25_000):
        channel.basic_publish(*LESSONS[lesson].send_to, b"message")
    for consumer in consumers:
        consumer.process.send_signal(signal.SIGCONT)
    for consumer in consumers:
        assert consumer.wait() == 0, consumer
        assert consumer.errors == []


def test_broker_restart_is_one_line_except_for_scripts_that_reconnect(
    start, broker, tmp_path
):
    consumers = {script: start(script, cwd=tmp_path) for script in CONSUMERS}
    for consumer in consumers.values():
        consumer.wait_until_ready()
    worker = consumers.pop("advanced/reconnect/consumer.py")
    rpc_server = consumers["rpc/consumer.py"].process
    rpc_server.send_signal(signal.SIGSTOP)
    client = start("rpc/producer.py", "--timeout", "60").wait_for("Requesting")
    broker.restart()
    rpc_server.send_signal(signal.SIGCONT)
    for process in [client, *consumers.values()]:
        assert process.wait() == 1, process
        (line,) = process.errors
        # A script that sends something then can get a reset before it reads the reason.
        assert documented("CONNECTION_FORCED") in line or "StreamLost" in line
    worker.wait_for("Waiting for messages", times=2)
    last_word = documented("Retrying.")
    assert all(line.endswith(last_word) for line in worker.errors), worker
    assert start("advanced/reconnect/producer.py", "after").wait() == 0
    worker.wait_for("Done 'after'")
