"""advanced/long_tasks/: what its comments and its page claim.

reconnect's worker has the same lines for a task and for signals, so some tests are
about both.
"""

from __future__ import annotations

import signal

import pytest

from tests.helpers import (
    done,
    edited,
    get,
    received,
    wait_for_message_count,
)
from tools.common import wait_until
from tools.lessons import LESSONS

CONSUMER = "advanced/long_tasks/consumer.py"
PRODUCER = "advanced/long_tasks/producer.py"
WORKERS = ["advanced/long_tasks", "advanced/reconnect"]
SIGNALS = [signal.SIGINT, signal.SIGTERM]

both_workers = pytest.mark.parametrize("lesson", WORKERS)


def start_busy(start, lesson, *tasks, script=None, **options):
    """Start a worker, and send it tasks. Return it once it has received one."""
    worker = start(script or f"{lesson}/consumer.py", **options).wait_until_ready()
    assert start(f"{lesson}/producer.py", *tasks).wait() == 0
    return worker.wait_for("Received")


@both_workers
@pytest.mark.parametrize("signum", SIGNALS)
def test_stopped_worker_finishes_its_task_and_leaves_the_next(
    start, channel, lesson, signum
):
    worker = start_busy(start, lesson, "mine..", "not mine")
    assert worker.stop(signum) == 0
    assert received(worker) == done(worker) == ["'mine..'"]
    assert worker.errors == []
    method, properties, body = get(channel, LESSONS[lesson].queue)
    assert (body, method.redelivered) == (b"not mine", False)
    assert properties.delivery_mode == 2


@both_workers
@pytest.mark.parametrize("signum", SIGNALS)
def test_second_signal_ends_a_busy_worker_immediately(start, channel, lesson, signum):
    worker = start_busy(start, lesson, "long" + "." * 60)
    assert stop_twice(worker, signum) == -signum
    assert done(worker) == []
    wait_for_message_count(1, channel, LESSONS[lesson].queue)


@both_workers
def test_second_ctrl_c_ends_a_busy_worker_while_the_broker_is_frozen(
    start, broker, lesson
):
    worker = start_busy(start, lesson, "long" + "." * 60)
    with broker.frozen():
        assert stop_twice(worker, signal.SIGINT) == -signal.SIGINT
    assert done(worker) == []


def stop_twice(worker, signum):
    """Send a signal until the worker exits: once isn't enough. Return its status."""

    def exited():
        worker.process.send_signal(signum)
        return worker.process.poll() is not None

    worker.process.send_signal(signum)
    wait_until(exited, worker, 10, interval=0.2)
    return worker.wait()


@both_workers
def test_signal_during_the_last_acknowledgement_is_not_forgotten(
    start, tmp_path, lesson
):
    ack = "channel.basic_ack(delivery_tag=method.delivery_tag)"
    press = f"{ack}\nsignal.raise_signal(signal.SIGINT)"
    script = edited(tmp_path, f"{lesson}/consumer.py", {ack: press})
    worker = start_busy(start, lesson, "short", script=script)
    assert worker.wait() == 0
    assert done(worker) == ["'short'"]
    assert worker.errors == []


@both_workers
def test_task_that_raises_ends_the_worker_with_a_traceback_and_is_kept(
    start, channel, tmp_path, lesson
):
    # The task's own error is easily taken for a lost connection to the broker.
    sleep = 'time.sleep(task.count("."))'
    bug = 'raise pika.exceptions.StreamLostError("in my task")'
    script = edited(tmp_path, f"{lesson}/consumer.py", {sleep: bug})
    worker = start_busy(start, lesson, "bad", script=script)
    assert worker.wait() == 1
    assert worker.count("Traceback") == worker.count(bug) == 1
    assert worker.errors[-1] == " [!] Failed 'bad'"
    assert not worker.count("RabbitMQ", "Retrying", "Done")
    wait_for_message_count(1, channel, LESSONS[lesson].queue)


@both_workers
def test_refused_acknowledgement_prints_the_brokers_reason(start, tmp_path, lesson):
    ack = "channel.basic_ack(delivery_tag=method.delivery_tag)"
    script = edited(tmp_path, f"{lesson}/consumer.py", {ack: f"{ack}\n{ack}"})
    worker = start_busy(start, lesson, "short", script=script)
    assert worker.wait() == 1
    (line,) = worker.errors
    assert "PRECONDITION_FAILED - unknown delivery tag 1" in line


