"""advanced/reconnect/: what its comments and its page claim.

What its worker shares with long_tasks is in test_long_tasks.py. What the producer of
confirms shares with these scripts is here.
"""

import random
import signal
import time
from contextlib import ExitStack

import pytest

from tests.helpers import (
    SETTLED,
    documented,
    done,
    edited,
    received,
    starting,
    wait_for_message_count,
)
from tests.servers import answering_server, silent_server
from tests.workers import WorkerPool
from tools.broker import temporary_cluster, uses_docker
from tools.broker.base import free_port

CONSUMER = "advanced/reconnect/consumer.py"
PRODUCER = "advanced/reconnect/producer.py"
CONFIRMS = "advanced/confirms/producer.py"
# Every script that reconnects, with arguments for a short run.
ALL = {CONSUMER: [], PRODUCER: ["a"], CONFIRMS: ["10"]}
CONNECTED = "[*] Waiting", "[x] Sent 'a'", "[x] Confirmed 10 in"


def test_each_node_is_tried_in_turn_a_second_after_the_one_before(
    start, broker, tmp_path
):
    # Python imports this first. It prints the seconds instead of waiting for them.
    no_sleep = "import time\ntime.sleep = lambda s: print(f'sleep {s}', flush=True)"
    (tmp_path / "sitecustomize.py").write_text(no_sleep)
    with ExitStack() as stack:
        servers = silent_server(), answering_server(b"")
        silent, reset = map(stack.enter_context, servers)
        closed = free_port()
        urls = [
            f"amqp://[::1]:{closed}/%2F",
            f"amqp://nowhere.invalid:{closed}/%2F",
            f"amqp://127.0.0.1:{silent}/%2F?stack_timeout=1",
            f"amqp://127.0.0.1:{reset}/%2F",
            f"amqps://127.0.0.1:{reset}/%2F",
            broker.url,
        ]
        environment = {"url": ",".join(urls), "PYTHONPATH": str(tmp_path)}
        processes = [start(s, *some, **environment) for s, some in ALL.items()]
        for process in processes:
            process.wait_for(*CONNECTED)
    last_word = documented("Retrying.")
    for process in processes:
        process.wait_for(last_word, times=len(urls) - 1)
        assert len(process.errors) == process.output.count("sleep 1") == len(urls) - 1
        for line in process.errors:
            assert line.startswith(" [!] RabbitMQ at "), process
            assert line.endswith(last_word), process


def test_reached_connection_limit_is_retried(start, broker):
    limit = "vhost-limits/%2F/max-connections"
    broker.put(limit, value=0)
    try:
        processes = [start(script, *some) for script, some in ALL.items()]
        for process in processes:
            process.wait_for("connection limit (0) is reached", times=2)
            assert process.count("Retrying.") >= 1, process
    finally:
        broker.delete(limit)
    for process in processes:
        process.wait_for(*CONNECTED)


def test_task_of_a_lost_connection_ends_before_the_worker_does_anything_else(
    start, broker, tmp_path
):
    # A task takes until we create the file "end".
    wait = 'while not os.path.exists("end"): time.sleep(0.02)'
    sleep = 'time.sleep(task.count("."))'
    script = edited(tmp_path, CONSUMER, {sleep: wait})
    (tmp_path / "failing").mkdir()
    fails = {sleep: f"{wait}\nraise ValueError('a bug')"}
    failing_script = edited(tmp_path / "failing", CONSUMER, fails)
    then_retries = ",".join([broker.url, *[f"amqp://127.0.0.1:{free_port()}"] * 99])
    urls = broker.url, broker.url, then_retries
    workers = [start(script, cwd=tmp_path, url=url) for url in urls]
    workers.append(start(failing_script, cwd=tmp_path))
    for each in workers:
        each.wait_until_ready()
    assert start(PRODUCER, "a", "b", "c", "d").wait() == 0
    for each in workers:
        each.wait_for("Received")
    broker.ctl("close_all_connections", "a test")
    for each in workers:
        each.wait_for(" [!] Disconnected. Finishing ")
        assert not each.count("Done", "Retrying."), each
    worker, stopped, retrying, failing = workers
    stopped.process.send_signal(signal.SIGTERM)
    (tmp_path / "end").touch()

    # It can't acknowledge its task, so its status isn't 0.
    assert stopped.wait() == failing.wait() == 1
    assert failing.errors[-1] == f" [!] Failed {received(failing)[0]}"
    assert done(failing) == []
    assert done(stopped) == received(stopped)
    assert "CONNECTION_FORCED - a test" in stopped.errors[-1]
    assert not stopped.count("Retrying.")
    # It has no task any more, so one Ctrl+C is enough.
    assert retrying.wait_for("Retrying.", times=2).stop(signal.SIGINT) == 0
    assert retrying.count("Waiting for messages") == 1
    worker.wait_for("Done", times=5)
    assert worker.output[1].replace("Received", "Done") == worker.output[2]
    assert worker.output[3] == worker.output[0]  # it reconnects, and waits for messages
    assert sorted(set(done(worker))) == ["'a'", "'b'", "'c'", "'d'"]
    # It has set its prefetch again, too.
    columns = "queue_name", "prefetch_count"
    assert "jobs\t0" not in broker.ctl("list_consumers", "--silent", *columns)
    assert worker.stop() == 0
    assert len(worker.errors) == worker.count("Disconnected.", "Retrying.") == 2


