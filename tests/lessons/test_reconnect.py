"""advanced/reconnect/: what its comments and its page claim.

Workers, brokers and connections are killed, cut off and frozen. No task may get lost.
What the worker shares with long_tasks is in test_long_tasks.py. The tests of the other
lesson that reconnects, confirms, are here where they're the same.
"""

from __future__ import annotations

import itertools
import random
import re
import signal
import time
from functools import partial

import pytest

from tests.helpers import (
    QUORUM,
    SETTLED,
    documented,
    done,
    edited,
    received,
    starting,
    wait_for_message_count,
)
from tests.servers import answering_server, closed_port, silent_server
from tests.workers import WorkerPool
from tools.broker import temporary_cluster, uses_docker
from tools.broker.docker import DockerBroker
from tools.common import ROOT, wait_until
from tools.script import ScriptProcess

CONSUMER = "advanced/reconnect/consumer.py"
PRODUCER = "advanced/reconnect/producer.py"
# Every script that reconnects, with arguments for a short run.
ALL = {CONSUMER: [], PRODUCER: [], "advanced/confirms/producer.py": ["10"]}


def wait_until_connected(processes: dict[str, ScriptProcess]) -> None:
    for script, process in processes.items():
        if script == CONSUMER:
            process.wait_until_ready()
        else:
            assert process.wait() == 0, process


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


def test_workers_can_start_at_the_same_moment_and_hold_one_task_each(start):
    """If two declare a new quorum queue then, RabbitMQ can answer INTERNAL_ERROR."""
    workers = [start(CONSUMER) for _ in range(3)]
    for worker in workers:
        worker.wait_until_ready()
    quick = [f"quick {i}" for i in range(6)]
    assert start(PRODUCER, "slow" + "." * 60, *quick).wait() == 0
    wait_until(lambda: len(done(*workers)) == 6, workers)
    assert sorted(done(*workers)) == list(map(repr, quick))
    assert sorted(len(received(w)) - len(done(w)) for w in workers) == [0, 0, 1]


def test_each_node_is_tried_in_turn_whatever_was_wrong_with_the_one_before(
    start, broker
):
    resetting = partial(answering_server, b"")
    http = partial(answering_server, b"HTTP/1.1 4")
    with (
        closed_port() as closed,
        silent_server() as silent,
        resetting() as reset,
        http() as web,
    ):
        urls = [
            f"amqp://127.0.0.1:{closed}/%2F",
            f"amqp://[::1]:{closed}/%2F",
            f"amqp://nowhere.invalid:{closed}/%2F",
            f"amqp://127.0.0.1:{silent}/%2F?stack_timeout=1",
            f"amqp://127.0.0.1:{reset}/%2F",
            f"amqps://127.0.0.1:{reset}/%2F",
            f"amqp://127.0.0.1:{web}/%2F",
            broker.url,
        ]
        url = ",".join(urls)
        processes = {s: start(s, *some, url=url) for s, some in ALL.items()}
        wait_until_connected(processes)
    line = documented("Retrying.")
    for process in processes.values():
        assert len(process.errors) == process.count(line) == len(urls) - 1, process
        assert all(line.startswith(" [!] RabbitMQ at ") for line in process.errors)


