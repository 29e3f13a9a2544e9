"""advanced/retry: what its scripts and its page say.

Each test waits for its dead letters, so that none can reach the next test.
"""

import signal

import pika
import pytest

from tests.helpers import (
    documented,
    done,
    edited,
    get,
    received,
    run_script,
    wait_for_message_count,
)
from tools.common import wait_until

PRODUCER, CONSUMER = "advanced/retry/producer.py", "advanced/retry/consumer.py"
DELAYS = {"emails_wait_1s": 1000, "emails_wait_3s": 3000, "emails_wait_9s": 9000}
ATTEMPTS = 4
# Lines of consumer.py.
HANDLER = "def on_message(channel, method, properties, body):"
ATTEMPT = "send_email(email, attempt)"
PUBLISH = "channel.basic_publish("
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
MANDATORY = "mandatory=True,  # raise an exception if the queue doesn't exist"


def test_failing_email_waits_longer_each_time_while_others_pass(start, broker, channel):
    """Step 1."""
    consumer = start(CONSUMER).wait_until_ready()
    run_script(start, PRODUCER)
    consumer.wait_for("emails_wait_9s")
    run_script(start, PRODUCER, "Short.")
    consumer.wait_for("dead_emails")
    wait_for_message_count(1, channel, "dead_emails")

    newsletter = [f"'Newsletter....', attempt {i}" for i in (1, 2, 3, 4)]
    others = ["'Short.', attempt 1", "'Short.', attempt 2"]
    lines = [line for line in received(consumer) if line in [*newsletter, *others]]
    assert lines == [*newsletter[:3], *others, newsletter[3]]
    assert done(consumer) == ["'Hello'", "'Invoice..'", "'Short.'"]
    line = " [!] Failed 'Newsletter....': the mail server doesn't answer. Next: "
    lines = [line + queue for queue in [*DELAYS, "dead_emails"]]
    assert [line for line in consumer.errors if "Newsletter" in line] == lines

    queues = broker.get("queues/%2F?columns=name,arguments")
    arguments = {queue["name"]: queue["arguments"] for queue in queues}
    for name, delay in DELAYS.items():
        assert arguments[name]["x-message-ttl"] == delay
        # It isn't lost if the queue emails is missing when it expires.
        assert arguments[name]["x-dead-letter-strategy"] == "at-least-once"
        assert arguments[name]["x-overflow"] == "reject-publish"
    # However often you look at a dead email, it stays.
    assert arguments["dead_emails"]["x-delivery-limit"] == 1_000_000_000


@pytest.mark.parametrize(
    ("line", "attempts"), [(PUBLISH, [1, 2]), (ACK, [1, 2, 2])], ids=["publish", "ack"]
)
def test_email_is_not_lost_when_the_consumer_is_killed_before_that(
    start, tmp_path, line, attempts
):
    kill = f"os.kill(os.getpid(), {signal.SIGKILL:d})\n{line}"
    killed = start(edited(tmp_path, CONSUMER, {line: kill})).wait_until_ready()
    run_script(start, PRODUCER, "Invoice.")
    assert killed.wait() == -signal.SIGKILL

    consumer = start(CONSUMER).wait_for("Done", times=attempts.count(2))
    assert sorted(received(consumer)) == [f"'Invoice.', attempt {i}" for i in attempts]


def test_email_that_crashes_the_consumer_four_times_is_dead_and_no_other(
    start, tmp_path, channel
):
    """Step 4."""
    # Both are in the queue before the first consumer gets one.
    declare_only = edited(tmp_path, CONSUMER, {HANDLER: f"return\n{HANDLER}"})
    run_script(start, declare_only)
    run_script(start, PRODUCER, "Bomb", "Hello")
    attempt = f"if email == 'Bomb': raise ValueError\n{ATTEMPT}"
    buggy = edited(tmp_path, CONSUMER, {ATTEMPT: attempt})
    for _ in range(ATTEMPTS):
        wait_for_message_count(2, channel, "emails")
        crashed = start(buggy)
        assert crashed.wait() == 1
        assert received(crashed) == ["'Bomb', attempt 1"]
        assert crashed.errors[-1] == "ValueError"
    start(buggy).wait_for("Done 'Hello'")
    _, properties, body = get(channel, "dead_emails")
    assert body == b"Bomb"
    assert properties.headers["x-first-death-reason"] == "delivery_limit"


