"""work_queue/: what its comments and its section of the README claim."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import received, wait_for_messages, waiting
from end import ROOT, End


def done(end):
    return [line.split("Done ", 1)[1] for line in end.lines if " [x] Done " in line]


def start_workers(start, count, script="work_queue/consumer.py", **options):
    return [start(script, **options).ready() for _ in range(count)]


def test_tasks_are_confirmed_and_done_in_order(start):
    (worker,) = start_workers(start, 1)
    producer = start("work_queue/producer.py", "First task.", "Second task", "Third task")
    assert producer.end() == 0
    tasks = ["'First task.'", "'Second task'", "'Third task'"]
    assert producer.lines == [f" [x] Sent {task}" for task in tasks]
    worker.wait_for("Done", times=3)
    assert worker.stop() == 0
    assert worker.lines[1:] == [
        f" [x] {verb} {task}" for task in tasks for verb in ("Received", "Done")
    ]


def test_five_tasks_by_default(start, channel):
    producer = start("work_queue/producer.py")
    assert producer.end() == 0
    assert producer.lines == [
        " [x] Sent 'First task.'",
        " [x] Sent 'Second task..'",
        " [x] Sent 'Third task...'",
        " [x] Sent 'Fourth task....'",
        " [x] Sent 'Fifth task.....'",
    ]
    assert waiting(channel, "task_queue") == 5


def test_either_end_may_start_first(start):
    assert start("work_queue/producer.py", "early").end() == 0
    (worker,) = start_workers(start, 1)
    worker.wait_for("Done 'early'")


def test_a_task_is_persistent(start, channel):
    start("work_queue/producer.py", "x").end()
    _, properties, body = channel.basic_get("task_queue", auto_ack=True)
    assert (properties.delivery_mode, body) == (2, b"x")


def test_workers_share_the_tasks_and_no_task_goes_to_both(start):
    workers = start_workers(start, 2)
    start("work_queue/producer.py", *(f"task {i}" for i in range(20))).end()
    End.wait_until(lambda: sum(len(done(w)) for w in workers) >= 20, workers)
    for worker in workers:
        assert worker.stop() == 0
    first, second = (done(worker) for worker in workers)
    assert sorted(first + second) == sorted(f"'task {i}'" for i in range(20))
    assert first
    assert second


def test_workers_that_start_at_the_same_moment_all_get_to_work(start):
    # Of several that declare the same new quorum queue at once, RabbitMQ may tell one that it is
    # there before it has started, and then close the connection with INTERNAL_ERROR. They retry.
    workers = [start("work_queue/consumer.py") for _ in range(4)]
    for worker in workers:
        worker.ready()
    tasks = [f"task {i}" for i in range(20)]
    assert start("work_queue/producer.py", *tasks).end() == 0
    End.wait_until(lambda: sum(len(done(w)) for w in workers) >= 20, workers)
    assert [worker.stop() for worker in workers] == [0] * 4
    assert sorted(task for w in workers for task in done(w)) == sorted(map(repr, tasks))
    assert all(done(worker) for worker in workers)


def test_a_task_outlives_its_killed_worker(start):
    (doomed,) = start_workers(start, 1)
    start("work_queue/producer.py", "precious" + "." * 60).end()
    doomed.wait_for("Received")
    doomed.kill()
    (heir,) = start_workers(start, 1)
    heir.wait_for("Received 'precious")
    assert done(doomed) == []


def test_work_that_fails_ends_the_worker_and_the_task_stays(start, channel, tmp_path):
    # An OSError too, which is not to be taken for a lost connection.
    source = (ROOT / "work_queue/consumer.py").read_text()
    script = tmp_path / "consumer.py"
    script.write_text(source.replace('time.sleep(body.count(b"."))', 'open("no such file")'))
    (worker,) = start_workers(start, 1, script=str(script))
    start("work_queue/producer.py", "read it").end()
    assert worker.end() == 1
    (line,) = worker.errors
    assert line.startswith(" [!] Not done, 'read it': FileNotFoundError(")
    wait_for_messages(1, channel, "task_queue")


def test_a_full_disk_is_no_lost_broker(start, broker, channel):
    start("work_queue/producer.py", "x").end()
    command = [sys.executable, ROOT / "work_queue/consumer.py"]
    env = os.environ | {"AMQP_URL": broker.url}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, env=env, stdout=full, stderr=subprocess.PIPE, timeout=30)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr
    wait_for_messages(1, channel, "task_queue")


def test_a_busy_worker_does_not_hold_up_the_others(start):
    workers = start_workers(start, 2)
    start("work_queue/producer.py", "slow" + "." * 60, *(f"quick {i}" for i in range(6))).end()
    End.wait_until(lambda: sum(len(done(w)) for w in workers) >= 6, workers)
    busy, free = sorted(workers, key=lambda worker: len(done(worker)))
    busy.wait_for("Received")
    assert (len(received(busy)), done(busy)) == (1, [])
    assert done(free) == [f"'quick {i}'" for i in range(6)]


def test_a_task_longer_than_the_heartbeat_is_done_once(start, broker, channel):
    (worker,) = start_workers(start, 1, url=f"{broker.url}?heartbeat=2")
    start("work_queue/producer.py", "long......").end()
    worker.wait_for("Done")
    assert worker.stop() == 0
    assert received(worker) == done(worker) == ["'long......'"]
    assert worker.errors == []
    assert waiting(channel, "task_queue") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_in_mid_task_ends_with_that_task_done_and_acknowledged(start, channel, number):
    (worker,) = start_workers(start, 1)
    start("work_queue/producer.py", "in hand..", "not mine").end()
    worker.wait_for("Received")
    assert worker.stop(number) == 0
    assert done(worker) == ["'in hand..'"]
    wait_for_messages(1, channel, "task_queue")
    assert channel.basic_get("task_queue", auto_ack=True)[2] == b"not mine"


def test_a_task_that_the_broker_refuses_is_not_called_sent(start, broker, channel):
    policy = '{"max-length": 1, "overflow": "reject-publish"}'
    broker.ctl("set_policy", "full", "^task_queue$", policy, "--apply-to", "queues")
    try:
        start("work_queue/producer.py", "fits").end()
        # A quorum queue begins to refuse when it is over its limit, not at it: one more may fit.
        producer = start("work_queue/producer.py", *(f"task {i}" for i in range(9)))
        assert producer.end() == 1
    finally:
        broker.ctl("clear_policy", "full")
    (complaint,) = producer.errors
    number = len(producer.lines)
    assert complaint.startswith(f" [!] Not sent, 'task {number}' and {8 - number} more: NackError")
    wait_for_messages(1 + number, channel, "task_queue")


def test_a_worker_whose_queue_is_deleted_says_so(start, channel):
    (worker,) = start_workers(start, 1)
    channel.queue_delete("task_queue")
    assert worker.end() == 1
    assert worker.errors[0].startswith(" [!] The queue task_queue was deleted")
