"""What docs/production.md and docs/troubleshooting.md claim about the broker.

Users, ports and TLS are in test_security.py. The delivery limit is in
test_dead_letters.py, and priorities are in test_reference.py.
"""

import pika
import pytest

from tests.helpers import documented, message_count, wait_for_message_count


def test_queue_has_one_policy_and_the_lower_limit_wins(broker, channel, declare):
    policies = [{"max-length-bytes": 1}, {"max-length": 3}]
    for i, definition in enumerate(policies):
        policy = {"pattern": ".*", "priority": i, "definition": definition}
        broker.put(f"policies/%2F/{i}", **policy)
    try:
        for argument, expected in [(100, 3), (2, 2)]:
            # A classic queue's limit is exact. A quorum queue can hold a message more.
            queue = declare({"x-queue-type": "classic", "x-max-length": argument})
            for _ in range(9):
                channel.basic_publish("", queue, b"x")
            wait_for_message_count(expected, channel, queue)
    finally:
        for i in range(len(policies)):
            broker.delete(f"policies/%2F/{i}")


def test_alarm_stops_producers_and_not_consumers(broker, start):
    default = broker.ctl("eval", "rabbit_disk_monitor:get_disk_free_limit().")
    assert default == "50000000\n"
    assert start("simple/producer.py", "waiting", "3").wait() == 0
    broker.ctl("set_disk_free_limit", "1000000GB")
    try:
        silent = start("work_queue/producer.py", "task")
        url = f"{broker.url}?blocked_connection_timeout=1"
        limited = start("work_queue/producer.py", "task", url=url)
        start("simple/consumer.py").wait_for("Received", times=3)
        assert limited.wait() == 1
        (line,) = limited.errors
        assert documented("ConnectionBlockedTimeout") in line
        assert silent.running
        assert silent.output == silent.errors == []
    finally:
        broker.ctl("set_disk_free_limit", "50MB")
    assert silent.wait() == 0


def test_second_acknowledgement_closes_the_channel(channel, queue):
    channel.basic_publish("", queue, b"x")
    method, _, _ = next(channel.consume(queue, inactivity_timeout=30))
    for _ in range(2):
        channel.basic_ack(method.delivery_tag)
    reason = documented("PRECONDITION_FAILED - unknown delivery tag")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=reason):
        message_count(channel, queue)


def test_errors_of_the_environment(start, tmp_path):
    # getaddrinfo() returns an unknown family, as if this machine had no IPv6.
    address = '(99, socket.SOCK_STREAM, 6, "", ("::1", 5672))'
    no_ipv6 = documented("Address family not supported")
    no_terminal = documented("no attribute 'reconfigure'")
    other_pika = documented("module 'pika' has no attribute")
    for code, reason in [
        (f"socket.getaddrinfo = lambda *_, **__: [{address}]", no_ipv6),
        ("sys.stdout = io.StringIO()  # as IDLE and Jupyter do", no_terminal),
        ("open(sys.path[0] + '/pika.py', 'w').close()", other_pika),
    ]:
        run_script = "runpy.run_path('simple/producer.py', run_name='__main__')"
        lines = "import io, runpy, socket, sys", code, run_script
        (tmp_path / "program.py").write_text("\n".join(lines))
        process = start(str(tmp_path / "program.py"))
        assert process.wait() == 1
        assert reason in process.errors[-1]
