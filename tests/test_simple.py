"""simple/: what its comments and its section of the README claim."""

import os
import signal
import subprocess
import sys

import pytest
from broker import wait_until
from conftest import received, wait_for_messages, waiting
from end import ROOT, End

RABBITS = [f"'兔子{i}'" for i in range(10)]


@pytest.mark.unconfirmed
def test_ten_rabbits_arrive_in_order(start):
    consumer = start("simple/consumer.py").ready()
    producer = start("simple/producer.py")
    assert producer.end() == 0
    assert producer.lines == ["Sent '兔子' * 10"]
    consumer.wait_for("Received", times=10)
    assert consumer.stop(signal.SIGINT) == 0
    assert received(consumer) == RABBITS
    assert consumer.errors == []


@pytest.mark.unconfirmed
def test_the_queue_keeps_messages_for_a_consumer_that_starts_later(start):
    assert start("simple/producer.py").end() == 0
    consumer = start("simple/consumer.py").wait_for("Received", times=10)
    assert received(consumer) == RABBITS


@pytest.mark.unconfirmed
def test_text_and_count_are_arguments(start):
    consumer = start("simple/consumer.py").ready()
    producer = start("simple/producer.py", "Hello", "3")
    assert producer.end() == 0
    assert producer.lines == ["Sent 'Hello' * 3"]
    consumer.wait_for("Received", times=3)
    consumer.stop()
    assert received(consumer) == ["'Hello0'", "'Hello1'", "'Hello2'"]


@pytest.mark.unconfirmed
def test_two_consumers_share_the_queue_and_no_message_goes_to_both(start):
    consumers = [start("simple/consumer.py").ready() for _ in range(2)]
    start("simple/producer.py", "x", "20").end()
    End.wait_until(lambda: sum(len(received(c)) for c in consumers) >= 20, consumers)
    for consumer in consumers:
        consumer.stop()
    first, second = (received(consumer) for consumer in consumers)
    assert sorted(first + second) == sorted(f"'x{i}'" for i in range(20))
    assert first
    assert second


def test_auto_ack_loses_what_a_killed_consumer_had_received_but_not_handled(start, channel):
    doomed = start("simple/consumer.py").ready()
    doomed.process.send_signal(signal.SIGSTOP)  # its socket goes on receiving; the script does not
    start("simple/producer.py").end()
    wait_for_messages(0, channel, "hello")
    doomed.kill()
    assert received(doomed) == []
    next_one = start("simple/consumer.py").ready()
    start("simple/producer.py", "later", "1").end()
    next_one.wait_for("Received")
    assert received(next_one) == ["'later0'"]


def test_the_default_exchange_takes_the_routing_key_for_a_queue_s_name(start, channel):
    channel.queue_declare("hello", durable=True, arguments={"x-queue-type": "quorum"})
    channel.basic_publish(exchange="", routing_key="hello", body=b"by name")
    consumer = start("simple/consumer.py").wait_for("Received")
    assert received(consumer) == ["'by name'"]


def test_a_consumer_whose_queue_is_deleted_says_so(start, channel):
    consumer = start("simple/consumer.py").ready()
    channel.queue_delete("hello")
    assert consumer.end() == 1
    assert consumer.errors == [" [!] The queue hello was deleted. Start again to declare it anew."]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_producer_may_be_stopped_in_the_middle_of_a_message(start, channel, number):
    channel.queue_declare("hello", durable=True, arguments={"x-queue-type": "quorum"})
    producer = start("simple/producer.py", "x", "1000000")
    wait_until(lambda: waiting(channel, "hello") > 500, "the first messages", 20)
    assert producer.stop(number) == 0
    assert producer.lines == producer.errors == []


def test_what_the_broker_refuses_is_not_called_sent(start, broker):
    start("simple/consumer.py").ready()
    broker.ctl("add_user", "mute", "secret")
    try:
        broker.ctl("set_permissions", "mute", ".*", "^$", ".*")
        url = broker.url.replace("guest:guest", "mute:secret")
        producer = start("simple/producer.py", "x", "1", url=url)
        assert producer.end() == 1
    finally:
        broker.ctl("delete_user", "mute")
    assert producer.lines == []
    assert "ACCESS_REFUSED" in producer.errors[0]


@pytest.mark.parametrize("count", ["0", "-1", "many"])
def test_a_count_that_is_none_is_a_wrong_argument(start, count):
    producer = start("simple/producer.py", "x", count)
    assert producer.end() == 2
    assert "count" in producer.errors[-1]


def test_output_cut_off_by_a_pipe_is_no_traceback(start, broker):
    read, write = os.pipe()
    command = [sys.executable, ROOT / "simple/consumer.py"]
    env = os.environ | {"AMQP_URL": broker.url}
    with subprocess.Popen(command, env=env, stdout=write, stderr=subprocess.PIPE) as consumer:
        os.close(write)
        os.read(read, 100)  # the line that says ready; then nobody reads any more: | head -1
        os.close(read)
        start("simple/producer.py").end()
        _, errors = consumer.communicate(timeout=30)
    assert consumer.returncode == 1
    assert errors == b""
