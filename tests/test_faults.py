"""What breaks, and what becomes of the messages: nothing that was confirmed is lost.

Each test ends with a line of figures in the summary. Moments are random; they are counted in
messages, not in seconds.
"""

from __future__ import annotations

import random
import signal
import time

import pika
import pytest
from broker import private_cluster, uses_docker, wait_until
from conftest import starting
from end import End

pytestmark = pytest.mark.faults

HEARTBEAT = 2  # seconds
# Pika looks whether anything came in every heartbeat timeout + 5 s, and gives up when nothing has
# since the last look: https://github.com/pika/pika/blob/main/pika/heartbeat.py
UNTIL_NOTICED = 2 * (HEARTBEAT + 5) + 5


# RabbitMQ 3.10 may not recover a quorum queue that was declared in the last half a second before a
# SIGKILL: its register of queues is written to disk that often. So no kill before so many tasks.
SETTLED = 1500


class Team:
    """Workers on one queue, what they have done, and when."""

    def __init__(self, start, url: str | None = None) -> None:
        self.start = start
        self.options = {"url": url} if url else {}
        self.workers: list[End] = []
        self.received: list[str] = []
        self.done: list[str] = []
        self.times: list[float] = []

    def hire(self) -> End:
        worker = self.start("work_queue/consumer.py", heard=self._heard, **self.options)
        self.workers.append(worker)
        return worker

    def _heard(self, line: str) -> None:
        if "[x] Received " in line:
            self.received.append(line.split("Received ")[1])
        if "[x] Done " in line:
            self.done.append(line.split("Done ")[1])
            self.times.append(time.monotonic())

    def fire(self, worker: End) -> None:
        """Kill a worker, and hire another one."""
        self.workers.remove(worker)
        worker.kill()
        self.hire()

    def wait_for_done(self, wanted: set[str], timeout: float = 60) -> None:
        End.wait_until(lambda: wanted <= set(self.done), self, timeout)

    def __str__(self) -> str:
        return f"{len(set(self.done))} tasks done\n" + "\n".join(map(str, self.workers))

    def figures(self) -> str:
        pause = max(b - a for a, b in zip(self.times, self.times[1:], strict=False))
        twice = len(self.done) - len(set(self.done))
        return (
            f"{len(set(self.done))} tasks done, {twice} of them twice, longest pause {pause:.1f} s"
        )


def test_every_task_is_done_although_its_workers_are_killed(start, report):
    tasks = [f"task {i}" + "." * (i % 10 == 0) for i in range(200)]
    wanted = {repr(task) for task in tasks}
    team = Team(start)
    for _ in range(3):
        team.hire().ready()
    assert start("work_queue/producer.py", *tasks).end() == 0
    for moment in sorted(random.sample(range(5, 190), 20)):
        End.wait_until(lambda n=moment: len(team.received) >= n, team)
        team.fire(random.choice(team.workers))
    team.wait_for_done(wanted)
    report(f"200 tasks, 3 workers, 20 SIGKILLs: 0 lost, {team.figures()}")


def test_every_task_called_sent_is_done_although_the_broker_is_killed(start, broker, report):
    tasks = [f"task {i}" for i in range(5000)]
    team = Team(start)
    for _ in range(2):
        team.hire().ready()
    producer = start("work_queue/producer.py", *tasks)
    for moment in sorted(random.sample(range(SETTLED, 4800), 5)):
        producer.wait_for("[x] Sent", times=moment)
        broker.kill()
        broker.start()
    assert producer.end(timeout=60) == 0, str(producer)
    sent = {line.split("Sent ")[1] for line in producer.lines}
    assert sent == {repr(task) for task in tasks}
    team.wait_for_done(sent)
    assert all(worker.stop() == 0 for worker in team.workers)
    report(f"5000 tasks, the broker killed 5 times: 0 lost, {team.figures()}")


def test_a_producer_whose_broker_stays_away_names_what_was_not_confirmed(start, broker):
    producer = start("work_queue/producer.py", *(f"task {i}" for i in range(5000)))
    producer.wait_for("[x] Sent", times=SETTLED)
    broker.kill()
    try:
        assert producer.end(timeout=60) == 1
    finally:
        broker.start()
    sent = len(producer.lines)
    assert producer.errors[-1].startswith(
        f" [!] Not confirmed, 'task {sent}' and {5000 - sent - 1} more: "
    )


