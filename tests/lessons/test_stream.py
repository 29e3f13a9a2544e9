"""advanced/stream: readers that start anywhere, and continue where they stopped."""

import random
import signal
import time

import pika
import pytest

from tests.helpers import SETTLED, connect, edited, received, starting
from tools.broker import temporary_broker
from tools.common import wait_until

PRODUCER, CONSUMER = "advanced/stream/producer.py", "advanced/stream/consumer.py"
# For the test with three readers. 50,000 and 20 take a few minutes.
EVENTS, STOPS = 3_000, 6

STREAM = {"x-queue-type": "stream", "x-max-length-bytes": 1_000_000_000}

# Lines of the reader.
WRITE = "new_file.write_text(str(offset + 1))"
REPLACE = "new_file.replace(file)  # in one step: a crash can't leave half a number"
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
KILL = "os.kill(os.getpid(), 9)"


@pytest.fixture
def reader(start, tmp_path):
    """reader("alice", "first") starts a reader. It stores its position in tmp_path."""

    def start_reader(*arguments, script=CONSUMER, **options):
        return start(script, *arguments, cwd=tmp_path, **options)

    return start_reader


@pytest.fixture
def send(start):
    """send("a", "b") appends these events to the stream."""

    def send(*events):
        producer = start(PRODUCER, *events)
        assert producer.wait() == 0, producer
        return producer

    return send


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


def wait_for_position(position, file):
    """Wait until a reader has stored the position, just after it prints an event."""

    def stored():
        return file.exists() and file.read_text() == str(position)

    wait_until(stored, f"position {position} in {file}", 20)


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


def test_two_readers_both_get_everything(reader, send):
    readers = [reader(name).wait_until_ready() for name in ("alice", "bob")]
    send()
    for process in readers:
        process.wait_for("'purchase'")
        assert received(process) == ["0: 'signup'", "1: 'login'", "2: 'purchase'"]


def test_producer_and_reader_declare_a_limit_of_a_gigabyte(reader, send, broker):
    for declare in (send, lambda: reader("alice").wait_until_ready()):
        declare()
        (row,) = broker.ctl("list_queues", "--silent", "name", "arguments").splitlines()
        assert '"x-max-length-bytes",1000000000' in row.replace(" ", "")


def test_late_reader_starts_where_told(reader, send):
    send("a", "b", "c", "d")
    expected = {
        "first": ["a", "b", "c", "d", "new"],
        "next": ["new"],
        "2": ["c", "d", "new"],
        "1h": ["a", "b", "c", "d", "new"],
    }
    readers = {where: reader(f"from {where}", where) for where in expected}
    for position, process in readers.items():
        process.wait_for(f" [*] Waiting for messages (start: {position})")
    send("new")
    for position, process in readers.items():
        process.wait_for("'new'")
        assert events(process) == expected[position]


def test_reader_without_arguments_is_alice_and_starts_at_the_first_event(
    reader, send, tmp_path
):
    send("a", "b")
    assert events(reader().wait_for("'b'")) == ["a", "b"]
    wait_for_position(2, tmp_path / "alice.position")


def test_reader_without_an_offset_gets_only_what_is_new(reader, send, tmp_path):
    send("a", "b")
    script = edited(tmp_path, CONSUMER, {'arguments={"x-stream-offset": start},': ""})
    process = reader("carol", "0", script=script).wait_until_ready()
    send("new")
    assert events(process.wait_for("'new'")) == ["new"]


def test_reader_that_starts_at_last_gets_the_last_batch(reader, channel):
    bodies = [*(str(i) for i in range(1000)), "end"]
    publish(channel, bodies[:-1])
    process = reader("alice", "last").wait_for("'end'")
    assert events(process) == bodies[-len(events(process)) :]
    assert len(events(process)) < 1000


