"""What the scripts with private queues share: fanout, direct, topic and headers."""

import re

import pika
import pytest

from tests.helpers import documented, edited, page_block, run_script
from tools.common import ROOT, wait_until
from tools.lessons import LESSONS

PRIVATE = [name for name, lesson in LESSONS.items() if not lesson.queues]
# Lines of each consumer.
DECLARE = 'result = channel.queue_declare(queue="", exclusive=True)'
NAME = "queue = result.method.queue"


@pytest.mark.parametrize("lesson", PRIVATE)
def test_queue_is_private_and_temporary(start, broker, channel, lesson):
    consumer = start(f"{lesson}/consumer.py").wait_until_ready()
    (queue,) = broker.queues()
    assert queue.startswith("amq.gen-")
    arguments = broker.get(f"queues/%2F/{queue}?columns=arguments")["arguments"]
    assert set(arguments) <= {"x-queue-type"}  # since 4.3, the broker adds it
    auto_ack = f"{queue}\tfalse"  # no acknowledgement is required
    assert auto_ack in broker.ctl("list_consumers", "queue_name", "ack_required")
    # The exchanges of the first lessons aren't durable, as in the official tutorials.
    exchange, _ = LESSONS[lesson].send_to
    durable = broker.get(f"exchanges/%2F/{exchange}")["durable"]
    assert durable == lesson.startswith("advanced/")
    locked = documented("RESOURCE_LOCKED")
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match=locked):
        channel.queue_declare(queue, passive=True)
    consumer.kill()
    wait_until(lambda: not broker.queues(), "no queue")


@pytest.mark.parametrize("lesson", PRIVATE)
def test_consumer_waits_only_once_its_queue_is_bound(start, tmp_path, lesson):
    """A reader takes the line that it prints then as the sign to send."""
    script = f"{lesson}/consumer.py"
    (bind,) = re.findall(r"channel\.queue_bind\(.*\)", (ROOT / script).read_text())
    assert run_script(start, edited(tmp_path, script, {bind: "sys.exit()"})) == []


@pytest.mark.parametrize("lesson", PRIVATE)
def test_producer_reports_a_missing_permission(start, read_only_url, lesson):
    producer = start(f"{lesson}/producer.py", url=read_only_url)
    assert producer.wait() == 1
    (line,) = producer.errors
    documented("ACCESS_REFUSED - … access to … refused")  # 3.10: no "write"
    assert re.search("ACCESS_REFUSED - .*access to exchange .* refused", line)


@pytest.mark.parametrize(
    ("lesson", "message", "reason"),
    [
        ("fanout", [], "no queue is bound. Start consumer.py first."),
        (
            "direct",
            ["eror"],
            "no queue is bound with 'eror'. Check its spelling, or start a consumer.",
        ),
        ("topic", ["cron.a"], "no pattern matches 'cron.a'. Start a consumer."),
        ("advanced/headers", ["x"], "no binding matches {}. Start a consumer."),
    ],
)
def test_message_for_nobody_is_noticed_only_with_mandatory(
    start, tmp_path, lesson, message, reason
):
    """A step of each page."""
    script = f"{lesson}/producer.py"
    producer = start(script, *message)
    assert producer.wait() == 1
    assert producer.output == []
    not_delivered = documented("Not delivered: …")
    assert producer.errors == [f" [!] {not_delivered}{reason}"]
    careless = edited(tmp_path, script, {"mandatory=True,": ""})
    (line,) = run_script(start, careless, *message)
    assert line.startswith(" [x] Sent '")


@pytest.mark.parametrize(
    ("lesson", "other_binding", "message"),
    [
        ("fanout", [], "'info: Hello World!'"),
        ("direct", ["error"], "'info': 'Hello World!'"),
        ("topic", ["kern.*"], "'anonymous.info': 'Hello World!'"),
        ("advanced/headers", ["all", "level=5"], "'Hello World!' {}"),
    ],
)
def test_durable_subscriber_misses_nothing_and_can_share(
    start, channel, tmp_path, lesson, other_binding, message
):
    """The last step of fanout, which works in the others, too."""
    lines = page_block("fanout/README.md", "log_archive")
    script = edited(tmp_path, f"{lesson}/consumer.py", {DECLARE: lines, NAME: ""})

    def consumer_count():
        return channel.queue_declare("log_archive", passive=True).method.consumer_count

    try:
        start(script).wait_until_ready().kill()
        wait_until(lambda: consumer_count() == 0, "no consumer")
        producer = f"{lesson}/producer.py"
        assert run_script(start, producer) == [f" [x] Sent {message}"]
        # The queue keeps its first bindings.
        first = start(script, *other_binding).wait_for(f"Received {message}")
        second = start(script, *other_binding).wait_until_ready()
        for _ in range(2):
            run_script(start, producer)
        first.wait_for(f"Received {message}", times=2)
        second.wait_for(f"Received {message}")
    finally:
        channel.queue_delete("log_archive")