def test_retried_email_keeps_what_the_sender_has_set_but_copies_nothing(
    start, channel, declare
):
    copies = declare()
    start(CONSUMER).wait_until_ready()
    headers = {"trace": "t1", "x-own": 1, "attempt": 4, "CC": [copies]}
    properties = pika.BasicProperties(content_type="text/plain", headers=headers)
    channel.basic_publish("", "emails", b"\xff....", properties)
    _, retried, body = get(channel, "dead_emails")
    assert body == b"\xff...."  # it isn't UTF-8
    assert retried.content_type == "text/plain"
    assert (retried.headers["trace"], retried.headers["attempt"]) == ("t1", 5)
    assert not {"x-own", "CC"} & set(retried.headers)
    wait_for_message_count(1, channel, copies)


def test_email_for_a_missing_queue_is_lost_only_without_mandatory(
    start, tmp_path, channel
):
    """Step 3."""
    careless = start(edited(tmp_path, CONSUMER, {MANDATORY: ""})).wait_until_ready()
    channel.queue_delete("emails_wait_1s")
    run_script(start, PRODUCER, "Lost.", "Hello")
    careless.wait_for("Done 'Hello'").kill()

    consumer = start(CONSUMER).wait_until_ready()
    channel.queue_delete("emails_wait_1s")
    run_script(start, PRODUCER, "Invoice.")
    assert consumer.wait() == 1
    assert "UnroutableError" in consumer.errors[-1]
    last = start(CONSUMER).wait_for("Done 'Invoice.'")
    assert "Lost" not in str(received(consumer, last))


def test_refused_email_is_one_line_and_not_acknowledged(start, tmp_path):
    refuse = f"raise pika.exceptions.NackError([])\n{PUBLISH}"
    consumer = start(edited(tmp_path, CONSUMER, {PUBLISH: refuse})).wait_until_ready()
    run_script(start, PRODUCER, "Invoice.")
    assert consumer.wait() == 1
    reason = documented("The broker refused the message")
    assert consumer.errors[-1] == f" [!] {reason}. Is emails_wait_1s full?"
    start(CONSUMER).wait_for("Done 'Invoice.'")


@pytest.mark.faults
def test_waiting_email_survives_when_the_broker_is_killed(start, broker):
    consumer = start(CONSUMER).wait_until_ready()
    run_script(start, PRODUCER, "Late...")
    # By then, the queues are more than SETTLED seconds old.
    consumer.wait_for("emails_wait_9s")
    # It's acknowledged once the consumer gets the next one.
    run_script(start, PRODUCER, "Hello")
    consumer.wait_for("Done 'Hello'")
    broker.kill()
    assert consumer.wait() == 1
    broker.start()

    supervised = []

    def done_after_a_restart():
        if not supervised or not supervised[-1].running:  # the queues weren't ready
            supervised.append(start(CONSUMER))
        return "'Late...'" in done(*supervised)

    wait_until(done_after_a_restart, "Late...")


def test_timeout_is_retried(start, tmp_path):
    slow = {ATTEMPT: f"if attempt == 1: raise TimeoutError\n{ATTEMPT}"}
    consumer = start(edited(tmp_path, CONSUMER, slow)).wait_until_ready()
    run_script(start, PRODUCER, "Hello")
    consumer.wait_for("Done 'Hello'")
    assert consumer.count("Next: emails_wait_1s") == 1
