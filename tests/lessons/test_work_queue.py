"""work_queue/: what its comments and its page claim."""

import signal

import pytest

from tests.helpers import (
    QUORUM,
    documented,
    done,
    edited,
    message_count,
    received,
    wait_for_message_count,
)
from tests.workers import WorkerPool
from tools.common import wait_until

CONSUMER, PRODUCER = "work_queue/consumer.py", "work_queue/producer.py"
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
QOS = "channel.basic_qos(prefetch_count=1)"
SLEEP = 'time.sleep(task.count("."))'


def test_tasks_are_sent_and_done_in_order_and_a_dot_takes_a_second(start, tmp_path):
    # Python imports this first. It prints the seconds instead of waiting for them.
    no_sleep = "import time\ntime.sleep = lambda s: print(f' slept {s} s', flush=True)"
    (tmp_path / "sitecustomize.py").write_text(no_sleep)
    worker = start(CONSUMER, PYTHONPATH=str(tmp_path)).wait_until_ready()
    producer = start(PRODUCER)
    assert producer.wait() == 0
    tasks = ["'First task.'", "'Second task..'", "'Third task...'", "'Fourth task....'"]
    assert producer.output == [f" [x] Sent {task}" for task in tasks]
    worker.wait_for("Done", times=4)
    assert worker.stop(signal.SIGINT) == 0
    assert worker.output[1:] == [
        line
        for dots, task in enumerate(tasks, 1)
        for line in (f" [x] Received {task}", f" slept {dots} s", f" [x] Done {task}")
    ]
    assert worker.errors == producer.errors == []


def test_durable_quorum_queue_keeps_persistent_tasks(start, channel):
    """Declared with other arguments, the queue would be refused here."""
    assert start(PRODUCER, "First task.", "Second task").wait() == 0
    channel.queue_declare("task_queue", durable=True, arguments=QUORUM)
    assert message_count(channel, "task_queue") == 2
    _, properties, body = channel.basic_get("task_queue", auto_ack=True)
    assert (properties.delivery_mode, body) == (2, b"First task.")
    start(CONSUMER).wait_for("Received 'Second task'")


@pytest.mark.parametrize("prefetch", [1, None])
def test_free_worker_does_not_wait_for_a_busy_one(start, tmp_path, prefetch):
    """Step 1, with and without basic_qos."""
    consumer = CONSUMER if prefetch else edited(tmp_path, CONSUMER, {QOS: ""})
    workers = [start(consumer).wait_until_ready() for _ in range(2)]
    assert start(PRODUCER, "Resize...", "Crop.", "Resize...", "Crop.").wait() == 0
    wait_until(lambda: len(done(*workers)) == 4, workers)
    shared = ["'Crop.'", "'Resize...'"]
    expected = (shared, shared) if prefetch else ([shared[0]] * 2, [shared[1]] * 2)
    assert sorted(sorted(done(worker)) for worker in workers) == sorted(expected)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_task_of_a_stopped_worker_goes_to_another(start, signum):
    """Step 2."""
    workers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    producer = start(PRODUCER, "Resize...")
    wait_until(lambda: any(map(received, workers)), workers)
    stopped, other = sorted(workers, key=received, reverse=True)
    assert stopped.stop(signum) == (0 if signum == signal.SIGINT else -signum)
    other.wait_for("Done")
    assert (done(stopped), done(other)) == ([], ["'Resize...'"])
    assert stopped.errors == []
    assert producer.wait() == 0


@pytest.mark.faults
def test_waiting_task_survives_a_broker_restart(start, broker):
    """Step 3."""
    start(PRODUCER, "Resize.").wait()
    broker.restart()
    workers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    wait_until(lambda: done(*workers) == ["'Resize.'"], workers)


@pytest.mark.parametrize(
    "lines",
    [{"work(task)": f"{ACK}\nwork(task)", ACK: ""}, {ACK: ACK}],
    ids=["before the work", "after it"],
)
def test_acknowledged_task_is_lost_if_its_worker_crashes(start, tmp_path, lines):
    """Step 4, and the same without the change."""
    early = "" in lines.values()
    worker = start(edited(tmp_path, CONSUMER, lines)).wait_until_ready()
    start(PRODUCER, "Resize" + "." * 60).wait()
    worker.wait_for("Received")
    assert worker.stop(signal.SIGINT) == 0
    other = start(CONSUMER).wait_until_ready()
    start(PRODUCER, "next").wait()
    other.wait_for("Received")
    assert received(other)[0].startswith("'next" if early else "'Resize")


def test_mistyped_queue_is_noticed_with_mandatory(start, tmp_path):
    """Step 5."""
    typo = {'routing_key="task_queue",': 'routing_key="task_quene",'}
    producer = start(edited(tmp_path, PRODUCER, typo), "x")
    assert producer.wait() == 1
    assert producer.output == []
    assert documented("UnroutableError") in producer.errors[0]
    producer = start(edited(tmp_path, PRODUCER, typo | {"mandatory=True,": ""}), "x")
    assert producer.wait() == 0
    assert producer.output == [" [x] Sent 'x'"]


def test_task_without_an_acknowledgement_blocks_the_worker(start, channel, tmp_path):
    forgetful = edited(tmp_path, CONSUMER, {ACK: ""})
    worker = start(forgetful).wait_until_ready()
    start(PRODUCER, "first", "second").wait()
    worker.wait_for("Done 'first'")
    assert message_count(channel, "task_queue") == 1
    worker.kill()
    start(forgetful).wait_for("Done 'first'")


def test_failing_task_ends_the_worker_with_a_traceback_and_is_kept(
    start, tmp_path, channel
):
    # An OSError, because that's easily taken for a lost connection.
    failing = edited(tmp_path, CONSUMER, {SLEEP: "open('no-file')"})
    worker = start(failing).wait_until_ready()
    start(PRODUCER, "read it").wait()
    assert worker.wait() == 1
    assert worker.count("open('no-file')") == 1
    assert worker.errors[-1].startswith("FileNotFoundError")
    assert not worker.count("RabbitMQ")
    wait_for_message_count(1, channel, "task_queue")
    assert start(failing).wait() == 1


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
    start(PRODUCER, "long" + "." * 9).wait()
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
