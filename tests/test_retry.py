"""advanced/retry: what its scripts and its page say, and the ways that don't work."""

import itertools
import random
import signal
import time
import uuid

import pika
import pytest
from broker import temporary_broker, wait_until
from conftest import (
    crash_with_message,
    done,
    edited,
    get,
    received,
    starting,
    wait_for_message_count,
)
from lessons import LESSONS

PRODUCER, CONSUMER = "advanced/retry/producer.py", "advanced/retry/consumer.py"
WAIT_QUEUES = ["emails_wait_1s", "emails_wait_3s", "emails_wait_9s"]
QUEUES = LESSONS["advanced/retry"].queues
KILL = "os.kill(os.getpid(), 9)"
# Lines of consumer.py.
ATTEMPT = "send_email(email, attempt)"
PUBLISH = 'channel.basic_publish("", queue, body, properties, mandatory=True)'
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"
AT_LEAST_ONCE = {
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}


def send(start, *emails):
    producer = start(PRODUCER, *emails)
    assert producer.wait() == 0, producer
    return producer


@pytest.fixture
def declare(broker, channel):
    """declare(arguments) creates a quorum queue for this test. Returns its name.

    A dead letter that's on its way when a test ends must not reach the next test, so
    no two tests use the same name.
    """
    names = []

    def declare(arguments, name=None):
        name = name or f"test-{uuid.uuid4()}"
        names.append(name)
        arguments = {"x-queue-type": "quorum"} | arguments
        channel.queue_declare(name, durable=True, arguments=arguments)
        return name

    channel.confirm_delivery()
    yield declare
    for name in names:
        channel.queue_delete(name)


def dead_letters_to(queue, **arguments):
    """Return a queue's arguments. x_message_ttl=1 stands for "x-message-ttl": 1."""
    names = {name.replace("_", "-"): value for name, value in arguments.items()}
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue} | names


def test_failing_email_is_retried_after_each_delay_while_others_pass(
    start, channel, report
):
    lines = []
    consumer = start(
        CONSUMER, on_line=lambda line: lines.append((time.monotonic(), line))
    ).wait_until_ready()
    assert send(start, "Newsletter....").output == [" [x] Sent 'Newsletter....'"]
    consumer.wait_for("emails_wait_9s")
    begin = time.monotonic()
    others = [f"Other {i}" for i in range(100)]
    send(start, *others)
    consumer.wait_for("Done 'Other", times=100)
    seconds = time.monotonic() - begin
    assert get(channel, "dead_emails")[2] == b"Newsletter...."
    assert consumer.stop(signal.SIGINT) == 0

    attempts = [f"'Newsletter....', attempt {i}" for i in (1, 2, 3, 4)]
    passed = [f"{other!r}, attempt 1" for other in others]
    assert received(consumer) == [*attempts[:3], *passed, attempts[3]]
    assert sorted(done(consumer)) == sorted(map(repr, others))
    assert consumer.errors == [
        " [!] Failed 'Newsletter....': the mail server doesn't answer. Next: " + queue
        for queue in [*WAIT_QUEUES, "dead_emails"]
    ]

    times = [moment for moment, line in lines if "Received 'Newsletter" in line]
    gaps = [f"{b - a:.2f}" for a, b in itertools.pairwise(times)]
    report(
        f"gaps of {', '.join(gaps)} s between 4 attempts, "
        f"100 others sent and done in {seconds:.2f} s in between"
    )


def test_producer_sends_three_emails_by_default(start, channel):
    emails = ["Hello", "Invoice..", "Newsletter...."]
    assert send(start).output == [f" [x] Sent {email!r}" for email in emails]
    bodies = [get(channel, "emails")[2].decode() for _ in emails]
    assert bodies == emails


def test_long_wait_does_not_hold_up_a_shorter_one(start, channel):
    consumer = start(CONSUMER).wait_until_ready()
    third = pika.BasicProperties(headers={"attempt": 3})
    channel.basic_publish("", "emails", b"Long...", third)
    consumer.wait_for("emails_wait_9s")
    send(start, "Short.")
    consumer.wait_for("Done 'Short.'")
    assert consumer.count("Done 'Long...'") == 0


def test_one_queue_for_all_delays_holds_up_the_shorter(declare, channel):
    target = declare({})
    mixed = declare(AT_LEAST_ONCE | dead_letters_to(target))
    for delay in ("1500", "10"):
        properties = pika.BasicProperties(expiration=delay)
        channel.basic_publish("", mixed, delay.encode(), properties, mandatory=True)
    bodies = [get(channel, target)[2] for _ in range(2)]
    assert bodies == [b"1500", b"10"]


def test_waiting_email_has_our_header_and_the_last_wait_in_x_death(
    start, tmp_path, channel
):
    killed = start(edited(tmp_path, CONSUMER, ACK, ACK, f"if attempt == 2: {KILL}"))
    send(start, "Invoice...")
    assert killed.wait() == -signal.SIGKILL
    headers = get(channel, "emails")[1].headers
    assert headers["attempt"] == 3
    assert [(d["queue"], d["reason"], d["count"]) for d in headers["x-death"]] == [
        ("emails_wait_3s", "expired", 1)
    ]
    # The broker hasn't counted the two failed attempts.
    assert headers.get("x-delivery-count", 0) == 0