def test_producer_continues_where_it_stopped_unless_it_forgets_a_task_early(
    start, broker, tmp_path
):
    pop, publish = "tasks.pop(0)", "channel.basic_publish("
    early = edited(tmp_path, PRODUCER, {pop: "", publish: f"{pop}\n{publish}"})
    tasks = [str(i) for i in range(10_000)]
    producers = [start(script, *tasks).wait_for("Sent") for script in (early, PRODUCER)]
    broker.ctl("close_all_connections", "a test")
    for producer, lost in zip(producers, (1, 0), strict=True):
        producer.wait_for("Retrying.")
        producer.wait_for("Sent", times=len(producer.output) + 10)
        assert producer.stop() == 128 + signal.SIGTERM
        sent = [int(line.split("'")[1]) for line in producer.output]
        assert len({*sent}) == sent[-1] + 1 - lost


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_stopped_producer_prints_what_is_not_confirmed(start, signum):
    left = {PRODUCER: "'First task.' and 3 more", CONFIRMS: "message 1 and 99999 more"}
    url = f"amqp://127.0.0.1:{free_port()}"
    producers = [start(script, url=url).wait_for("Retrying.") for script in left]
    for producer, rest in zip(producers, left.values(), strict=True):
        assert producer.stop(signum) == 128 + signum
        assert producer.errors[-1] == f" [!] Not confirmed: {rest}"


def test_refusal_of_a_task_is_not_retried(start, broker, channel):
    # A quorum queue refuses messages when it's over its limit, so two or more fit.
    limit = {"max-length": 1, "overflow": "reject-publish"}
    broker.put("policies/%2F/full", pattern="^jobs$", definition=limit)
    try:
        producer = start(PRODUCER, *(f"task {i}" for i in range(20)))
        assert producer.wait() == 1
    finally:
        broker.delete("policies/%2F/full")
    sent = len(producer.output)
    left, refused = producer.errors
    assert left == f" [!] Not confirmed: 'task {sent}' and {20 - sent - 1} more"
    assert documented("The broker refused the message") in refused
    wait_for_message_count(sent, channel, "jobs")


@pytest.mark.faults
def test_no_task_is_lost_when_workers_are_killed(start, report):
    tasks = [f"task {i}" + "." * (i % 10 == 0) for i in range(100)]
    pool = WorkerPool(start, CONSUMER, 3)
    assert start(PRODUCER, *tasks).wait() == 0
    pool.kill_some(10, tasks)
    pool.wait_for_done(tasks)
    report(f"100 tasks, 10 SIGKILLs of workers: 0 lost, {pool.figures()}")


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_no_confirmed_task_is_lost_when_the_broker_is_killed(start, broker, report):
    tasks = [f"task {i}" for i in range(2000)]
    pool = WorkerPool(start, CONSUMER, 2)
    time.sleep(SETTLED)
    producer = start(PRODUCER, *tasks)
    for moment in (random.randint(100, 500), random.randint(600, 1000)):
        producer.wait_for("Sent", times=moment, timeout=60)
        broker.kill()
        broker.start()
    assert producer.wait(60) == 0, producer
    assert producer.count("Retrying.") >= 2, producer  # neither kill came too late
    assert producer.output == [f" [x] Sent {task!r}" for task in tasks]
    pool.wait_for_done(tasks)
    assert pool.stop() == [0, 0]
    report(f"2000 tasks, 2 SIGKILLs of the broker: 0 lost, {pool.figures()}")


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_cluster_loses_no_task_and_continues_without_its_leader(report):
    if not uses_docker():
        pytest.skip("A cluster needs Docker.")
    with temporary_cluster() as nodes, starting(nodes[0]) as start:
        url = ",".join(node.url for node in nodes)
        pool = WorkerPool(start, CONSUMER, 2, url=url)
        time.sleep(SETTLED)
        listed = nodes[0].ctl("list_queues", "--silent", "leader").strip()
        leader = next(node for node in nodes if listed == f"rabbit@{node.service}")
        tasks = [f"task {i}" for i in range(2000)]
        producer = start(PRODUCER, *tasks, url=url)
        producer.wait_for("Sent", times=100)
        leader.kill()
        assert producer.running, "the kill was late"
        assert producer.wait(60) == 0, producer
        pool.wait_for_done(tasks)
        assert pool.stop() == [0, 0]
        leader.start()
    report(f"2000 tasks, the leader killed: 0 lost, {pool.figures()}")


@pytest.mark.faults
def test_scripts_reconnect_when_the_broker_falls_silent(start, broker):
    # Pika gives up when nothing has come for two heartbeat timeouts + 5 s.
    url = f"{broker.url}?heartbeat=2&stack_timeout=1"
    worker = start(CONSUMER, url=url).wait_until_ready()
    tasks = [f"task {i}" for i in range(2000)]
    producer = start(PRODUCER, *tasks, url=url).wait_for("[x] Sent")
    with broker.frozen():
        for process in (worker, producer):
            process.wait_for("Retrying.")
            # A frozen broker accepts connections, but doesn't answer.
            process.wait_for("AMQPConnectorStackTimeout")
    assert producer.wait(60) == 0, producer
    worker.wait_for("Done 'task 1999'", timeout=60)
    assert worker.stop() == 0