SLEEP = """
import runpy, sys, time
sleep = time.sleep
time.sleep = lambda seconds: (print("sleep", seconds), sleep(seconds))
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_script_retries_every_second_until_it_is_stopped(start, tmp_path):
    (tmp_path / "sleep.py").write_text(SLEEP)
    with closed_port() as port:
        url = f"amqp://127.0.0.1:{port}/%2F"
    processes = {
        script: start(str(tmp_path / "sleep.py"), str(ROOT / script), *some, url=url)
        for script, some in ALL.items()
    }
    for script, process in processes.items():
        process.wait_for("Retrying.", times=3)
        status = process.stop(signal.SIGINT)
        assert status == (0 if script == CONSUMER else 130), process
        assert set(process.output[:2]) == {"sleep 1"}, process
        # The signal can come before the last "sleep".
        unslept = process.count("Retrying.") - process.count("sleep")
        assert unslept in (0, 1), process
        unconfirmed = process.count(documented("Not confirmed: …").rstrip("…"))
        assert unconfirmed == (script != CONSUMER), process
        if script == PRODUCER:
            line = " [!] Not confirmed: 'First task.' and 3 more"
            assert process.errors[-1] == line


def limit_user(broker, limit):
    broker.ctl("set_user_limits", "guest", f'{{"max-connections": {limit}}}')


def limit_vhost(broker, limit):
    broker.ctl("set_vhost_limits", f'{{"max-connections": {limit}}}')


def limit_node(broker, limit):
    limit = "infinity" if limit < 0 else limit
    broker.ctl("eval", f"application:set_env(rabbit, connection_max, {limit}).")


def test_reached_connection_limit_is_retried(start, broker):
    limits = {limit_user: ALL, limit_vhost: {PRODUCER: []}}
    if broker.version >= (4, 0):  # a node has no limit before
        limits[limit_node] = {PRODUCER: []}
    for set_limit, scripts in limits.items():
        set_limit(broker, 0)
        try:
            processes = {s: start(s, *some) for s, some in scripts.items()}
            for process in processes.values():
                process.wait_for("connection limit (0) is reached", times=2)
                assert process.count("Retrying.") >= 1, process
        finally:
            set_limit(broker, -1)
        wait_until_connected(processes)


def test_task_of_a_lost_connection_ends_before_the_worker_does_anything_else(
    start, broker, tmp_path
):
    # A task takes until we create the file "end". Some workers' tasks then fail.
    sleep = 'time.sleep(task.count("."))'
    wait = 'while not os.path.exists("end"): time.sleep(0.02)'
    script = edited(tmp_path, CONSUMER, {sleep: wait})
    bug = f"{wait}\n1 / 0"
    (tmp_path / "bug").mkdir()
    failing = start(edited(tmp_path / "bug", CONSUMER, {sleep: bug}), cwd=tmp_path)
    stopped, worker = (start(script, cwd=tmp_path) for _ in range(2))
    workers = [failing, stopped, worker]
    for each in workers:
        each.wait_until_ready()
    assert start(PRODUCER, "a", "b", "c").wait() == 0
    for each in workers:
        each.wait_for("Received")
    broker.ctl("close_all_connections", "a test")
    for each in workers:
        each.wait_for(" [!] Disconnected. Finishing ")
        assert not each.count("Done", "Retrying."), each
    stopped.process.send_signal(signal.SIGTERM)
    (tmp_path / "end").touch()

    assert failing.wait() == 1
    assert failing.count("ZeroDivisionError") == 1
    assert failing.errors[-1].startswith(" [!] Failed ")
    # It can't acknowledge its task, so its status isn't 0.
    assert stopped.wait() == 1
    assert done(stopped) == received(stopped)
    assert "CONNECTION_FORCED - a test" in stopped.errors[-1]
    assert not stopped.count("Retrying.")
    worker.wait_for("Done", times=4)
    assert worker.output[1].replace("Received", "Done") == worker.output[2]
    assert worker.output[3] == worker.output[0]  # it reconnects, and waits for messages
    assert sorted(set(done(worker))) == ["'a'", "'b'", "'c'"]
    assert worker.stop() == 0
    _, retrying = worker.errors
    assert "CONNECTION_FORCED - a test" in retrying
    assert retrying.endswith("Retrying.")


def test_producer_continues_where_it_stopped_unless_it_forgets_a_task_early(
    start, broker, tmp_path
):
    pop, publish = "tasks.pop(0)", "channel.basic_publish("
    early = {pop: "", publish: f"{pop}\n{publish}"}
    tasks = [str(i) for i in range(10_000)]
    forgetful = start(edited(tmp_path, PRODUCER, early), *tasks)
    producer = start(PRODUCER, *tasks)
    for process in (forgetful, producer):
        process.wait_for("Sent")
    broker.ctl("close_all_connections", "a test")
    for process, lost in (forgetful, 1), (producer, 0):
        process.wait_for("Retrying.")
        process.wait_for("Sent", times=len(process.output) + 10)
        last = int(process.output[-1].split("'")[1])
        sent = [f" [x] Sent '{i}'" for i in range(last + 1)]
        missing = set(sent) - set(process.output)
        assert len(missing) == lost, missing


def test_refusal_of_a_task_is_not_retried(start, broker, user, channel):
    channel.queue_declare("jobs", durable=True, arguments=QUORUM)
    forbidden = start(PRODUCER, "a", url=user("^jobs$"))
    assert forbidden.wait() == 1
    assert forbidden.errors[0] == " [!] Not confirmed: 'a' and 0 more"
    assert "ACCESS_REFUSED - " in forbidden.errors[1]

    # A quorum queue refuses messages when it's over its limit, so two or more fit.
    policy = '{"max-length": 1, "overflow": "reject-publish"}'
    broker.ctl("set_policy", "full", "^jobs$", policy, "--apply-to", "queues")
    try:
        producer = start(PRODUCER, *(f"task {i}" for i in range(20)))
        assert producer.wait() == 1
    finally:
        broker.ctl("clear_policy", "full")
    sent = len(producer.output)
    left = f"'task {sent}' and {20 - sent - 1} more"
    assert producer.errors[0] == f" [!] Not confirmed: {left}"
    assert documented("The broker refused the message") in producer.errors[1]
    assert len(producer.errors) == 2
    wait_for_message_count(sent, channel, "jobs")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_producer_prints_what_is_not_confirmed(start, signum):
    many = [f"task {i}" for i in range(10_000)]
    producer = start(PRODUCER, *many).wait_for("Sent")
    assert producer.stop(signum) == 128 + signum, producer
    (line,) = producer.errors
    pattern = r" \[!\] Not confirmed: 'task (\d+)' and (\d+) more"
    first, more = map(int, re.fullmatch(pattern, line).groups())
    assert first + 1 + more == len(many)
    # The signal can come between a confirm and its line.
    assert first - len(producer.output) in (0, 1)


@pytest.mark.faults
def test_no_task_is_lost_when_workers_are_killed(start, report):
    tasks = [f"task {i}" + "." * (i % 10 == 0) for i in range(200)]
    pool = WorkerPool(start, CONSUMER, 3)
    assert start(PRODUCER, *tasks).wait() == 0
    pool.kill_some(20, tasks)
    pool.wait_for_done(tasks)
    report(f"200 tasks, 20 SIGKILLs of workers: 0 lost, {pool.figures()}")


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_no_confirmed_task_is_lost_when_the_broker_is_killed(start, broker, report):
    tasks = [f"task {i}" for i in range(3000)]
    pool = WorkerPool(start, CONSUMER, 2)
    producer = start(PRODUCER, *tasks)
    for moment in sorted(random.sample(range(500, 2800), 3)):
        pool.wait_for_sent(moment, producer)
        broker.kill()
        broker.start()
    assert producer.wait(60) == 0, producer
    assert producer.output == [f" [x] Sent {task!r}" for task in tasks]
    pool.wait_for_done(tasks)
    assert pool.stop() == [0, 0]
    report(f"3000 tasks, 3 SIGKILLs of the broker: 0 lost, {pool.figures()}")


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_cluster_loses_no_task_and_continues_without_its_leader(report):
    if not uses_docker():
        pytest.skip("A cluster needs Docker.")
    with temporary_cluster() as nodes, starting(nodes[0]) as start:
        tasks = [f"task {i}" for i in range(8000)]
        url = ",".join(node.url for node in nodes)
        pool = WorkerPool(start, CONSUMER, 2, url=url)
        producer = start(PRODUCER, *tasks, url=url)
        pool.wait_for_sent(500, producer)

        def wait_for_more() -> None:
            sent, done = len(producer.output), len(pool.done)
            wait_until(
                lambda: min(len(producer.output) - sent, len(pool.done) - done) > 100,
                f"100 more tasks: {producer} {pool}",
            )

        leader = leader_of("jobs", nodes)
        leader.kill()
        wait_for_more()
        leader.start()
        leader_of("jobs", [node for node in nodes if node != leader]).restart()
        wait_for_more()
        assert producer.wait(90) == 0, producer
        pool.wait_for_done(tasks)
        assert pool.stop() == [0, 0]
    report(
        "8000 tasks, the leader killed, then another one restarted: 0 lost, "
        f"{pool.figures()}"
    )


def leader_of(queue: str, nodes: list[DockerBroker]) -> DockerBroker:
    """Return the node that leads a quorum queue."""
    lines = nodes[0].ctl("list_queues", "--silent", "name", "leader").splitlines()
    leader = dict(line.split("\t") for line in lines)[queue]
    return next(node for node in nodes if leader == f"rabbit@{node.service}")


@pytest.mark.faults
def test_scripts_reconnect_when_the_broker_falls_silent(start, broker):
    # Pika gives up when nothing has come for two heartbeat timeouts + 5 s.
    url = f"{broker.url}?heartbeat=2&stack_timeout=1"
    worker = start(CONSUMER, url=url).wait_until_ready()
    start(PRODUCER, "long....", "next").wait()
    worker.wait_for("Received 'long")
    tasks = [f"task {i}" for i in range(3000)]
    producer = start(PRODUCER, *tasks, url=url).wait_for("[x] Sent")
    with broker.frozen():
        worker.wait_for("Retrying.")
        producer.wait_for("Retrying.")
        # A frozen broker accepts connections, but doesn't answer.
        worker.wait_for("AMQPConnectorStackTimeout", times=2)
        producer.wait_for("AMQPConnectorStackTimeout", times=2)
    assert producer.wait(60) == 0, producer
    worker.wait_for("Done 'task 2999'", timeout=60)
    assert worker.stop() == 0


@pytest.mark.faults
def test_idle_worker_that_retries_exits_after_one_ctrl_c_and_another_reconnects(
    start, broker
):
    workers = [start(CONSUMER).wait_until_ready() for _ in range(2)]
    time.sleep(SETTLED)  # a queue that's too young might not survive the kill
    assert start(PRODUCER, "a...", "b...").wait() == 0
    for worker in workers:
        worker.wait_for("Received")
    broker.kill()
    try:
        for worker in workers:
            worker.wait_for("Retrying.", times=2)
        assert workers[0].stop(signal.SIGINT) == 0
        retrying = [line.endswith(". Retrying.") for line in workers[0].errors]
        assert retrying == [False, *[True] * (len(retrying) - 1)]
    finally:
        broker.start()
    workers[1].wait_for("Waiting for messages", times=2)
    assert start(PRODUCER, "after").wait() == 0
    workers[1].wait_for("Done 'after'")
    assert {"'a...'", "'b...'"} < set(done(workers[1]))


@pytest.fixture
def low_memory(broker):
    """A function that ends the broker's memory alarm."""
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    yield lambda: broker.ctl("set_vm_memory_high_watermark", "0.4")
    broker.ctl("set_vm_memory_high_watermark", "0.4")