def test_lost_connection_ends_a_busy_worker_before_its_task_ends(start, broker):
    worker = start_busy(start, "advanced/long_tasks", "long" + "." * 60)
    broker.ctl("close_all_connections", "a test")
    assert worker.wait() == 1
    (line,) = worker.errors
    assert "CONNECTION_FORCED - a test" in line
    assert done(worker) == []


@pytest.fixture
def consumer_timeout(broker):
    """One second for each task, instead of 30 minutes."""

    def set_limits(**limits):
        calls = (f"application:set_env(rabbit, {k}, {v})" for k, v in limits.items())
        broker.ctl("eval", f"{', '.join(calls)}.")

    # Before 4.3, the broker looks for such tasks only once per channel_tick_interval.
    set_limits(channel_tick_interval=500, consumer_timeout=1000)
    yield
    set_limits(channel_tick_interval=60_000, consumer_timeout=1_800_000)


@both_workers
@pytest.mark.usefixtures("consumer_timeout")
def test_task_over_consumer_timeout_goes_to_another_worker_before_it_ends(
    start, broker, tmp_path, lesson
):
    """The first worker prints the broker's reason, or that it was cancelled."""
    wait = 'while not os.path.exists("end"): time.sleep(0.02)'
    script = edited(
        tmp_path, f"{lesson}/consumer.py", {'time.sleep(task.count("."))': wait}
    )
    workers = [start(script, cwd=tmp_path).wait_until_ready() for _ in range(2)]
    assert start(f"{lesson}/producer.py", "long").wait() == 0
    wait_until(lambda: any(map(received, workers)), workers)
    first, second = sorted(workers, key=received, reverse=True)
    second.wait_for("Received 'long'")
    assert done(*workers) == []
    (tmp_path / "end").touch()
    assert first.wait() == 1
    assert done(first) == ["'long'"]
    (line,) = first.errors
    if broker.version < (4, 3):
        assert "PRECONDITION_FAILED - delivery acknowledgement on channel" in line
    else:
        assert line.startswith(" [!] The broker cancelled our consumer.")
        assert "consumer_timeout" in line


@pytest.mark.usefixtures("consumer_timeout")
def test_consumer_can_have_its_own_timeout_since_4_3(start, broker, tmp_path):
    if broker.version < (4, 3):
        pytest.skip("Since 4.3.")
    consume = 'channel.basic_consume(queue="videos", on_message_callback=on_message)'
    limit = ', arguments={"x-consumer-timeout": 7200000})'
    script = edited(tmp_path, CONSUMER, {consume: consume.removesuffix(")") + limit})
    worker = start_busy(start, "advanced/long_tasks", "a....", "b", script=script)
    worker.wait_for("Done 'b'")
    assert received(worker) == done(worker)


@pytest.mark.faults
def test_task_of_many_heartbeats_is_done_once_unless_it_blocks_pika(
    start, broker, tmp_path, channel
):
    """A task of ten seconds, with a heartbeat of two."""
    url = f"{broker.url}?heartbeat=2"
    worker = start(CONSUMER, url=url)
    # One copy works in the connection's thread, the other doesn't let pika run.
    blocking = [
        {"thread.start()": "thread.run()"},
        {"connection.process_data_events()  # sends and receives heartbeats": ""},
    ]
    blocked = []
    for i, lines in enumerate(blocking):
        (tmp_path / str(i)).mkdir()
        blocked.append(start(edited(tmp_path / str(i), CONSUMER, lines), url=url))
    for process in [worker, *blocked]:
        process.wait_until_ready()
    tasks = [name + "." * 10 for name in ("one", "two", "three")]
    assert start(PRODUCER, *tasks).wait() == 0
    # Each receives one. The blocked ones can't acknowledge it, so it's done again.
    for process in blocked:
        assert process.wait() == 1
        assert received(process) == done(process)
        assert len(process.errors) == 1
    worker.wait_for("Received", times=2)
    assert done(worker) == received(worker)[:1]
    assert received(worker)[1] in done(*blocked)
    assert worker.stop() == 0
    assert len(set(done(worker))) == 2
    assert worker.errors == []
