"""advanced/retry: what its scripts and its page say.

Each test waits for its dead letters, so that none can reach the next test.
"""

import random
import signal
import smtplib
import time

import pika
import pytest

from tests.helpers import (
    SETTLED,
    connect,
    documented,
    done,
    edited,
    get,
    received,
    starting,
    wait_for_message_count,
)
from tools.broker import temporary_broker
from tools.common import wait_until
from tools.lessons import LESSONS

PRODUCER, CONSUMER = "advanced/retry/producer.py", "advanced/retry/consumer.py"
DELAYS = {"emails_wait_1s": 1000, "emails_wait_3s": 3000, "emails_wait_9s": 9000}
QUEUES = LESSONS["advanced/retry"].queues
ATTEMPTS = 4
KILL = "os.kill(os.getpid(), 9)"
TIMEOUT = "dead_letter_worker_publisher_confirm_timeout"
# Lines of consumer.py.
ATTEMPT = "send_email(email, attempt)"
PUBLISH = "channel.basic_publish("
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
MANDATORY = "mandatory=True,  # raise an exception if the queue doesn't exist"


def send(start, *emails):
    producer = start(PRODUCER, *emails)
    assert producer.wait() == 0, producer
    return producer


def test_producer_sends_three_emails_by_default(start, channel):
    emails = ["Hello", "Invoice..", "Newsletter...."]
    assert send(start).output == [f" [x] Sent {email!r}" for email in emails]
    assert [get(channel, "emails")[2].decode() for _ in emails] == emails


def test_failing_email_waits_longer_each_time_while_others_pass(start, broker, channel):
    consumer = start(CONSUMER).wait_until_ready()
    send(start, "Newsletter....")
    consumer.wait_for("emails_wait_9s")
    send(start, "Hello", "Short.")
    consumer.wait_for("dead_emails")
    wait_for_message_count(1, channel, "dead_emails")
    assert consumer.stop(signal.SIGINT) == 0

    newsletter = [f"'Newsletter....', attempt {i}" for i in (1, 2, 3, 4)]
    others = ["'Hello', attempt 1", "'Short.', attempt 1", "'Short.', attempt 2"]
    assert received(consumer) == [*newsletter[:3], *others, newsletter[3]]
    assert done(consumer) == ["'Hello'", "'Short.'"]
    reason = "the mail server doesn't answer. Next: "
    lines = [f" [!] Failed 'Newsletter....': {reason}{q}" for q in DELAYS]
    lines.append(f" [!] Failed 'Short.': {reason}emails_wait_1s")
    lines.append(f" [!] Failed 'Newsletter....': {reason}dead_emails")
    assert consumer.errors == lines

    queues = broker.get("queues/%2F?columns=name,arguments")
    arguments = {queue["name"]: queue["arguments"] for queue in queues}
    assert {name: arguments[name]["x-message-ttl"] for name in DELAYS} == DELAYS
    # However often you look at a dead email, it stays.
    assert arguments["dead_emails"]["x-delivery-limit"] == 1_000_000_000


STEPS = {
    "before the attempt": (ATTEMPT, f"{KILL}\n{ATTEMPT}", [1, 2]),
    "before publishing": (PUBLISH, f"{KILL}\n{PUBLISH}", [1, 2]),
    "before acknowledging": (ACK, f"{KILL}\n{ACK}", [1, 2, 2]),
    "after acknowledging": (ACK, f"{ACK}\n{KILL}", [2]),
}


@pytest.mark.parametrize("step", STEPS)
def test_email_is_not_lost_when_the_consumer_is_killed(start, tmp_path, channel, step):
    line, lines, attempts = STEPS[step]
    killed = start(edited(tmp_path, CONSUMER, {line: lines})).wait_until_ready()
    send(start, "Invoice.")
    assert killed.wait() == -signal.SIGKILL

    consumer = start(CONSUMER).wait_for("Done", times=attempts.count(2))
    for queue in QUEUES:
        wait_for_message_count(0, channel, queue)
    assert consumer.stop(signal.SIGINT) == 0
    assert sorted(received(consumer)) == [f"'Invoice.', attempt {i}" for i in attempts]
    assert done(consumer) == ["'Invoice.'"] * attempts.count(2)


def test_email_that_crashes_the_consumer_four_times_is_dead(start, tmp_path, channel):
    buggy = edited(tmp_path, CONSUMER, {ATTEMPT: "raise ValueError"})
    send(start, "Hello")
    for _ in range(ATTEMPTS):
        crashed = start(buggy)
        assert crashed.wait() == 1
        assert received(crashed) == ["'Hello', attempt 1"]
        assert crashed.errors[-1] == "ValueError"
    headers = get(channel, "dead_emails")[1].headers
    assert headers["x-first-death-reason"] == "delivery_limit"


def test_one_email_that_crashes_the_consumer_takes_no_other_with_it(
    start, tmp_path, channel
):
    attempt = f"if email == 'Bomb': {KILL}\n{ATTEMPT}"
    buggy = edited(tmp_path, CONSUMER, {ATTEMPT: attempt})
    send(start, "Bomb", "Hello")
    for _ in range(ATTEMPTS):
        wait_for_message_count(2, channel, "emails")
        assert start(buggy).wait() == -signal.SIGKILL
    start(buggy).wait_for("Done 'Hello'")
    assert get(channel, "dead_emails")[2] == b"Bomb"


