"""Scripts and brokers are killed, interrupted and cut off. No task may get lost.

The moments are random, and counted in messages.
"""

from __future__ import annotations

import itertools
import random
import signal
import time

import pika
import pytest
from broker import Broker, temporary_cluster, uses_docker
from conftest import starting
from script import ScriptProcess
from test_behavior import CONSUMERS, arguments

pytestmark = pytest.mark.faults
QUORUM = {"x-queue-type": "quorum"}

# In seconds. A queue declared a shorter time before a SIGKILL of the broker can lose
# confirmed messages.
SETTLED = 3


class WorkerPool:
    """Workers, and the tasks that all of them together have received and done."""

    def __init__(self, start, size: int, **options: str) -> None:
        self._start, self._options = start, options
        self.received: list[str] = []
        self.done: list[str] = []
        self._times: list[float] = []
        self.workers = [self.start() for _ in range(size)]
        for worker in self.workers:
            worker.wait_until_ready()
        self.settled = time.monotonic() + SETTLED

    def _on_line(self, line: str) -> None:
        if " [x] Received " in line:
            self.received.append(line.split("Received ")[1])
        if " [x] Done " in line:
            self.done.append(line.split("Done ")[1])
            self._times.append(time.monotonic())

    def start(self) -> ScriptProcess:
        script = "work_queue/consumer.py"
        return self._start(script, on_line=self._on_line, **self._options)

    def kill(self) -> None:
        """Kill a worker, and start another in its place."""
        i = random.randrange(len(self.workers))
        self.workers[i].kill()
        self.workers[i] = self.start()

    def wait_for_sent(self, count: int, producer: ScriptProcess) -> None:
        """Wait for tasks to be confirmed, and until we can kill the broker."""
        ScriptProcess.wait_until(
            lambda: len(producer.output) >= count and time.monotonic() > self.settled,
            producer,
            90,
        )

    def wait_for_done(self, tasks: list[str]) -> None:
        wanted = {repr(task) for task in tasks}
        ScriptProcess.wait_until(lambda: wanted <= set(self.done), self, 60)

    def __str__(self) -> str:
        return "\n".join(map(str, self.workers))

    def figures(self) -> str:
        pause = max(b - a for a, b in itertools.pairwise(self._times))
        again = len(self.received) - len(set(self.received))
        twice = len(self.done) - len(set(self.done))
        return f"{again} redelivered, {twice} done twice, longest pause {pause:.1f} s"


def test_no_task_is_lost_when_workers_are_killed(start, report):
    tasks = [f"task {i}" + "." * (i % 10 == 0) for i in range(200)]
    pool = WorkerPool(start, 3)
    assert start("work_queue/producer.py", *tasks).wait() == 0
    for moment in sorted(random.sample(range(5, 190), 20)):
        ScriptProcess.wait_until(lambda n=moment: len(pool.received) >= n, pool)
        pool.kill()
    pool.wait_for_done(tasks)
    report(f"200 tasks, 20 SIGKILLs of workers: 0 lost, {pool.figures()}")


@pytest.mark.timeout(240)
def test_no_confirmed_task_is_lost_when_the_broker_is_killed(start, broker, report):
    tasks = [f"task {i}" for i in range(3000)]
    pool = WorkerPool(start, 2)
    producer = start("work_queue/producer.py", *tasks)
    for moment in sorted(random.sample(range(500, 2800), 3)):
        pool.wait_for_sent(moment, producer)
        broker.kill()
        broker.start()
    assert producer.wait(60) == 0, producer
    assert producer.output == [f" [x] Sent {task!r}" for task in tasks]
    pool.wait_for_done(tasks)
    assert [worker.stop() for worker in pool.workers] == [0, 0]
    report(f"3000 tasks, 3 SIGKILLs of the broker: 0 lost, {pool.figures()}")


