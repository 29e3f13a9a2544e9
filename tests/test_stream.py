"""advanced/stream: readers that start anywhere, and continue where they stopped."""

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pika
import pytest
from broker import temporary_broker, wait_until
from conftest import received, starting
from script import ROOT, ScriptProcess

PRODUCER, CONSUMER = "advanced/stream/producer.py", "advanced/stream/consumer.py"
# For the test with three readers. 50,000 and 20 take some minutes.
EVENTS, KILLS = 5_000, 5

STREAM = {"x-queue-type": "stream", "x-max-length-bytes": 1_000_000_000}


@pytest.fixture
def reader(start, tmp_path):
    """reader("alice", "first") starts a reader. It stores its position in tmp_path."""

    def start_reader(*arguments, **options):
        return start(CONSUMER, *arguments, **{"cwd": tmp_path} | options)

    return start_reader


def publish(channel, bodies):
    """Append the bodies and 'end' to the stream. Return once the broker has them."""
    channel = channel.connection.channel()
    channel.queue_declare("events", durable=True, arguments=STREAM)
    for body in bodies:
        channel.basic_publish("", "events", body.encode())
    channel.confirm_delivery()  # the broker handles them in order: the last is enough
    channel.basic_publish("", "events", b"end", mandatory=True)
    channel.close()


def events(reader):
    """Return the bodies in the reader's output."""
    return [line.split(": ", 1)[1].strip("'") for line in received(reader)]


def continue_at(bodies, position, reader):
    """Return the reader's next position, and how many events it got again.

    Asserts that it continued at that position, or at the event before, which it had
    printed when it exited, and that it got the events in order, none missing.
    """
    got = events(reader)
    again = 1 if position and got[:1] == [bodies[position - 1]] else 0
    start = position - again
    assert got == bodies[start : start + len(got)]
    return start + len(got), again


def test_two_readers_both_get_everything(start, reader):
    alice = reader("alice").wait_until_ready()
    bob = reader("bob").wait_until_ready()
    producer = start(PRODUCER)
    assert producer.wait() == 0
    sent = ["signup", "login", "purchase"]
    assert producer.output == [f" [x] Sent {event!r}" for event in sent]
    for process in (alice, bob):
        process.wait_for("'purchase'")
        assert received(process) == ["0: 'signup'", "1: 'login'", "2: 'purchase'"]
        assert process.stop(signal.SIGINT) == 0
        assert process.errors == []


def test_late_reader_starts_where_told(start, reader):
    assert start(PRODUCER, "a", "b", "c", "d").wait() == 0
    expected = {
        "first": ["a", "b", "c", "d", "new"],
        "next": ["new"],
        "2": ["c", "d", "new"],
        "1h": ["a", "b", "c", "d", "new"],
    }
    readers = {where: reader(f"from {where}", where) for where in expected}
    for position, process in readers.items():
        process.wait_for(f" [*] Waiting for messages (start: {position})")
    assert start(PRODUCER, "new").wait() == 0
    for position, process in readers.items():
        process.wait_for("'new'")
        assert events(process) == expected[position]


def test_reader_without_arguments_starts_at_the_first_event(start, reader):
    assert start(PRODUCER, "a", "b").wait() == 0
    process = reader().wait_for("'b'")
    assert events(process) == ["a", "b"]


def test_reader_that_starts_at_last_gets_the_last_event(reader, channel):
    # The broker stores events in chunks, and starts with the last chunk.
    publish(channel, [str(i) for i in range(1000)])
    process = reader("alice", "last").wait_for("'end'")
    expected = [*(str(i) for i in range(1000)), "end"]
    assert events(process) == expected[-len(events(process)) :]
    assert len(events(process)) < 1000


def test_old_events_are_older_than_an_interval(start, reader):
    assert start(PRODUCER, "old").wait() == 0
    written = time.monotonic()
    wait_until(lambda: time.monotonic() - written > 2.5, "an event older than 2 s", 5)
    process = reader("alice", "2s").wait_until_ready()
    assert start(PRODUCER, "new").wait() == 0
    process.wait_for("'new'")
    assert events(process) == ["new"]


def wait_for_position(position, database):
    """Wait until a reader has stored the position, just after it prints an event."""

    def stored():
        with contextlib.closing(sqlite3.connect(database)) as db:
            return db.execute("SELECT next FROM position").fetchone() == (position,)

    wait_until(stored, f"position {position} in {database}", 20)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_reader_continues_where_it_stopped(start, reader, tmp_path, signum):
    assert start(PRODUCER, "a", "b").wait() == 0
    first = reader("alice").wait_for("'b'")
    wait_for_position(2, tmp_path / "alice.db")
    assert first.stop(signum) == (0 if signum == signal.SIGINT else -signum)
    assert events(first) == ["a", "b"]
    assert start(PRODUCER, "c", "d").wait() == 0
    second = reader("alice").wait_for("'d'")
    assert second.output[0].startswith(" [*] Waiting for messages (start: 2)")
    assert events(second) == ["c", "d"]