def test_retried_email_keeps_what_the_sender_has_set_but_copies_nothing(
    start, channel, declare
):
    copies = declare()
    start(CONSUMER).wait_until_ready()
    properties = pika.BasicProperties(
        content_type="text/plain",
        content_encoding="utf-8",
        delivery_mode=2,
        priority=3,
        expiration="60000",
        correlation_id="c",
        reply_to="r",
        message_id="m",
        timestamp=1_800_000_000,
        type="t",
        user_id="guest",
        app_id="a",
        cluster_id="cluster",
    )
    sent = dict(vars(properties))
    properties.headers = {"trace": "t1", "x-own": 1, "attempt": 4, "CC": [copies]}
    channel.confirm_delivery()
    channel.basic_publish("", "emails", b"Newsletter....", properties)
    retried = get(channel, "dead_emails")[1]
    # basic_get adds these.
    brokers_own = {"x-delivery-count", "x-acquired-count"}
    headers = {k: v for k, v in retried.headers.items() if k not in brokers_own}
    assert headers == {"trace": "t1", "attempt": 5}
    retried.headers = None
    assert vars(retried) == sent
    wait_for_message_count(1, channel, copies)


def test_email_for_a_missing_delay_queue_is_not_acknowledged(start, tmp_path, channel):
    consumer = start(CONSUMER).wait_until_ready()
    channel.queue_delete("emails_wait_1s")
    send(start, "Invoice.")
    assert consumer.wait() == 1
    assert "UnroutableError" in consumer.errors[-1]
    start(CONSUMER).wait_for("Done 'Invoice.'").kill()

    careless = start(edited(tmp_path, CONSUMER, {MANDATORY: ""})).wait_until_ready()
    channel.queue_delete("emails_wait_1s")
    send(start, "Invoice.", "Hello")
    careless.wait_for("Done 'Hello'")
    assert careless.stop(signal.SIGINT) == 0
    remaining = [queue for queue in QUEUES if queue != "emails_wait_1s"]
    for queue in remaining:
        wait_for_message_count(0, channel, queue)


def test_refused_email_is_one_line_and_not_acknowledged(start, broker, channel):
    consumer = start(CONSUMER).wait_until_ready()
    definition = '{"max-length": 1, "overflow": "reject-publish"}'
    broker.ctl("set_policy", "full", "^dead_emails$", definition)
    try:
        properties = pika.BasicProperties(headers={"attempt": ATTEMPTS})
        while consumer.running:
            channel.basic_publish("", "emails", b"Newsletter....", properties)
            channel.connection.process_data_events(time_limit=0.1)
    finally:
        broker.ctl("clear_policy", "full")
    assert consumer.wait() == 1
    reason = documented("The broker refused the message")
    assert consumer.errors[-1] == f" [!] {reason}. Is dead_emails full?"
    assert get(channel, "emails")[2] == b"Newsletter...."


def test_email_that_expires_while_its_queue_is_missing_arrives_later(
    start, broker, channel
):
    # The broker tries every second instead of every three minutes.
    broker.ctl("eval", f"application:set_env(rabbit, {TIMEOUT}, 1000).")
    try:
        consumer = start(CONSUMER).wait_until_ready()
        send(start, "Invoice.")
        consumer.wait_for("emails_wait_1s")
        wait_for_message_count(1, channel, "emails_wait_1s")
        channel.queue_delete("emails")
        assert consumer.wait() == 1
        wait_for_message_count(0, channel, "emails_wait_1s")  # it has expired
        start(CONSUMER).wait_for("'Invoice.', attempt 2")
    finally:
        broker.ctl("eval", f"application:set_env(rabbit, {TIMEOUT}, 180000).")


def test_errors_of_the_mail_library_are_retried():
    assert issubclass(smtplib.SMTPRecipientsRefused, OSError)
    assert issubclass(smtplib.SMTPServerDisconnected, OSError)
    assert issubclass(TimeoutError, OSError)


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_no_email_is_lost_when_consumers_are_killed_at_random(start, broker, report):
    emails = [f"Email {i}" + "." * (i % 5) for i in range(25)]
    send(start, *emails)
    consumers, dead = [start(CONSUMER).wait_until_ready()], []  # declares the queues
    consumers[0].kill()
    with connect(broker) as connection:
        channel = connection.channel()

        def all_are_done_or_dead():
            method, _, body = channel.basic_get("dead_emails", auto_ack=True)
            dead.extend([repr(body.decode())] if method else [])
            return {*done(*consumers), *dead} == set(map(repr, emails))

        while not all_are_done_or_dead():
            consumer = start(CONSUMER)
            consumers.append(consumer)
            lines = random.randrange(12)
            wait_until(
                lambda c=consumer, n=lines: c.count("") >= n or all_are_done_or_dead(),
                "some lines, or all emails done or dead",
                interval=0.01,
            )
            consumer.kill()
    kills, twice = len(consumers), len(done(*consumers)) + len(dead) - len(emails)
    report(f"{kills} kills, {len(emails)} sent, {len(dead)} dead, {twice} twice")


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_waiting_email_survives_when_the_broker_is_killed():
    with temporary_broker() as broker, starting(broker) as start:
        consumer = start(CONSUMER).wait_until_ready()
        time.sleep(SETTLED)  # so that its queues are older than that
        send(start, "Invoice...")
        consumer.wait_for("emails_wait_9s")
        # It's acknowledged once the consumer gets the next one.
        send(start, "Hello")
        consumer.wait_for("Hello")
        broker.kill()
        assert consumer.wait() == 1
        broker.start()

        # As a supervisor would: the queues aren't ready immediately.
        while True:
            consumer = start(CONSUMER)
            wait_until(
                lambda c=consumer: c.count("[*]") or not c.running,
                "consuming, or not running",
            )
            if consumer.running:
                break
        consumer.wait_for("Done 'Invoice...'")
        attempts = [line for line in received(consumer) if "Invoice" in line]
        assert attempts == ["'Invoice...', attempt 4"]
