"""work_queue/: what its comments and its page claim."""

import re
import signal
from pathlib import Path

import pytest
from broker import wait_until
from conftest import done, edited, message_count, received, wait_for_message_count
from script import ScriptProcess

CONSUMER, PRODUCER = "work_queue/consumer.py", "work_queue/producer.py"


def wait_until_done(count, workers):
    ScriptProcess.wait_until(lambda: len(done(*workers)) >= count, workers)


def test_tasks_are_sent_and_done_in_order(start):
    worker = start(CONSUMER).wait_until_ready()
    producer = start(PRODUCER, "First task.", "Second task", "Third task")
    assert producer.wait() == 0
    tasks = ["'First task.'", "'Second task'", "'Third task'"]
    assert producer.output == [f" [x] Sent {task}" for task in tasks]
    worker.wait_for("Done", times=3)
    assert worker.stop(signal.SIGINT) == 0
    assert worker.output[1:] == [
        f" [x] {verb} {task}" for task in tasks for verb in ("Received", "Done")
    ]
    assert worker.errors == producer.errors == []


def test_queue_keeps_persistent_tasks_until_a_worker_starts(start, channel):
    producer = start(PRODUCER)
    assert producer.wait() == 0
    assert producer.output[0] == " [x] Sent 'First task.'"
    assert message_count(channel, "task_queue") == len(producer.output) == 4
    _, properties, body = channel.basic_get("task_queue", auto_ack=True)
    assert (properties.delivery_mode, body) == (2, b"First task.")
    start(CONSUMER).wait_for("Received 'Second task..'")


def test_workers_share_the_tasks(start):
    workers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    tasks = [f"task {i}" for i in range(20)]
    assert start(PRODUCER, *tasks).wait() == 0
    wait_until_done(20, workers)
    assert sorted(done(*workers)) == sorted(map(repr, tasks))
    assert all(map(done, workers))


def test_busy_worker_does_not_hold_up_the_others(start):
    workers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    quick = [f"quick {i}" for i in range(6)]
    start(PRODUCER, "slow" + "." * 60, *quick).wait()
    wait_until_done(6, workers)
    busy, free = sorted(workers, key=lambda worker: len(done(worker)))
    busy.wait_for("Received")
    assert (len(received(busy)), done(busy)) == (1, [])
    assert done(free) == list(map(repr, quick))


def test_workers_can_start_at_the_same_moment(start):
    """If two declare a new quorum queue then, RabbitMQ can answer INTERNAL_ERROR."""
    workers = [start(CONSUMER) for _ in range(4)]
    for worker in workers:
        worker.wait_until_ready()


def test_task_of_a_killed_worker_is_redelivered(start):
    killed = start(CONSUMER).wait_until_ready()
    start(PRODUCER, "precious" + "." * 60).wait()
    killed.wait_for("Received")
    killed.kill()
    assert done(killed) == []
    start(CONSUMER).wait_for("Received 'precious")


def test_task_longer_than_the_heartbeat_runs_once(start, broker, channel):
    worker = start(CONSUMER, url=f"{broker.url}?heartbeat=2").wait_until_ready()
    start(PRODUCER, "long......").wait()
    worker.wait_for("Done")
    assert worker.stop(signal.SIGINT) == 0
    assert received(worker) == done(worker) == ["'long......'"]
    assert worker.errors == []
    assert message_count(channel, "task_queue") == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_worker_finishes_and_acknowledges_its_task(start, channel, signum):
    worker = start(CONSUMER).wait_until_ready()
    start(PRODUCER, "mine..", "not mine").wait()
    worker.wait_for("Received")
    assert worker.stop(signum) == 0
    assert done(worker) == ["'mine..'"]
    wait_for_message_count(1, channel, "task_queue")
    assert channel.basic_get("task_queue", auto_ack=True)[2] == b"not mine"


@pytest.mark.parametrize("frozen", [False, True], ids=["normal", "silent"])
def test_second_ctrl_c_ends_a_busy_worker_immediately(start, broker, frozen):
    worker = start(CONSUMER).wait_until_ready()
    start(PRODUCER, "long" + "." * 60).wait()
    worker.wait_for("Received")
    if frozen:
        broker.freeze()
    try:
        worker.process.send_signal(signal.SIGINT)
        wait_until(lambda: not catches(worker, signal.SIGINT), "the first Ctrl+C", 10)
        status = worker.stop(signal.SIGINT, timeout=5)
    finally:
        if frozen:
            broker.thaw()
    assert status == -signal.SIGINT
    assert done(worker) == []


def catches(worker, signum):
    """Whether a process has a handler for a signal: see SigCgt in proc(5)."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (signum - 1) & 1


def test_failing_task_ends_the_worker_with_a_traceback_and_is_kept(
    start, tmp_path, channel
):
    # An OSError, because that's easily taken for a lost connection.
    loop = 'for _ in range(task.count(".")):'
    worker = start(edited(tmp_path, CONSUMER, loop, "for _ in open('no-file'):"))
    worker.wait_until_ready()
    start(PRODUCER, "read it").wait()
    assert worker.wait() == 1
    assert worker.count("open('no-file')") == 1
    assert worker.errors[-1] == "RuntimeError: task 'read it' failed"
    assert not worker.count("RabbitMQ")
    wait_for_message_count(1, channel, "task_queue")


def test_second_acknowledgement_prints_the_brokers_reason(start, tmp_path):
    ack = "channel.basic_ack(delivery_tag=method.delivery_tag)"
    worker = start(edited(tmp_path, CONSUMER, ack, ack, ack)).wait_until_ready()
    start(PRODUCER, "x").wait()
    assert worker.wait() == 1
    assert len(worker.errors) == 1
    assert "PRECONDITION_FAILED - unknown delivery tag 1" in worker.errors[0]


def test_refused_task_is_not_called_sent(start, broker, channel):
    policy = '{"max-length": 1, "overflow": "reject-publish"}'
    broker.ctl("set_policy", "full", "^task_queue$", policy, "--apply-to", "queues")
    try:
        # A quorum queue refuses messages when it's over its limit, so two or more fit.
        producer = start(PRODUCER, *(f"task {i}" for i in range(20)))
        assert producer.wait() == 1
    finally:
        broker.ctl("clear_policy", "full")
    sent = len(producer.output)
    left = f"'task {sent}' and {20 - sent - 1} more"
    assert producer.errors[0] == f" [!] Not confirmed: {left}"
    assert "NackError" in producer.errors[1]
    wait_for_message_count(sent, channel, "task_queue")