def test_events_older_than_an_interval_are_skipped(reader, send):
    send("old")
    time.sleep(2.5)  # the event must be older than 2 s, and nothing else shows its age
    process = reader("alice", "2s").wait_until_ready()
    send("new")
    assert events(process.wait_for("'new'")) == ["new"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_reader_continues_where_it_stopped(reader, send, tmp_path, signum):
    send("a", "b")
    first = reader("alice").wait_for("'b'")
    wait_for_position(2, tmp_path / "alice.position")
    assert first.stop(signum) == (0 if signum == signal.SIGINT else -signum)
    send("c", "d")
    second = reader("alice", "next").wait_for("'d'")  # it has a position: no "next"
    assert second.output[0].startswith(" [*] Waiting for messages (start: 2)")
    assert events(second) == ["c", "d"]


def test_reader_starts_over_without_its_file(reader, send, tmp_path):
    send("a", "b")
    first = reader("alice").wait_for("'b'")
    wait_for_position(2, tmp_path / "alice.position")
    first.kill()
    assert events(reader("bob").wait_for("'b'")) == ["a", "b"]  # has its own file
    (tmp_path / "alice.position").unlink()
    assert events(reader("alice").wait_for("'b'")) == ["a", "b"]


def test_reader_that_crashes_after_its_work_gets_the_event_again(
    reader, send, tmp_path
):
    send("a", "b")
    crash = {REPLACE: f'sys.exit("Crash!")\n{REPLACE}'}
    for _ in range(2):
        process = reader("erin", script=edited(tmp_path, CONSUMER, crash))
        assert process.wait() == 1
        assert (events(process), process.errors) == (["a"], ["Crash!"])


def test_reader_that_stores_first_and_crashes_misses_events(reader, send, tmp_path):
    send("a", "b")
    work = """print(f" [x] Received {offset}: {body.decode(errors='replace')!r}")"""
    crash = {work: "", REPLACE: f'{REPLACE}\nsys.exit("Crash!")\n{work}'}
    process = reader("erin", script=edited(tmp_path, CONSUMER, crash))
    assert process.wait() == 1
    assert events(process) == []
    assert events(reader("erin").wait_for("'b'")) == ["b"]


def test_crash_while_writing_keeps_the_old_position(reader, send, tmp_path):
    send("a", "b")
    first = reader("alice").wait_for("'b'")
    wait_for_position(2, tmp_path / "alice.position")
    first.kill()
    send("c")
    killed = edited(tmp_path, CONSUMER, {WRITE: f'new_file.write_text("")\n{KILL}'})
    assert reader("alice", script=killed).wait() == -signal.SIGKILL
    assert events(reader("alice").wait_for("'c'")) == ["c"]


@pytest.mark.parametrize("content", [b"", b"x", b"-5", b"1.5", b"\xff", b"notes\n"])
def test_file_that_has_no_position_is_reported_in_one_line(reader, tmp_path, content):
    (tmp_path / "alice.position").write_bytes(content)
    process = reader("alice")
    assert process.wait() == 1
    assert process.errors == [
        " [!] alice.position isn't a position. Move it away to start over."
    ]
    assert (tmp_path / "alice.position").read_bytes() == content


def test_reader_skips_new_events_when_its_offset_is_beyond_the_end(
    reader, send, channel, tmp_path
):
    (tmp_path / "alice.position").write_text("3")  # of a stream that was deleted
    send("new 0", "new 1")
    alice = reader("alice").wait_until_ready()
    send("new 2", "new 3", "new 4")
    alice.wait_for("'new 4'")
    assert "new 0" not in events(alice)
    assert "new 1" not in events(alice)


def test_reader_that_does_not_acknowledge_gets_100_events(reader, channel, tmp_path):
    publish(channel, [])
    channel.confirm_delivery()
    for _ in range(199):  # one by one, so that each has its own chunk
        channel.basic_publish("", "events", b"x")
    process = reader("frank", script=edited(tmp_path, CONSUMER, {ACK: ""}))
    process.wait_for("Received", times=100)
    wait_for_position(100, tmp_path / "frank.position")
    assert process.stop(signal.SIGINT) == 0
    assert len(events(process)) == 100


def test_stream_requires_a_prefetch_limit(reader, tmp_path):
    line = "channel.basic_qos(prefetch_count=100)"
    process = reader("alice", script=edited(tmp_path, CONSUMER, {line: ""}))
    assert process.wait() == 1
    (line,) = process.errors
    assert "prefetch count is not set" in line


def consume(broker, offset):
    with connect(broker) as connection:
        channel = connection.channel()
        channel.queue_declare("events", durable=True, arguments=STREAM)
        channel.basic_qos(prefetch_count=100)
        channel.basic_consume("events", print, arguments={"x-stream-offset": offset})


@pytest.mark.usefixtures("start")  # deletes the stream
def test_offset_is_an_int_and_an_interval_has_a_unit(broker):
    for offset in (5, *(f"2{unit}" for unit in "YMDhms")):
        consume(broker, offset)
    with pytest.raises(pika.exceptions.AMQPError, match=r"406|541"):
        consume(broker, "5")


def test_reader_reports_invalid_start_in_one_line(broker, reader):
    process = reader("bob", "soon")
    assert process.wait() == 1
    (line,) = process.errors
    fixed = broker.version >= (4, 3, 1) or (4, 2, 7) <= broker.version < (4, 3)
    assert ("invalid arg" if fixed else "INTERNAL_ERROR") in line


def first_event(channel, stream, offset):
    """Return the number of the event that a reader at that offset gets first."""
    channel = channel.connection.channel()
    channel.basic_qos(prefetch_count=1)
    arguments = {"x-stream-offset": offset}
    _, _, body = next(channel.consume(stream, arguments=arguments))
    channel.close()
    return int(body.split()[0])


@pytest.mark.parametrize("segment", [None, 20_000])
def test_stream_deletes_the_oldest_events_in_whole_segments(channel, declare, segment):
    arguments = {"x-queue-type": "stream", "x-max-length-bytes": 20_000}
    if segment:
        arguments["x-stream-max-segment-size-bytes"] = segment
    stream = declare(arguments)
    channel.confirm_delivery()
    for i in range(1000):
        channel.basic_publish("", stream, b"%d %s" % (i, b"x" * 1000))
    if segment:
        # A reader that falls too far behind resumes at the first event that's left.
        wait_until(lambda: first_event(channel, stream, 5) > 500, "deletions", 20)
    else:
        # The stream is far over its limit, but its first segment isn't full.
        assert first_event(channel, stream, "first") == 0


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
        # Not wait_for: it would search all lines each time.
        def finished():
            return len(process.output) >= count and text in process.output[-1]

        wait_until(finished, f"{count} lines, then {text}", 200)

    position = twice = 0
    for i in range(STOPS):
        wait_for_lines(alice, random.randint(1, EVENTS // 8))
        status = alice.stop(signal.SIGINT if i % 2 else signal.SIGKILL)
        assert status == (0 if i % 2 else -signal.SIGKILL)
        assert alice.errors == []
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
    report(f"{2 * EVENTS} events, {STOPS} stops: 0 lost, {twice + again} twice")


@pytest.mark.faults
def test_confirmed_events_survive_a_kill_of_the_broker(tmp_path, report):
    bodies = [str(i) for i in range(60_000)]  # more than it can send until the kill
    with temporary_broker() as broker, starting(broker) as start:
        alice = start(CONSUMER, "alice", cwd=tmp_path).wait_until_ready()
        producer = start(PRODUCER, *bodies).wait_for("Sent")
        time.sleep(SETTLED)
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