@pytest.mark.timeout(240)
def test_cluster_loses_no_task_and_continues_without_its_leader(report):
    if not uses_docker():
        pytest.skip("A cluster needs Docker.")
    with temporary_cluster() as nodes, starting(nodes[0]) as start:
        tasks = [f"task {i}" for i in range(8000)]
        url = ",".join(node.url for node in nodes)
        pool = WorkerPool(start, 2, url=url)
        producer = start("work_queue/producer.py", *tasks, url=url)
        pool.wait_for_sent(500, producer)

        def wait_for_more() -> float:
            """Return how long it takes until 100 more tasks are sent and done."""
            began, sent, done = time.monotonic(), len(producer.output), len(pool.done)
            ScriptProcess.wait_until(
                lambda: min(len(producer.output) - sent, len(pool.done) - done) > 100,
                f"100 more tasks: {producer} {pool}",
                20,
            )
            return time.monotonic() - began

        leader = leader_of("task_queue", nodes)
        leader.kill()
        pauses = [wait_for_more()]
        leader.start()
        leader_of("task_queue", [node for node in nodes if node != leader]).restart()
        pauses.append(wait_for_more())
        assert producer.wait(90) == 0, producer
        pool.wait_for_done(tasks)
        assert [worker.stop() for worker in pool.workers] == [0, 0]
    report(
        "8000 tasks, the leader killed, then another one restarted: 0 lost, "
        f"{pool.figures()}; continued after {pauses[0]:.1f} s and {pauses[1]:.1f} s"
    )


def leader_of(queue: str, nodes: list[Broker]) -> Broker:
    """Return the node that leads a quorum queue."""
    lines = nodes[0].ctl("list_queues", "--silent", "name", "leader").splitlines()
    leader = dict(line.split("\t") for line in lines)[queue]
    return next(node for node in nodes if leader == f"rabbit@{node.service}")


def test_scripts_reconnect_when_the_broker_falls_silent(start, broker, report):
    # Pika gives up when nothing has come for two heartbeat timeouts + 5 s.
    url = f"{broker.url}?heartbeat=2&stack_timeout=1"
    worker = start("work_queue/consumer.py", url=url).wait_until_ready()
    start("work_queue/producer.py", "long....", "next").wait()
    worker.wait_for("Received 'long")
    tasks = [f"task {i}" for i in range(3000)]
    producer = start("work_queue/producer.py", *tasks, url=url).wait_for("[x] Sent")
    began = time.monotonic()
    broker.freeze()
    try:
        worker.wait_for("Retrying.")
        producer.wait_for("Retrying.")
        noticed = time.monotonic() - began
        # A frozen broker accepts connections, but doesn't answer.
        worker.wait_for("AMQPConnectorStackTimeout", times=2)
        producer.wait_for("AMQPConnectorStackTimeout", times=2)
    finally:
        broker.thaw()
    assert producer.wait(60) == 0, producer
    worker.wait_for("Done 'task 2999'", timeout=60)
    assert worker.stop() == 0
    report(f"a frozen broker, heartbeat 2 s: both noticed after {noticed:.0f} s")


@pytest.fixture
def low_memory(broker):
    """A function that ends the broker's memory alarm."""
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    yield lambda: broker.ctl("set_vm_memory_high_watermark", "0.4")
    broker.ctl("set_vm_memory_high_watermark", "0.4")


def test_producer_waits_while_the_broker_is_low_on_memory(start, broker, low_memory):
    producer = start("work_queue/producer.py", "a", "b", "c")
    limited = f"{broker.url}?blocked_connection_timeout=1"
    impatient = start("work_queue/producer.py", "d", url=limited)
    impatient.wait_for("ConnectionBlockedTimeout")
    assert producer.running
    low_memory()
    assert producer.wait() == impatient.wait() == 0
    assert producer.output == [f" [x] Sent '{task}'" for task in "abc"]
    assert impatient.output == [" [x] Sent 'd'"]
    worker = start("work_queue/consumer.py")
    for task in "abcd":
        worker.wait_for(f"Done '{task}'")


@pytest.mark.usefixtures("low_memory")
def test_rpc_client_times_out_when_the_broker_is_low_on_memory(start):
    start("rpc/consumer.py").wait_until_ready()
    client = start("rpc/producer.py", "5", "--timeout", "2")
    assert client.wait(10) == 1
    assert client.errors == [" [!] No answer in 2 s: fib(5)"]


