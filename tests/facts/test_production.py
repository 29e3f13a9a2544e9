"""What docs/production.md and docs/troubleshooting.md say about the broker.

Users, ports and TLS are in test_security.py. The delivery limit is in
test_dead_letters.py, and priorities are in test_reference.py.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Callable, Iterator

import pika
import pytest

from tests.helpers import documented, message_count, wait_for_message_count
from tools.broker import Broker
from tools.broker.docker import DockerBroker
from tools.broker.native import NativeBroker
from tools.common import ToolError, run, wait_until

LOGIN = "Basic Z3Vlc3Q6Z3Vlc3Q="  # guest:guest

# Policies.


def send(broker: Broker, method: str, path: str, content: object = None) -> None:
    """Send a request to the management UI's HTTP API. rabbitmqctl takes seconds."""
    request = urllib.request.Request(
        f"http://localhost:{broker.ui_port}/api/{path}",
        json.dumps(content).encode(),
        {"Authorization": LOGIN, "Content-Type": "application/json"},
        method=method,
    )
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture
def set_policy(broker: Broker) -> Iterator[Callable[..., None]]:
    """set_policy("name", {"max-length": 1}) sets it until the test ends.

    It applies to new queues immediately, and to existing ones after a moment.
    """
    names = set()

    def set_policy(name: str, definition: dict[str, object]) -> None:
        names.add(name)
        policy = {"pattern": ".*", "definition": definition, "apply-to": "queues"}
        send(broker, "PUT", f"policies/%2F/{name}", policy)

    yield set_policy
    for name in names:
        send(broker, "DELETE", f"policies/%2F/{name}")


def test_queue_has_only_one_policy(broker, declare, set_policy):
    set_policy("limits", {"max-length": 100})
    set_policy("ttl", {"message-ttl": 60_000})
    queue = declare()
    wait_until(lambda: broker.get(f"queues/%2F/{queue}").get("policy"), "a policy")
    found = broker.get(f"queues/%2F/{queue}")
    keys = {"limits": "max-length", "ttl": "message-ttl"}
    assert list(found["effective_policy_definition"]) == [keys[found["policy"]]]


@pytest.mark.parametrize(("argument", "policy"), [(2, 100), (100, 2)])
def test_lower_limit_of_argument_and_policy_wins(
    channel, declare, set_policy, argument, policy
):
    # A classic queue's limit is exact. A quorum queue can hold a message more.
    set_policy("limits", {"max-length": policy})
    queue = declare({"x-queue-type": "classic", "x-max-length": argument})
    for _ in range(9):
        channel.basic_publish("", queue, b"x")
    wait_for_message_count(2, channel, queue)


# Alarms.


@contextlib.contextmanager
def disk_alarm(broker: Broker) -> Iterator[None]:
    try:
        broker.ctl("set_disk_free_limit", "1000GB")
        yield
    finally:
        broker.ctl("set_disk_free_limit", "50MB")


def check_alarms(broker: Broker) -> str:
    command = ("rabbitmq-diagnostics", "check_alarms")
    if isinstance(broker, DockerBroker):
        return broker.compose("exec", "-T", broker.service, *command)
    assert isinstance(broker, NativeBroker)
    return run(*command, env=broker.environment)


def test_node_raises_an_alarm_below_50_mb_of_free_disk(broker):
    def limit() -> int | None:
        (node,) = broker.get("nodes")
        return node.get("disk_free_limit")  # which isn't there immediately

    wait_until(limit, "statistics of the node")
    assert limit() == 50_000_000


def test_alarm_stops_producers_and_not_consumers(broker, start):
    script = "work_queue/producer.py"
    assert start("simple/producer.py", "waiting", "3").wait() == 0
    with disk_alarm(broker):
        silent = start(script, "task")
        url = f"{broker.url}?blocked_connection_timeout=1"
        limited = start(script, "task", url=url)
        start("simple/consumer.py").wait_for("Received", times=3)
        assert limited.wait() == 1
        (line,) = limited.errors
        assert documented("ConnectionBlockedTimeout") in line
        with pytest.raises(ToolError, match=r"[Aa]larm"):
            check_alarms(broker)
        assert silent.running
        assert silent.output == silent.errors == []
    assert silent.wait() == 0


# The consumer timeout.