def test_a_connection_that_falls_silent_is_noticed_in_mid_task(start, broker, report):
    url = f"{broker.url}?heartbeat={HEARTBEAT}&stack_timeout=1"
    worker = start("work_queue/consumer.py", url=url).ready()
    start("work_queue/producer.py", "long" + "." * 4, "next").end()
    worker.wait_for("Received 'long")
    waiting_producer = start("work_queue/producer.py", *(f"t{i}" for i in range(5000)), url=url)
    waiting_producer.wait_for("[x] Sent")
    began = time.monotonic()
    broker.freeze()
    try:
        worker.wait_for("Lost the broker", timeout=UNTIL_NOTICED)
        waiting_producer.wait_for("Lost the broker", timeout=UNTIL_NOTICED)
        noticed = time.monotonic() - began
        # They go on trying, although a frozen broker takes a connection, and says nothing on it.
        worker.wait_for("AMQPConnectorStackTimeout", times=2)
        waiting_producer.wait_for("AMQPConnectorStackTimeout", times=2)
    finally:
        broker.thaw()
    assert waiting_producer.end(timeout=60) == 0
    worker.wait_for("Done 't4999'", timeout=60)
    assert worker.stop() == 0
    report(f"a frozen broker, heartbeat {HEARTBEAT} s: noticed by both ends after {noticed:.0f} s")


def test_a_request_whose_only_server_is_killed_ends_with_one_line(start):
    server = start("rpc/consumer.py").ready()
    server.process.send_signal(signal.SIGSTOP)
    client = start("rpc/producer.py", "5", "--timeout", "2").wait_for("Requesting")
    server.kill()
    assert client.end() == 1
    assert client.errors == [" [!] fib(5) had no answer in 2 s"]


def test_a_client_whose_broker_falls_silent_says_so_in_time(start, broker):
    server = start("rpc/consumer.py").ready()
    server.process.send_signal(signal.SIGSTOP)
    url = f"{broker.url}?heartbeat={HEARTBEAT}"
    client = start("rpc/producer.py", "5", "--timeout", "2", url=url).wait_for("Requesting")
    broker.freeze()
    try:
        client.wait_for(" [!] fib(5) had no answer in 2 s", timeout=10)
        assert client.end(timeout=UNTIL_NOTICED) == 1  # there is nobody to close the connection
    finally:
        broker.thaw()


def test_a_client_does_not_wait_longer_for_a_broker_that_is_short_of_memory(start, broker):
    start("rpc/consumer.py").ready()
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        client = start("rpc/producer.py", "5", "--timeout", "2")
        assert client.end() == 1
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert "ConnectionBlockedTimeout" in client.errors[-1]


def test_a_broker_restarted_under_a_waiting_client_is_one_line(start, broker):
    server = start("rpc/consumer.py").ready()
    server.process.send_signal(signal.SIGSTOP)
    client = start("rpc/producer.py", "5", "--timeout", "60").wait_for("Requesting")
    broker.restart()
    assert client.end() == 1
    assert len(client.errors) == 1, str(client)
    assert "has RabbitMQ started there" in client.errors[0]


def test_a_producer_waits_while_the_broker_is_short_of_memory(start, broker, channel, report):
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        tasks = [f"task {i}" for i in range(100)]
        producer = start("work_queue/producer.py", *tasks)
        wait_until_blocked(broker)
        assert producer.process.poll() is None
        sent = len(producer.lines)
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert producer.end() == 0
    assert sent < 100
    assert [line.split("Sent ")[1] for line in producer.lines] == [repr(task) for task in tasks]
    got = [channel.basic_get("task_queue", auto_ack=True)[2].decode() for _ in tasks]
    assert got == tasks
    report(f"memory alarm after {sent} of 100 tasks: it waited, then sent the rest, 0 lost")


def test_a_producer_that_may_not_be_blocked_for_long_says_so_and_goes_on(start, broker):
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        url = f"{broker.url}?blocked_connection_timeout=1"
        producer = start("work_queue/producer.py", "a", "b", url=url)
        producer.wait_for("Lost the broker: ConnectionBlockedTimeout")
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert producer.end() == 0
    assert producer.lines == [" [x] Sent 'a'", " [x] Sent 'b'"]