def test_task_that_outlasts_consumer_timeout_is_redelivered(start, broker):
    """The worker prints the broker's reason, or since 4.3 that it was cancelled."""
    # Before 4.3, the broker looks for such tasks only once per channel_tick_interval.
    setting = "application:set_env(rabbit, {}, {})."
    broker.ctl("eval", setting.format("channel_tick_interval", 500))
    broker.ctl("eval", setting.format("consumer_timeout", 1000))
    try:
        worker = start("work_queue/consumer.py").wait_until_ready()
        start("work_queue/producer.py", "long...").wait()
        assert worker.wait() == 1
    finally:
        broker.ctl("eval", setting.format("channel_tick_interval", 60_000))
        broker.ctl("eval", setting.format("consumer_timeout", 1_800_000))
    (line,) = worker.errors
    if broker.before(4, 3):
        assert "PRECONDITION_FAILED - delivery acknowledgement on channel" in line
    else:
        assert line.startswith(" [!] The broker cancelled our consumer.")
        assert "consumer_timeout" in line
    start("work_queue/consumer.py").wait_for("Received 'long...'")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("script", "queue", "last_moment"),
    [
        ("simple/consumer.py", "hello", 2400),
        ("work_queue/consumer.py", "task_queue", 200),
    ],
)
def test_ctrl_c_during_a_backlog_exits_cleanly(
    start, channel, script, queue, last_moment
):
    """Ten consumers share a backlog of 25,000 messages."""
    channel.queue_declare(queue, durable=True, arguments=QUORUM)
    moments = [random.randint(1, last_moment) for _ in range(10)]
    consumers = [start_and_interrupt(start, script, n) for n in moments]
    for consumer in consumers:
        consumer.wait_until_ready().process.send_signal(signal.SIGSTOP)
    for _ in range(25_000):
        channel.basic_publish("", queue, b"message")
    for consumer in consumers:
        consumer.process.send_signal(signal.SIGCONT)
    for consumer in consumers:
        assert consumer.wait() == 0, consumer
        assert consumer.errors == []


def start_and_interrupt(start, script: str, moment: int) -> ScriptProcess:
    """Start a consumer, and press Ctrl+C after so many lines of output."""
    lines = itertools.count()

    def on_line(line: str) -> None:
        if next(lines) == moment:
            consumer.process.send_signal(signal.SIGINT)

    consumer = start(script, on_line=on_line)
    return consumer


def test_broker_restart_is_one_line_except_for_the_worker_which_reconnects(
    start, broker, tmp_path
):
    consumers = {
        script: start(script, *arguments(script), cwd=tmp_path) for script in CONSUMERS
    }
    for consumer in consumers.values():
        consumer.wait_until_ready()
    worker = consumers.pop("work_queue/consumer.py")
    rpc_server = consumers["rpc/consumer.py"].process
    rpc_server.send_signal(signal.SIGSTOP)
    client = start("rpc/producer.py", "--timeout", "60").wait_for("Requesting")
    broker.restart()
    rpc_server.send_signal(signal.SIGCONT)
    for process in [client, *consumers.values()]:
        assert process.wait() == 1, process
        (line,) = process.errors
        # A script that sends something then can get a reset before it reads the reason.
        assert "CONNECTION_FORCED - broker forced" in line or "StreamLost" in line
    worker.wait_for("Waiting for messages", times=2)
    assert all(line.endswith(". Retrying.") for line in worker.errors), worker
    assert start("work_queue/producer.py", "after").wait() == 0
    worker.wait_for("Done 'after'")


@pytest.mark.usefixtures("start")  # deletes the queue
def test_disconnecting_loses_no_confirmed_message(broker, channel, report):
    """RabbitMQ 3.10 sometimes drops unconfirmed ones. We only count them."""
    channel.queue_declare("hello", durable=True, arguments=QUORUM)
    sent: dict[bool, set[bytes]] = {False: set(), True: set()}
    for i in range(400):
        confirms = i % 2 == 0
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            producer = connection.channel()
            if confirms:
                producer.confirm_delivery()
            for body in [b"%d.1" % i, b"%d.2" % i, b"%d.3" % i]:
                producer.basic_publish("", "hello", body)
                sent[confirms].add(body)
    received = set()
    channel.confirm_delivery()
    channel.basic_publish("", "hello", b"last")  # the queue is in order
    for _, _, body in channel.consume("hello", auto_ack=True):
        received.add(body)
        if body == b"last":
            break
    assert sent[True] <= received
    report(f"{len(sent[False] - received)} of 600 lost without confirms, 0 with them")
