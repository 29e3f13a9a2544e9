"""work_queue/: what its comments and its page claim."""

import signal

import pytest

from tests.helpers import (
    QUORUM,
    documented,
    done,
    edited,
    received,
    run_script,
    wait_for_message_count,
)
from tests.workers import WorkerPool
from tools.common import wait_until

CONSUMER, PRODUCER = "work_queue/consumer.py", "work_queue/producer.py"
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
RECEIVED = 'print(f" [x] Received {task!r}")'
ACK_FIRST = {RECEIVED: f"{ACK}\n{RECEIVED}", ACK: ""}  # so the line proves the ack
QOS = "channel.basic_qos(prefetch_count=1)"
SLEEP = 'time.sleep(task.count("."))'
KEY = 'routing_key="task_queue",'


def test_tasks_wait_in_a_durable_quorum_queue_and_a_dot_takes_a_second(
    start, channel, tmp_path
):
    tasks = ["'First task.'", "'Second task..'", "'Third task...'", "'Fourth task....'"]
    assert run_script(start, PRODUCER) == [f" [x] Sent {task}" for task in tasks]
    # Declared with other arguments, the queue would be refused here.
    channel.queue_declare("task_queue", durable=True, arguments=QUORUM)
    _, properties, body = channel.basic_get("task_queue", auto_ack=True)
    assert (properties.delivery_mode, body) == (2, b"First task.")
    # Python imports this first. It prints the seconds instead of waiting for them.
    no_sleep = "import time\ntime.sleep = lambda s: print(f' slept {s} s', flush=True)"
    (tmp_path / "sitecustomize.py").write_text(no_sleep)
    worker = start(CONSUMER, PYTHONPATH=str(tmp_path)).wait_for("Done", times=3)
    assert worker.output[1:] == [
        line
        for dots, task in enumerate(tasks[1:], 2)
        for line in (f" [x] Received {task}", f" slept {dots} s", f" [x] Done {task}")
    ]


@pytest.mark.parametrize("prefetch", [1, None])
def test_free_worker_does_not_wait_for_a_busy_one(start, tmp_path, prefetch):
    """Step 1, with and without basic_qos."""
    consumer = CONSUMER if prefetch else edited(tmp_path, CONSUMER, {QOS: ""})
    workers = [start(consumer).wait_until_ready() for _ in range(2)]
    run_script(start, PRODUCER, "Resize...", "Crop.", "Resize...", "Crop.")
    wait_until(lambda: len(done(*workers)) == 4, workers)
    shared = ["'Crop.'", "'Resize...'"]
    expected = (shared, shared) if prefetch else ([shared[0]] * 2, [shared[1]] * 2)
    assert sorted(sorted(done(worker)) for worker in workers) == sorted(expected)


@pytest.mark.parametrize(
    ("lines", "signum", "expected"),
    [
        ({}, signal.SIGINT, ["'Resize...'", "'next'"]),
        ({}, signal.SIGKILL, ["'Resize...'", "'next'"]),
        (ACK_FIRST, signal.SIGINT, ["'next'"]),
    ],
    ids=["step 2", "killed", "step 4"],
)
def test_task_of_a_stopped_worker_goes_to_another_unless_it_is_acknowledged_first(
    start, tmp_path, lines, signum, expected
):
    consumer = edited(tmp_path, CONSUMER, lines)
    workers = [start(consumer).wait_until_ready() for _ in range(2)]
    run_script(start, PRODUCER, "Resize...")
    wait_until(lambda: received(*workers), workers)
    stopped, other = sorted(workers, key=received, reverse=True)
    assert stopped.stop(signum) == (0 if signum == signal.SIGINT else -signum)
    assert done(stopped) == stopped.errors == []
    run_script(start, PRODUCER, "next")
    other.wait_for("Done", times=len(expected))
    assert sorted(done(other)) == expected


@pytest.mark.faults
def test_waiting_task_survives_a_broker_restart(start, broker):
    """Step 3."""
    run_script(start, PRODUCER, "Resize.")
    broker.restart()
    workers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    wait_until(lambda: done(*workers) == ["'Resize.'"], workers)


def test_mistyped_queue_is_noticed_with_mandatory(start, tmp_path):
    """Step 5."""
    typo = {KEY: KEY.replace("queue", "quene")}
    producer = start(edited(tmp_path, PRODUCER, typo), "x")
    assert producer.wait() == 1
    assert producer.output == []
    assert "UnroutableError" in producer.errors[0]
    careless = edited(tmp_path, PRODUCER, typo | {"mandatory=True,": ""})
    assert run_script(start, careless, "x") == [" [x] Sent 'x'"]


def test_failing_task_ends_each_worker_that_gets_it_with_a_traceback(start, tmp_path):
    failing = edited(tmp_path, CONSUMER, {SLEEP: "1 / 0"})
    run_script(start, PRODUCER, "divide")
    for _ in range(2):
        worker = start(failing)
        assert worker.wait() == 1
        assert worker.errors[-1] == "ZeroDivisionError: division by zero"


def test_refused_task_is_not_called_sent(start, broker, channel):
    limit = {"max-length": 1, "overflow": "reject-publish"}
    broker.put("policies/%2F/full", pattern="^task_queue$", definition=limit)
    try:
        # A quorum queue refuses messages when it's over its limit, so two or more fit.
        producer = start(PRODUCER, *(f"task {i}" for i in range(20)))
        assert producer.wait() == 1
    finally:
        broker.delete("policies/%2F/full")
    (line,) = producer.errors
    refused = documented("The broker refused the message")
    assert line.startswith(f" [!] {refused}. Is the queue full, or")
    wait_for_message_count(len(producer.output), channel, "task_queue")


@pytest.mark.faults
def test_long_task_loses_the_connection_and_runs_again(start, broker, channel):
    """pika sends no heartbeats during a task. advanced/long_tasks has the way out."""
    worker = start(CONSUMER, url=f"{broker.url}?heartbeat=2").wait_until_ready()
    run_script(start, PRODUCER, "long" + "." * 9)
    assert worker.wait() == 1
    assert done(worker) == ["'long.........'"]
    assert len(worker.errors) == 1
    wait_for_message_count(1, channel, "task_queue")


@pytest.mark.faults
def test_no_task_is_lost_when_workers_are_killed(start, report, tmp_path):
    tasks = [f"task {i}" for i in range(200)]
    worker = edited(tmp_path, CONSUMER, {SLEEP: "time.sleep(0.05)"})
    pool = WorkerPool(start, worker, 3)
    assert start(PRODUCER, *tasks).wait(90) == 0
    pool.kill_some(20, tasks)
    pool.wait_for_done(tasks)
    report(f"20 workers killed, 0 of 200 tasks lost, {pool.figures()}")
