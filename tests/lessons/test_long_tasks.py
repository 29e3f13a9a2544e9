"""advanced/long_tasks/: what its comments and its page claim.

reconnect's worker has some of the same lines, so most tests are about both.
"""

import re
import signal

import pytest

from tests.helpers import (
    documented,
    done,
    edited,
    get,
    received,
    run_script,
    wait_for_message_count,
)
from tools.common import wait_until
from tools.lessons import LESSONS
from tools.pages import pattern

WORKERS = ["advanced/long_tasks", "advanced/reconnect"]
SLEEP = 'time.sleep(task.count("."))'
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"

both_signals = pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])


@pytest.fixture(params=WORKERS)
def lesson(request):
    return request.param


def start_busy(start, lesson, *tasks, script=None):
    """Start a worker, and send it tasks. Return it once it has received one."""
    worker = start(script or f"{lesson}/consumer.py").wait_until_ready()
    assert start(f"{lesson}/producer.py", *tasks).wait() == 0
    return worker.wait_for("Received")


@both_signals
def test_stopped_worker_finishes_only_its_task(start, channel, signum):
    workers = {}
    for lesson in WORKERS:
        workers[lesson] = start_busy(start, lesson, "mine..", "not mine")
        workers[lesson].process.send_signal(signum)
    for lesson, worker in workers.items():
        assert worker.wait() == 0
        assert received(worker) == done(worker) == ["'mine..'"]
        assert worker.errors == []
        method, properties, body = get(channel, LESSONS[lesson].send_to[1])
        # Nobody has received it before, not even in advance.
        assert (body, method.redelivered) == (b"not mine", False)
        assert properties.delivery_mode == 2
        idle = start_busy(start, lesson, "quick").wait_for("Done")
        assert idle.stop(signum) == 0


@both_signals
def test_second_signal_ends_a_worker_even_while_the_broker_is_frozen(
    start, broker, channel, lesson, signum
):
    worker = start_busy(start, lesson, "long" + "." * 60)

    def exited():
        worker.process.send_signal(signum)
        return worker.process.poll() is not None

    with broker.frozen():
        wait_until(exited, worker, 10)
    assert worker.wait() == -signum  # with status 0, one signal would have been enough
    assert done(worker) == []
    wait_for_message_count(1, channel, LESSONS[lesson].send_to[1])


def test_signal_during_the_acknowledgement_is_kept(start, tmp_path, lesson):
    press = f"{ACK}\nsignal.raise_signal(signal.SIGINT)"
    script = edited(tmp_path, f"{lesson}/consumer.py", {ACK: press})
    worker = start_busy(start, lesson, "short", script=script)
    assert worker.wait() == 0
    assert done(worker) == ["'short'"]
    assert worker.errors == []


def test_task_that_raises_ends_the_worker(start, channel, tmp_path, lesson):
    # The task's own error is easily taken for a lost connection to the broker.
    bug = 'raise pika.exceptions.StreamLostError("in my task")'
    script = edited(tmp_path, f"{lesson}/consumer.py", {SLEEP: bug})
    worker = start_busy(start, lesson, "bad", script=script)
    assert worker.wait() == 1
    assert worker.count("Traceback") == worker.count(bug) == 1
    assert worker.errors[-1] == " [!] Failed 'bad'"
    assert not worker.count("RabbitMQ", "Retrying", "Done")
    wait_for_message_count(1, channel, LESSONS[lesson].send_to[1])


def test_lost_connection_ends_a_busy_worker_before_its_task_ends(start, broker):
    worker = start_busy(start, "advanced/long_tasks", "long" + "." * 60)
    broker.ctl("close_all_connections", "a test")
    assert worker.wait() == 1
    (line,) = worker.errors
    assert "CONNECTION_FORCED - a test" in line
    assert done(worker) == []


def test_task_over_consumer_timeout_is_redelivered(start, broker, tmp_path, lesson):
    wait = 'while not os.path.exists("end"): time.sleep(0.02)'
    script = edited(tmp_path, f"{lesson}/consumer.py", {SLEEP: wait})
    # Before 4.3, the broker looks for such tasks only once per channel_tick_interval.
    names = "channel_tick_interval", "consumer_timeout"
    limits = ", ".join(f"application:set_env(rabbit, {name}, {{}})" for name in names)
    broker.ctl("eval", f"{limits}.".format(500, 1000))  # in milliseconds
    try:
        workers = [start(script, cwd=tmp_path).wait_until_ready() for _ in range(2)]
        assert start(f"{lesson}/producer.py", "long").wait() == 0
        wait_until(lambda: any(map(received, workers)), workers)
        first, second = sorted(workers, key=received, reverse=True)
        second.wait_for("Received 'long'")
    finally:
        broker.ctl("eval", f"{limits}.".format(60_000, 1_800_000))
    assert done(*workers) == []
    (tmp_path / "end").touch()
    assert first.wait() == 1
    assert done(first) == ["'long'"]
    reason = documented("PRECONDITION_FAILED - … timed out")
    if broker.version >= (4, 3):
        reason = "The broker cancelled our consumer…consumer_timeout"
    (line,) = first.errors
    assert re.search(pattern(reason), line)


def test_consumer_can_have_its_own_timeout_since_4_3(broker, declare, channel):
    if broker.version < (4, 3):
        pytest.skip("Since 4.3.")
    queue = declare()
    channel.basic_publish("", queue, b"x")
    channel.basic_consume(queue, print, arguments={"x-consumer-timeout": 1000})
    while channel.consumer_tags:  # until the broker cancels it
        channel.connection.process_data_events(time_limit=30)


@pytest.mark.faults
def test_task_of_many_heartbeats_is_done_once_unless_pika_cannot_run(
    start, broker, tmp_path
):
    """A task of ten seconds, with a heartbeat of two."""
    url = f"{broker.url}?heartbeat=2"
    tasks = ["one..........", "two"]
    workers = [start(f"{lesson}/consumer.py", url=url) for lesson in WORKERS]
    for lesson, worker in zip(WORKERS, workers, strict=True):
        worker.wait_until_ready()
        run_script(start, f"{lesson}/producer.py", *tasks)
    for worker in workers:
        # It receives the second task, and not its first one again.
        worker.wait_for("Done", times=2)
        assert received(worker) == done(worker) == list(map(repr, tasks))
        assert worker.errors == []
        assert worker.stop() == 0

    heartbeats = "connection.process_data_events()  # sends and receives heartbeats"
    script = edited(tmp_path, "advanced/long_tasks/consumer.py", {heartbeats: ""})
    run_script(start, "advanced/long_tasks/producer.py", *tasks)
    blocked = start(script, url=url)
    assert blocked.wait() == 1
    assert done(blocked) == received(blocked)
    assert len(blocked.errors) == 1