def test_x_death_of_a_republished_message_depends_on_the_version(
    declare, channel, broker
):
    target = declare({})
    waiting = declare(AT_LEAST_ONCE | dead_letters_to(target, x_message_ttl=10))
    channel.basic_publish("", waiting, b"x", mandatory=True)
    counts = []
    for _ in range(3):
        method, properties, body = get(channel, target)
        counts.append(properties.headers["x-death"][0]["count"])
        channel.basic_publish("", waiting, body, properties, mandatory=True)
        channel.basic_ack(method.delivery_tag)
    assert counts == ([1, 2, 3] if broker.before(4) else [1, 1, 1])


STEPS = {
    "before the attempt": (ATTEMPT, [KILL, ATTEMPT], [1, 2]),
    "before publishing": (PUBLISH, [KILL, PUBLISH], [1, 2]),
    "before acknowledging": (ACK, [KILL, ACK], [1, 2, 2]),
    "after acknowledging": (ACK, [ACK, KILL], [2]),
}


@pytest.mark.parametrize("step", STEPS)
def test_email_is_not_lost_when_the_consumer_is_killed(start, tmp_path, channel, step):
    line, lines, attempts = STEPS[step]
    killed = start(edited(tmp_path, CONSUMER, line, *lines)).wait_until_ready()
    send(start, "Invoice.")
    assert killed.wait() == -signal.SIGKILL

    consumer = start(CONSUMER).wait_for("Done", times=attempts.count(2))
    for queue in QUEUES:
        wait_for_message_count(0, channel, queue)
    assert consumer.stop(signal.SIGINT) == 0
    assert sorted(received(consumer)) == [f"'Invoice.', attempt {i}" for i in attempts]
    assert done(consumer) == ["'Invoice.'"] * attempts.count(2)


def test_email_that_kills_the_consumer_four_times_is_dead(start, tmp_path, channel):
    bomb = edited(tmp_path, CONSUMER, ATTEMPT, f"if email == 'Bomb': {KILL}", ATTEMPT)
    send(start, "Bomb", "Hello")
    for remaining in (2, 2, 2, 1):
        killed = start(bomb)
        assert killed.wait() == -signal.SIGKILL
        assert received(killed) == ["'Bomb', attempt 1"]
        wait_for_message_count(remaining, channel, "emails")
    consumer = start(CONSUMER).wait_for("Done")
    assert received(consumer) == ["'Hello', attempt 1"]
    _, properties, body = get(channel, "dead_emails")
    assert body == b"Bomb"
    assert properties.headers["x-first-death-reason"] == "delivery_limit"


def test_retried_email_keeps_the_senders_headers_only(start, channel):
    start(CONSUMER).wait_until_ready()
    headers = {"trace": "t1", "x-own": "dropped", "attempt": 4}
    properties = pika.BasicProperties(headers=headers)
    channel.basic_publish("", "emails", b"Newsletter....", properties)
    _, properties, _ = get(channel, "dead_emails")
    assert properties.headers.pop("x-delivery-count", 0) == 0  # the broker's own
    assert properties.headers == {"trace": "t1", "attempt": 5}


@pytest.mark.parametrize("prefetch", [1, 2])
def test_crash_counts_against_all_emails_that_a_consumer_holds(
    start, broker, channel, prefetch
):
    start(CONSUMER).wait_until_ready().kill()
    send(start, "Bad", "Good")
    for _ in range(4):
        with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
            crashing = connection.channel()
            crashing.basic_qos(prefetch_count=prefetch)
            for method, _, _ in crashing.consume("emails"):
                if method.delivery_tag == prefetch:
                    break
            connection.close()
    wait_for_message_count(prefetch, channel, "dead_emails")
    wait_for_message_count(2 - prefetch, channel, "emails")


def test_bug_is_a_traceback_and_the_email_is_not_retried_later(
    start, tmp_path, channel
):
    buggy = start(edited(tmp_path, CONSUMER, ATTEMPT, "email.no_such_method()"))
    send(start, "Hello")
    assert buggy.wait() == 1
    assert "AttributeError" in buggy.errors[-1]
    assert buggy.count("email.no_such_method()")
    wait_for_message_count(1, channel, "emails")


def test_message_of_a_queue_with_the_default_limit_does_not_survive_25_looks(
    declare, broker, channel
):
    dead = declare({})
    channel.basic_publish("", dead, b"Dead", mandatory=True)
    survives = broker.before(4)
    for _ in range(25 if survives else 21):
        crash_with_message(broker, dead)
    wait_for_message_count(1 if survives else 0, channel, dead)