@pytest.mark.faults
def test_producer_waits_while_the_broker_is_low_on_memory(start, broker, low_memory):
    producer = start(PRODUCER, "a", "b", "c")
    limited = f"{broker.url}?blocked_connection_timeout=1"
    impatient = start(PRODUCER, "d", url=limited)
    impatient.wait_for("ConnectionBlockedTimeout")
    assert producer.running
    low_memory()
    assert producer.wait() == impatient.wait() == 0
    assert producer.output == [f" [x] Sent '{task}'" for task in "abc"]
    assert impatient.output == [" [x] Sent 'd'"]
    worker = start(CONSUMER)
    for task in "abcd":
        worker.wait_for(f"Done '{task}'")


@pytest.mark.faults
def test_ctrl_c_during_a_backlog_exits_cleanly(start, channel):
    """Ten workers share 5,000 tasks, and stop after so many lines of output."""
    channel.queue_declare("jobs", durable=True, arguments=QUORUM)
    for _ in range(5000):
        channel.basic_publish("", "jobs", b"task")
    workers = [start_and_interrupt(start, random.randint(1, 200)) for _ in range(10)]
    for worker in workers:
        assert worker.wait() == 0, worker
        assert worker.errors == []
        assert received(worker) == done(worker)


def start_and_interrupt(start, moment: int) -> ScriptProcess:
    """Start a worker, and press Ctrl+C after so many lines of output."""
    lines = itertools.count()

    def on_line(line: str) -> None:
        if next(lines) == moment:
            worker.process.send_signal(signal.SIGINT)

    worker = start(CONSUMER, on_line=on_line)
    return worker