def test_reader_gets_an_event_again_when_its_work_failed(
    start, reader, broker, tmp_path
):
    command = [sys.executable, ROOT / CONSUMER, "alice"]
    with subprocess.Popen(
        command,
        env={"AMQP_URL": broker.url},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert b"[*] Waiting" in process.stdout.readline()
        process.stdout.close()  # so that its next print fails
        assert start(PRODUCER, "a").wait() == 0
        assert process.wait(30) > 0
        assert b"BrokenPipeError" in process.stderr.read()
    assert events(reader("alice").wait_for("'a'")) == ["a"]


def test_known_reader_ignores_its_start(start, reader):
    assert start(PRODUCER, "a", "b").wait() == 0
    reader("alice").wait_for("'b'").stop(signal.SIGINT)
    assert start(PRODUCER, "c").wait() == 0
    alice = reader("alice", "next").wait_for("'c'")
    assert events(alice)[-1:] == ["c"]
    assert not alice.count("(start: next)")


def test_readers_in_one_folder_have_separate_positions(start, reader):
    assert start(PRODUCER, "a", "b").wait() == 0
    reader("alice").wait_for("'b'").stop(signal.SIGINT)
    assert events(reader("bob").wait_for("'b'")) == ["a", "b"]


def test_reader_starts_over_when_its_file_is_deleted(start, reader, tmp_path):
    assert start(PRODUCER, "a", "b").wait() == 0
    reader("alice").wait_for("'b'").stop(signal.SIGINT)
    (tmp_path / "alice.db").unlink()
    assert events(reader("alice").wait_for("'b'")) == ["a", "b"]


def test_reader_skips_new_events_when_its_offset_is_beyond_the_end(
    start, reader, channel
):
    assert start(PRODUCER, "a", "b", "c").wait() == 0
    reader("alice").wait_for("'c'").stop(signal.SIGINT)
    channel.queue_delete("events")
    assert start(PRODUCER, "new 0", "new 1").wait() == 0
    alice = reader("alice").wait_until_ready()
    assert start(PRODUCER, "new 2", "new 3", "new 4").wait() == 0
    alice.wait_for("'new 4'")
    assert "new 0" not in events(alice)
    assert "new 1" not in events(alice)


def test_acknowledgement_deletes_nothing(start, reader, channel):
    assert start(PRODUCER, "a").wait() == 0
    for name in ("alice", "bob", "carol"):
        assert events(reader(name).wait_for("'a'")) == ["a"]


def consume(broker, prefetch=100, arguments=None, auto_ack=False):
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.queue_declare("events", durable=True, arguments=STREAM)
        channel.basic_qos(prefetch_count=prefetch)
        channel.basic_consume("events", print, auto_ack, arguments=arguments)
        channel.close()


def test_stream_requires_prefetch_limit(start, broker):
    consume(broker)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as error:
        consume(broker, prefetch=0)
    assert error.value.reply_code == 406
    assert "prefetch count is not set" in error.value.reply_text


def test_stream_refuses_auto_ack(start, broker):
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as error:
        consume(broker, auto_ack=True)
    assert error.value.reply_code == 540


@pytest.mark.parametrize("method", ["basic_get", "queue_purge"])
def test_stream_refuses_get_and_purge(start, broker, method):
    connection = pika.BlockingConnection(pika.URLParameters(broker.url))
    channel = connection.channel()
    channel.queue_declare("events", durable=True, arguments=STREAM)
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as error:
        getattr(channel, method)("events")
    assert error.value.reply_code == 540


def test_stream_refuses_dead_lettering(channel):
    arguments = STREAM | {"x-dead-letter-exchange": ""}
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="invalid arg"):
        channel.queue_declare("events", durable=True, arguments=arguments)


def test_offset_must_be_an_int(start, broker):
    consume(broker, arguments={"x-stream-offset": 5})
    with pytest.raises(pika.exceptions.AMQPError) as error:
        consume(broker, arguments={"x-stream-offset": "5"})
    assert error.value.reply_code in (406, 541)


@pytest.mark.parametrize("unit", "YMDhms")
def test_interval_has_a_unit(start, broker, unit):
    consume(broker, arguments={"x-stream-offset": f"2{unit}"})


def test_rejected_event_counts_as_acknowledged_since_4_0(start, broker):
    assert start(PRODUCER, "a", "b").wait() == 0
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        arguments = {"x-stream-offset": "first"}
        deliveries = channel.consume("events", arguments=arguments)
        method, _, body = next(deliveries)
        assert body == b"a"
        channel.basic_nack(method.delivery_tag)
        if broker.before(4):
            with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="540"):
                next(deliveries)
        else:
            assert next(deliveries)[2] == b"b"


def test_reader_reports_invalid_start_in_one_line(broker, reader):
    process = reader("alice", "5x")
    assert process.wait() == 1
    (line,) = process.errors
    assert "invalid arg" in line
    process = reader("bob", "soon")
    assert process.wait() == 1
    (line,) = process.errors
    assert ("INTERNAL_ERROR" if broker.before(4, 2) else "invalid arg") in line