@pytest.mark.parametrize("strategy", ["at-most-once", "at-least-once"])
def test_dead_letter_loop_retries_what_is_rejected_and_loses_what_is_over_the_limit(
    declare, broker, channel, strategy
):
    work, waiting = f"work_{strategy}", f"waiting_{strategy}"
    options = AT_LEAST_ONCE if strategy == "at-least-once" else {}
    limit = {"x-delivery-limit": 3}
    declare(options | dead_letters_to(waiting) | limit, work)
    declare(options | dead_letters_to(work, x_message_ttl=10), waiting)
    channel.basic_publish("", work, b"x", mandatory=True)
    for _ in range(5):
        method, _, _ = get(channel, work)
        channel.basic_nack(method.delivery_tag, requeue=False)
    method, _, _ = get(channel, work)
    channel.basic_ack(method.delivery_tag)

    channel.basic_publish("", work, b"y", mandatory=True)
    for _ in range(4):
        crash_with_message(broker, work)

    def broker_has_found_the_cycle():
        lines = [line for line in broker.log().splitlines() if strategy in line]
        return any("cycle" in line for line in lines)

    wait_until(broker_has_found_the_cycle, "a warning in the broker's log", 30)
    assert channel.basic_get(work)[0] is None
    assert channel.basic_get(waiting)[0] is None

    # Nothing is dropped with at-least-once, but nothing gets it, either.
    remaining = "1" if strategy == "at-least-once" else "0"

    def message_total_is_right():
        table = broker.ctl("list_queues", "--silent", "name", "messages").splitlines()
        return dict(line.split() for line in table)[waiting] == remaining

    wait_until(message_total_is_right, f"{remaining} in {waiting}", 30, interval=2)


def delayed(minimum, maximum):
    """Return the arguments of a queue that delays retries, on RabbitMQ 4.3."""
    return {
        "x-delayed-retry-type": "failed",
        "x-delayed-retry-min": minimum,
        "x-delayed-retry-max": maximum,
        "x-delivery-limit": 4,
    }


@pytest.mark.parametrize("answer", ["reject", "nack"])
def test_delayed_retry_of_the_broker_delays_only_what_is_rejected(
    declare, channel, broker, answer
):
    queue = declare(delayed(1000, 1000))
    channel.basic_publish("", queue, b"failing", mandatory=True)
    method, _, _ = get(channel, queue)
    if answer == "reject":
        channel.basic_reject(method.delivery_tag, requeue=True)
    else:
        channel.basic_nack(method.delivery_tag, requeue=True)
    channel.basic_publish("", queue, b"other", mandatory=True)
    bodies = [get(channel, queue)[2] for _ in range(2)]
    is_delayed = answer == "reject" and not broker.before(4, 3)
    assert (bodies == [b"other", b"failing"]) == is_delayed


@pytest.mark.parametrize("maximum", [1000, 2000])
def test_delayed_retry_of_the_broker_grows_up_to_its_maximum(
    declare, channel, broker, maximum
):
    queue = declare(delayed(1000, maximum))
    channel.basic_publish("", queue, b"second", mandatory=True)
    method, _, _ = get(channel, queue)
    channel.basic_reject(method.delivery_tag, requeue=True)
    second, _, _ = get(channel, queue)
    channel.basic_publish("", queue, b"first", mandatory=True)
    first, _, _ = get(channel, queue)

    # One is rejected for the second time, and then another for the first time.
    channel.basic_reject(second.delivery_tag, requeue=True)
    channel.basic_reject(first.delivery_tag, requeue=True)
    bodies = [get(channel, queue)[2] for _ in range(2)]
    grows = maximum > 1000 and not broker.before(4, 3)
    assert (bodies == [b"first", b"second"]) == grows


def test_delayed_retry_of_the_broker_ends_at_the_delivery_limit(
    declare, channel, report
):
    dead = declare({})
    queue = declare(delayed(400, 1000) | dead_letters_to(dead))
    channel.basic_publish("", queue, b"failing", mandatory=True)
    times = []
    for _ in range(5):
        method, _, _ = get(channel, queue)
        times.append(time.monotonic())
        channel.basic_reject(method.delivery_tag, requeue=True)
    assert get(channel, dead)[2] == b"failing"
    gaps = [f"{b - a:.1f}" for a, b in itertools.pairwise(times)]
    report(f"min 0.4 s, max 1 s: gaps of {', '.join(gaps)} s between 5 attempts")


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_no_email_is_lost_when_consumers_are_killed_at_random(start, broker, report):
    emails = [f"Email {i}" + "." * (i % 5) for i in range(25)]
    send(start, *emails)
    consumers, dead = [start(CONSUMER).wait_until_ready()], []  # declares the queues
    consumers[0].kill()
    with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
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
        send(start, "Invoice...")
        # By then the queues are 4 s old. Younger ones can lose messages in a kill.
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
            consumer.wait_until(
                lambda c=consumer: c.count("[*]") or not c.running, consumer
            )
            if consumer.running:
                break
        consumer.wait_for("Done 'Invoice...'")
        attempts = [line for line in received(consumer) if "Invoice" in line]
        assert attempts == ["'Invoice...', attempt 4"]
