"""advanced/stream: readers that start anywhere, and continue where they stopped."""

import contextlib
import random
import signal
import time

import pika
import pytest

from tests.helpers import SETTLED, connect, edited, received
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
    """reader("alice", "first") starts a reader, edit={...} an edited() copy.

    It stores its position in tmp_path.
    """

    def reader(*arguments, edit=None):
        script = edited(tmp_path, CONSUMER, edit) if edit else CONSUMER
        return start(script, *arguments, cwd=tmp_path)

    return reader


def send(start, *events):
    producer = start(PRODUCER, *events)
    assert producer.wait() == 0, producer


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
    channel.confirm_delivery()  # one by one, so that each is a batch
    for body in old:
        channel.basic_publish("", "events", body.encode())
    time.sleep(2.5)  # nothing else shows that the events are older than 2 s
    expected = {
        "first": [*old, "new"],
        "last": ["99", "new"],
        "next": ["new"],
        "90": [*old[90:], "new"],
        "1h": [*old, "new"],
        "2s": ["new"],
        "default": ["new"],
    }
    readers = {name: reader(f"from {name}", name) for name in [*expected][:-1]}
    readers["default"] = reader("carol", "0", edit={START: ""})
    for process in readers.values():
        process.wait_until_ready()
    send(start, "new")
    found = {name: events(readers[name].wait_for("'new'")) for name in readers}
    assert found == expected


def test_reader_continues_at_its_position_whatever_happens(reader, start, tmp_path):
    file = tmp_path / "alice.position"
    send(start, "a", "b")
    alice = reader().wait_for("'b'")
    wait_for_position(2, file)
    alice.kill()
    send(start, "c", "d")
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
    contents = [b"", b"x", b"-5", b"1.5", b"\xff"]
    for i, content in enumerate(contents):
        (tmp_path / f"{i}.position").write_bytes(content)
    for i, process in enumerate([reader(str(i)) for i in range(len(contents))]):
        assert process.wait() == 1
        line = f" [!] {i}.position isn't a position. Move it away to start over."
        assert process.errors == [line]
        assert (tmp_path / f"{i}.position").read_bytes() == contents[i]


def test_reader_at_an_offset_beyond_the_end_skips_events(reader, start, tmp_path):
    (tmp_path / "alice.position").write_text("3")  # of a stream that was deleted
    send(start, "new 0", "new 1")
    alice = reader("alice").wait_until_ready()
    send(start, "new 2", "new 3", "new 4")
    alice.wait_for("'new 4'")
    assert not {"new 0", "new 1"} & {*events(alice)}


def test_reader_that_does_not_acknowledge_gets_100_events(reader, channel, tmp_path):
    channel.queue_declare("events", durable=True, arguments=STREAM)
    channel.confirm_delivery()
    for _ in range(200):  # one by one, so that each is a batch
        channel.basic_publish("", "events", b"x")
    frank = reader("frank", edit={ACK: ""}).wait_for("Received", times=100)
    wait_for_position(100, tmp_path / "frank.position")
    assert frank.stop(signal.SIGINT) == 0
    assert len(events(frank)) == 100


def test_stream_requires_a_prefetch_limit(reader):
    alice = reader(edit={QOS: ""})
    assert alice.wait() == 1
    assert "prefetch count is not set" in alice.errors[0]


@pytest.mark.parametrize("offset", [5, *(f"2{unit}" for unit in "YMDhms"), "5"])
def test_offset_is_an_int_and_an_interval_has_a_unit(broker, declare, offset):
    stream = declare({"x-queue-type": "stream"})
    refused = pytest.raises(pika.exceptions.AMQPError, match=r"406|541")
    expected = refused if offset == "5" else contextlib.nullcontext()
    with connect(broker) as connection, expected:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=100)
        channel.basic_consume(stream, print, arguments={"x-stream-offset": offset})


@pytest.mark.parametrize("segment", [{}, {"x-stream-max-segment-size-bytes": 20_000}])
def test_stream_deletes_the_oldest_events_in_whole_segments(channel, declare, segment):
    limit = {"x-queue-type": "stream", "x-max-length-bytes": 100_000}
    stream = declare(limit | segment)
    channel.confirm_delivery()  # one by one, so that each is a batch
    for i in range(100):
        channel.basic_publish("", stream, b"%d %s" % (i, b"x" * 10_000))

    def first_event():
        reader = channel.connection.channel()
        reader.basic_qos(prefetch_count=1)
        _, _, body = next(reader.consume(stream, arguments={"x-stream-offset": 5}))
        reader.close()
        return int(body.split()[0])

    if segment:  # a reader that falls behind resumes at the first event that's left
        wait_until(lambda: first_event() > 50, "deletions", 20)
    else:  # far over the limit, but the first segment isn't full
        assert first_event() == 5


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
        assert len(process.errors) == 1
    broker.start()
    # After a restart, the broker refuses to use a stream for about half a second.
    wait_until(lambda: start(PRODUCER, "end").wait() == 0, "the stream works")
    readers.append(reader().wait_for("'end'"))

    found = []
    for process in readers:
        offsets = [int(line.split(":")[0]) for line in received(process)]
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
        # It continues, or repeats the event that it printed when it was killed.
        again = len(found) - offsets[0]
        assert again in (0, 1)
        found += events(process)[again:]
    confirmed = len(producer.output)
    assert found[:confirmed] == bodies[:confirmed]
    report(f"7 kills: no reader missed any of {confirmed} confirmed events")
