"""advanced/stream: readers that start anywhere, and continue where they stopped."""

import random
import signal
import time

import pytest

from tests.helpers import SETTLED, edited, received, run_script
from tools.common import wait_until

PRODUCER, CONSUMER = "advanced/stream/producer.py", "advanced/stream/consumer.py"
STREAM = {"x-queue-type": "stream", "x-max-length-bytes": 1_000_000_000}

# Lines of the reader.
PRINT = """print(f" [x] Received {offset}: {body.decode(errors='replace')!r}")"""
WRITE = "new_file.write_text(str(offset + 1))"
REPLACE = "new_file.replace(file)  # in one step: a crash can't leave half a number"
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
QOS = "channel.basic_qos(prefetch_count=100)"
START = 'arguments={"x-stream-offset": start},'
CRASH = 'sys.exit("Crash!")'


@pytest.fixture
def reader(start, tmp_path):
    """reader("alice", "first") starts a reader in tmp_path, edit={...} a copy."""

    def reader(*arguments, edit=None):
        script = edited(tmp_path, CONSUMER, edit) if edit else CONSUMER
        return start(script, *arguments, cwd=tmp_path)

    return reader


def append(channel, stream, bodies):
    """Publish one by one, so that each is a batch."""
    channel.confirm_delivery()
    for body in bodies:
        channel.basic_publish("", stream, body)


def events(reader):
    """Return the bodies in the reader's output."""
    return [line.split(": ", 1)[1].strip("'") for line in received(reader)]


def wait_for_position(position, file):
    """A reader stores its position just after it prints an event."""
    wait_until(lambda: file.exists() and file.read_text() == str(position), file)


def test_new_reader_starts_where_told(reader, start, channel):
    old = [str(i) for i in range(100)]
    # Declaring it fails if the scripts' limit is different.
    channel.queue_declare("events", durable=True, arguments=STREAM)
    append(channel, "events", old)
    time.sleep(2.5)  # nothing else shows that the events are older than 2 s
    expected = {
        "first": [*old, "new"],
        "last": ["99", "new"],
        "next": ["new"],
        "90": [*old[90:], "new"],
        **{f"1{unit}": [*old, "new"] for unit in "YMDhm"},
        "2s": ["new"],
        "default": ["new"],
    }
    readers = {name: reader(f"from {name}", name) for name in [*expected][:-1]}
    readers["default"] = reader("carol", "0", edit={START: ""})
    for process in readers.values():
        process.wait_until_ready()
    run_script(start, PRODUCER, "new")
    found = {name: events(readers[name].wait_for("'new'")) for name in readers}
    assert found == expected


def test_reader_continues_at_its_position_whatever_happens(reader, start, tmp_path):
    file = tmp_path / "alice.position"
    run_script(start, PRODUCER, "a", "b")
    alice = reader().wait_for("'b'")
    wait_for_position(2, file)
    reader("eu.alice").wait_for("'b'")  # a name can have a dot
    wait_for_position(2, tmp_path / "eu.alice.position")
    alice.kill()
    run_script(start, PRODUCER, "c", "d")
    # A crash while it writes, or after its work: it gets the event again.
    write_half = {WRITE: f'new_file.write_text("")\n{CRASH}'}
    for edit in write_half, {REPLACE: f"{CRASH}\n{REPLACE}"}:
        alice = reader("alice", "next", edit=edit)
        assert alice.wait() == 1
        assert (events(alice), alice.errors) == (["c"], ["Crash!"])
        assert "(start: 2)" in alice.output[0]
    # A crash between the position and the work: it misses an event.
    alice = reader("alice", edit={PRINT: "", REPLACE: f"{REPLACE}\n{CRASH}\n{PRINT}"})
    assert alice.wait() == 1
    assert events(alice) == []
    alice = reader("alice").wait_for("'d'")
    assert events(alice) == ["d"]
    # Without its file, it starts over.
    wait_for_position(4, file)
    alice.kill()
    file.unlink()
    assert events(reader("alice").wait_for("'d'")) == ["a", "b", "c", "d"]


def test_file_that_has_no_position_is_reported_in_one_line(reader, tmp_path):
    (tmp_path / "alice.position").write_text("-5")
    alice = reader("alice")
    assert alice.wait() == 1
    line = " [!] alice.position isn't a position. Move it away to start over."
    assert alice.errors == [line]


def test_reader_at_an_offset_beyond_the_end_skips_events(reader, start, tmp_path):
    (tmp_path / "alice.position").write_text("3")  # of a stream that was deleted
    run_script(start, PRODUCER, "new 0", "new 1")
    alice = reader("alice").wait_until_ready()
    run_script(start, PRODUCER, "new 2", "new 3", "new 4")
    alice.wait_for("'new 4'")
    assert not {"new 0", "new 1"} & {*events(alice)}


def test_reader_gets_100_events_in_advance_and_needs_that_limit(
    reader, channel, tmp_path
):
    channel.queue_declare("events", durable=True, arguments=STREAM)
    append(channel, "events", [b"x"] * 200)
    frank = reader("frank", edit={ACK: ""}).wait_for("Received", times=100)
    wait_for_position(100, tmp_path / "frank.position")
    assert frank.stop(signal.SIGINT) == 0
    assert len(events(frank)) == 100
    frank = reader("frank", edit={QOS: ""})
    assert frank.wait() == 1
    assert "prefetch count is not set" in frank.errors[0]


def test_reader_that_falls_behind_resumes_at_the_first_event_left(channel, declare):
    small = {"x-max-length-bytes": 100_000, "x-stream-max-segment-size-bytes": 20_000}
    stream = declare({"x-queue-type": "stream"} | small)
    append(channel, stream, [b"%-10000d" % i for i in range(100)])

    def first_event():
        with channel.connection.channel() as reader:
            reader.basic_qos(prefetch_count=1)
            _, _, body = next(reader.consume(stream, arguments={"x-stream-offset": 5}))
        return int(body)

    wait_until(lambda: first_event() > 50, "deletions")


@pytest.mark.faults
def test_kills_of_reader_and_broker_lose_no_confirmed_event(
    reader, start, broker, report
):
    bodies = [str(i) for i in range(60_000)]  # more than it can send until the kill
    producer = start(PRODUCER, *bodies).wait_for("Sent")
    readers = []
    for signum in [signal.SIGKILL, signal.SIGINT] * 3:
        readers.append(reader().wait_for("Received", times=random.randint(1, 500)))
        readers[-1].stop(signum)
    readers.append(reader().wait_for("Received"))
    time.sleep(SETTLED)
    broker.kill()
    for process in (producer, readers[-1]):
        assert process.wait() == 1
    broker.start()
    # After a restart, the broker refuses to use a stream for about half a second.
    wait_until(lambda: start(PRODUCER, "end").wait() == 0, "the stream works")
    readers.append(reader().wait_for("'end'"))

    lines = [line.split(": ") for process in readers for line in received(process)]
    found = {int(offset): event.strip("'") for offset, event in lines}
    confirmed = len(producer.output)
    assert [found[i] for i in range(confirmed)] == bodies[:confirmed]
    assert len(lines) - len(found) <= 7  # at most one event arrives again after a kill
    report(f"7 kills: no reader missed any of {confirmed} confirmed events")
