"""What a restart of the broker does to each lesson. One restart, seen by all tests of this file."""

import signal
from types import SimpleNamespace

import pika
import pytest
from conftest import received, starting, waiting


@pytest.fixture(scope="module")
def restart(broker):
    """Restart the broker under running consumers and waiting messages; return what came of it."""
    after = SimpleNamespace()
    with starting(broker) as start:
        start("simple/producer.py", "x", "1").end()
        start("work_queue/producer.py", "kept").end()
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            channel.queue_declare("classic", durable=True, arguments={"x-queue-type": "classic"})
            for mode in (1, 2):
                properties = pika.BasicProperties(delivery_mode=mode)
                channel.basic_publish("", "classic", f"mode {mode}".encode(), properties)
        listeners = [start(f"{name}/consumer.py").ready() for name in ("fanout", "direct", "topic")]
        server = start("rpc/consumer.py").ready()

        broker.restart()

        after.listeners = {end: end.end() for end in listeners}
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            channel = connection.channel()
            after.hello = waiting(channel, "hello")
            after.classic = channel.basic_get("classic", auto_ack=True)[2]
            after.classic_left = waiting(channel, "classic")
            channel.queue_delete("classic")
        after.server = server.wait_for("Awaiting", times=2)
        after.client = start("rpc/producer.py", "10")
        after.client.end()
        after.worker = start("work_queue/consumer.py").wait_for("Done")

        broker.restart()

        after.worker.wait_for("Waiting for messages", times=2)
        start("work_queue/producer.py", "after").end()
        after.worker.wait_for("Done 'after'")
        after.worker_code = after.worker.stop(signal.SIGTERM)
    return after


def test_messages_in_a_quorum_queue_are_still_there(restart):
    assert restart.hello == 1


def test_of_a_durable_classic_queue_only_the_persistent_messages_are_still_there(restart):
    assert (restart.classic, restart.classic_left) == (b"mode 2", 0)


def test_a_task_sits_in_the_queue_meanwhile(restart):
    assert received(restart.worker)[0] == "'kept'"


def test_the_worker_is_there_again_by_itself(restart):
    # A task that was done, but not acknowledged yet when the broker stopped, comes once more.
    assert list(dict.fromkeys(received(restart.worker))) == ["'kept'", "'after'"]
    assert restart.worker.errors[0].startswith(" [!] Lost the broker: ")
    assert restart.worker.errors[0].endswith(" Trying again.")
    assert restart.worker_code == 0


def test_the_rpc_server_is_there_again_by_itself(restart):
    assert restart.client.lines[-1] == " [.] Got fib(10) = 55"


def test_the_other_consumers_end_with_one_line(restart):
    for end, code in restart.listeners.items():
        assert code == 1, str(end)
        assert len(end.errors) == 1, str(end)
        assert "CONNECTION_FORCED - broker forced connection closure" in end.errors[0]
        assert "has RabbitMQ started there" in end.errors[0]