def consume_until_cancelled(channel, queue, **options):
    messages = []
    channel.basic_consume(queue, lambda *message: messages.append(message), **options)
    yield  # the consumer has started
    # Close the channel before you delete the queue. Otherwise the broker cancels the
    # consumer a second time, and pika raises KeyError.
    while channel.consumer_tags:
        channel.connection.process_data_events(time_limit=30)
    assert len(messages) == 1


def test_consumer_can_bring_its_own_timeout_since_4_3(broker, declare, channel):
    if broker.version < (4, 3):
        pytest.skip("before 4.3, only the queue or the broker has one")
    queue = declare()
    channel.basic_publish("", queue, b"x")
    list(
        consume_until_cancelled(channel, queue, arguments={"x-consumer-timeout": 1000})
    )


def test_consumer_keeps_the_timeout_it_started_with(
    broker, declare, channel, set_policy
):
    if broker.version < (4, 3):
        pytest.skip("before 4.3, the broker checks it once a minute")
    set_policy("timeout", {"consumer-timeout": 1000})
    queue = declare()
    consumer = consume_until_cancelled(channel, queue)
    next(consumer)
    set_policy("timeout", {"consumer-timeout": 3_600_000})
    channel.basic_publish("", queue, b"x")
    list(consumer)


# From a classic to a quorum queue.


def test_delete_queue_if_empty_refuses_a_classic_queue_with_messages(
    broker, channel, declare
):
    queue = declare({"x-queue-type": "classic"})
    channel.basic_publish("", queue, b"x")
    wait_for_message_count(1, channel, queue)
    with pytest.raises(ToolError, match="not empty"):
        broker.ctl("delete_queue", queue, "--if-empty", "--if-unused")
    assert message_count(channel, queue) == 1


# Messages in docs/troubleshooting.md.


def test_message_can_be_acknowledged_only_once(channel, queue):
    channel.basic_publish("", queue, b"x")
    (method, _, _) = next(channel.consume(queue, inactivity_timeout=30))
    channel.basic_ack(method.delivery_tag)
    channel.basic_ack(method.delivery_tag)
    error = documented("PRECONDITION_FAILED - unknown delivery tag")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=error):
        channel.queue_declare(queue, passive=True)  # waits for the broker


def test_user_over_the_connection_limit_is_one_line(broker, start, user):
    url = user("^limited$")
    name = url.split("//")[1].split(":")[0]
    send(broker, "PUT", f"user-limits/{name}/max-connections", {"value": 0})
    producer = start("simple/producer.py", url=url)
    assert producer.wait() == 1
    (line,) = producer.errors
    assert documented("connection limit") in line


def patched(folder, code: str, script: str) -> str:
    """Return the path of a program that runs a script after some code."""
    path = folder / "patched.py"
    lines = "import runpy, socket, sys", code, f"runpy.run_path({script!r}, "
    path.write_text("\n".join(lines) + "run_name='__main__')\n")
    return str(path)


NO_IPV6 = """
class Socket(socket.socket):
    def __init__(self, family=-1, *arguments, **options):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        super().__init__(family, *arguments, **options)
def getaddrinfo(host, port, *arguments, **options):
    return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port))]
socket.socket, socket.getaddrinfo = Socket, getaddrinfo
"""


def test_ipv6_address_without_ipv6_is_one_line(start, tmp_path):
    producer = start(patched(tmp_path, NO_IPV6, "simple/producer.py"))
    assert producer.wait() == 1
    (line,) = producer.errors
    assert documented("Address family not supported") in line


def test_output_that_cannot_be_reconfigured_is_a_traceback(start, tmp_path):
    notebook = "import io; sys.stdout = io.StringIO()"  # as IDLE and Jupyter do
    producer = start(patched(tmp_path, notebook, "simple/producer.py"))
    assert producer.wait() == 1
    assert producer.errors[-1].endswith(documented("no attribute 'reconfigure'"))


def test_file_called_pika_hides_pika(start, tmp_path):
    (tmp_path / "pika.py").write_text("")
    program = patched(tmp_path, "", "simple/producer.py")
    producer = start(program, PYTHONPATH=str(tmp_path))
    assert producer.wait() == 1
    assert documented("module 'pika' has no attribute") in producer.errors[-1]