def test_a_task_that_outlasts_consumer_timeout_is_said_and_comes_again(start, broker):
    limit = "application:set_env(rabbit, consumer_timeout, {}), "
    looks = "application:set_env(rabbit, channel_tick_interval, {})."  # up to 4.2, that often
    broker.ctl("eval", (limit + looks).format(1000, 500))
    try:
        worker = start("work_queue/consumer.py").ready()
        start("work_queue/producer.py", "long" + "." * 10).end()
        assert worker.end(timeout=60) == 1
    finally:
        broker.ctl("eval", (limit + looks).format(1_800_000, 60_000))
    assert worker.lines[-1].startswith(" [x] Done 'long")
    assert worker.errors == [
        " [!] The queue task_queue was deleted, or a task outlasted consumer_timeout"
    ]
    start("work_queue/consumer.py").wait_for("Received 'long")


def wait_until_blocked(broker) -> None:
    """Wait until the broker has blocked a connection that publishes."""
    wait_until(
        lambda: "blocked" in broker.ctl("list_connections", "--silent", "state").split(),
        "a blocked connection",
        30,
    )


@pytest.mark.usefixtures("start")
def test_closing_right_behind_the_last_message_loses_none_that_is_confirmed(
    broker, channel, report
):
    """Without confirms, RabbitMQ 3.10 now and then does lose the last ones; this counts them."""
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare("hello", durable=True, arguments=quorum)
    sent: dict[bool, list[bytes]] = {False: [], True: []}
    got: list[bytes] = []
    channel.basic_consume("hello", lambda *message: got.append(message[3]), auto_ack=True)
    until = time.monotonic() + 40
    while time.monotonic() < until:
        for confirms, bodies in sent.items():
            with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
                producer = connection.channel()
                if confirms:
                    producer.confirm_delivery()
                for i in range(3):
                    bodies.append(f"{confirms} {len(bodies)} {i}".encode())
                    producer.basic_publish("", "hello", bodies[-1])
            channel.connection.process_data_events(0)
    # The queue is in order, so what comes after this one will not come.
    channel.confirm_delivery()
    channel.basic_publish("", "hello", b"last")
    wait_until(lambda: channel.connection.process_data_events(0.1) or b"last" in got, "the last")
    lost = {confirms: len(set(bodies) - set(got)) for confirms, bodies in sent.items()}
    report(
        f"lost {lost[False]} of {len(sent[False])} without confirms, "
        f"{lost[True]} of {len(sent[True])} with"
    )
    assert lost[True] == 0


@pytest.mark.timeout(180)
def test_three_nodes_go_on_without_one(report):
    if not uses_docker():
        pytest.skip("three nodes need Docker")
    with private_cluster() as nodes:
        url = ",".join(node.url for node in nodes)
        with starting(nodes[0]) as start:
            play_three_nodes(start, nodes, url, report)


def play_three_nodes(start, nodes, url, report):
    tasks = [f"task {i}" for i in range(8000)]
    team = Team(start, url)
    for _ in range(2):
        team.hire().ready()
    server = start("rpc/consumer.py", url=url).ready()
    producer = start("work_queue/producer.py", *tasks, url=url).wait_for("[x] Sent", times=500)

    def goes_on(what: str) -> float:
        """Return how long it took until tasks were sent and done again. Not more than 20 s."""
        began, sent, done = time.monotonic(), len(producer.lines), len(team.done)
        End.wait_until(
            lambda: len(producer.lines) > sent + 100 and len(team.done) > done + 100,
            f"going on after {what}: {producer} {team}",
            20,
        )
        return time.monotonic() - began

    leader = leader_of("task_queue", nodes)
    leader.kill()
    pauses = [goes_on("the leader's death")]
    leader.start()
    other = leader_of("task_queue", [node for node in nodes if node is not leader])
    other.restart()
    pauses.append(goes_on("a restart"))
    assert producer.end(timeout=90) == 0, str(producer)
    sent = {line.split("Sent ")[1] for line in producer.lines}
    assert sent == {repr(task) for task in tasks}
    team.wait_for_done(sent)
    assert start("rpc/producer.py", "10", url=url).end() == 0, str(server)
    assert all(worker.stop() == 0 for worker in team.workers)
    report(
        f"8000 tasks, the leader killed, another node restarted: 0 lost, {team.figures()}; "
        f"went on after {pauses[0]:.1f} s and {pauses[1]:.1f} s"
    )


def leader_of(queue: str, nodes):
    """Return the node that leads a quorum queue."""
    for line in nodes[0].ctl("list_queues", "--silent", "name", "leader").splitlines():
        name, leader = line.split("\t")
        if name == queue:
            return next(node for node in nodes if leader == f"rabbit@{node.service}")
    raise AssertionError(f"no queue {queue}")