@pytest.mark.parametrize("type", ["quorum", "classic"])
def test_scripts_report_a_queue_of_another_type(start, reader, channel, type):
    channel.queue_declare("events", durable=True, arguments={"x-queue-type": type})
    for process in (start(PRODUCER), reader("alice")):
        assert process.wait() == 1
        (line,) = process.errors
        assert "PRECONDITION_FAILED" in line
        assert process.output == []


def first_event(channel, stream, offset):
    """Return the number of the event that a reader at that offset gets first."""
    channel = channel.connection.channel()
    channel.basic_qos(prefetch_count=1)
    arguments = {"x-stream-offset": offset}
    _, _, body = next(channel.consume(stream, arguments=arguments))
    channel.close()
    return int(body.split()[0])


@pytest.mark.parametrize("segment", [None, 20_000])
def test_stream_deletes_the_oldest_events_in_whole_segments(channel, segment):
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 20_000}
    if segment:
        arguments["x-stream-max-segment-size-bytes"] = segment
    channel.queue_declare("small", durable=True, arguments=arguments)
    try:
        channel.confirm_delivery()
        for i in range(1000):
            channel.basic_publish("", "small", b"%d %s" % (i, b"x" * 1000))
        if segment:
            # A reader that comes too late starts with the first event that's left.
            def deleted():
                return first_event(channel, "small", 5) > 500

            wait_until(deleted, "the broker deletes the oldest events", 20)
        else:
            # The stream is far over its limit, but its first segment isn't full.
            assert first_event(channel, "small", "first") == 0
    finally:
        channel.queue_delete("small")


@pytest.mark.faults
def test_ctrl_c_at_any_moment_exits_silently(reader, channel, report):
    bodies = [*(f"event {i}" for i in range(20_000)), "end"]
    publish(channel, bodies[:-1])
    position = twice = 0
    for _ in range(8):
        process = reader("alice").wait_for("Received")
        moment = time.monotonic() + random.random() / 5
        wait_until(lambda moment=moment: time.monotonic() > moment, "a moment")
        assert process.stop(signal.SIGINT) == 0
        assert process.errors == []
        position, again = continue_at(bodies, position, process)
        twice += again
    report(f"Ctrl+C 8 times in {position} events: 0 lost, {twice} of them twice")


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_three_readers_get_all_events(reader, channel, report):
    first, second = [[f"{half} {i}" for i in range(EVENTS)] for half in "ab"]
    bodies = [*first, "end", *second, "end"]
    publish(channel, first)
    carol = reader("carol", "next").wait_until_ready()
    alice = reader("alice").wait_until_ready()
    bob = reader("bob", str(EVENTS // 2)).wait_until_ready()
    publish(channel, second)

    def wait_for_lines(process, count, text="'"):
        # Not wait_for: it would search all lines whenever a line appears.
        def finished():
            return len(process.output) >= count and text in process.output[-1]

        ScriptProcess.wait_until(finished, f"{count} lines, then {text}", 200)

    position = twice = 0
    for _ in range(KILLS):
        wait_for_lines(alice, random.randint(1, EVENTS // 8))
        alice.kill()
        position, again = continue_at(bodies, position, alice)
        twice += again
        alice = reader("alice")
    wait_for_lines(alice, len(bodies) - position, "'end'")
    position, again = continue_at(bodies, position, alice)
    assert position == len(bodies)
    wait_for_lines(bob, len(bodies) - EVENTS // 2, "'end'")
    assert events(bob) == bodies[EVENTS // 2 :]
    wait_for_lines(carol, len(second), "'end'")
    assert events(carol) == [*second, "end"]
    report(f"{2 * EVENTS} events, {KILLS} kills: 0 lost, {twice + again} twice")


@pytest.mark.faults
def test_confirmed_events_survive_a_kill_of_the_broker(tmp_path, report):
    bodies = [str(i) for i in range(60_000)]  # more than it can send until the kill
    with temporary_broker() as broker, starting(broker) as start:
        alice = start(CONSUMER, "alice", cwd=tmp_path).wait_until_ready()
        producer = start(PRODUCER, *bodies).wait_for("Sent")
        # A stream that's younger than this can lose confirmed events, or stay broken.
        declared = time.monotonic()
        wait_until(lambda: time.monotonic() - declared > 4, "an older stream", 10)
        broker.kill()
        for process in (producer, alice):
            assert process.wait() == 1
            (line,) = process.errors
            assert line.startswith(" [!] ")
        broker.start()
        sent = len(producer.output)
        # After a restart, the broker refuses to use a stream for about half a second.
        wait_until(lambda: start(PRODUCER, "after").wait() == 0, "the stream works", 30)
        bob = start(CONSUMER, "bob", cwd=tmp_path).wait_for("'after'")
        assert events(bob)[:sent] == bodies[:sent]
        position, _ = continue_at(events(bob), 0, alice)
        alice = start(CONSUMER, "alice", cwd=tmp_path).wait_for("'after'")
        position, _ = continue_at(events(bob), position, alice)
        assert position == len(events(bob))
        report(f"the broker killed: all {sent} confirmed events in order")
