"""Dead letters: what makes one, where it goes, and ways to retry that don't work."""

import pika
import pytest

from tests.helpers import QUORUM, get

AT_LEAST_ONCE = {
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
TIMEOUT = "dead_letter_worker_publisher_confirm_timeout"


def dead_letters_to(queue):
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}


@pytest.fixture
def publish(channel):
    """publish(queue, body) returns once the queue has the message."""
    channel.confirm_delivery()

    def publish(queue, body, **properties):
        message = pika.BasicProperties(**properties)
        channel.basic_publish("", queue, body, message, mandatory=True)

    return publish


def reject(channel, queue, requeue=True):
    method, _, body = get(channel, queue)
    channel.basic_reject(method.delivery_tag, requeue=requeue)
    return body


# The delivery limit.


@pytest.mark.parametrize(
    # The deliveries, by the first version that has as many.
    ("method", "limit", "deliveries"),
    [
        ("basic_reject", None, {(3, 10): 30, (4, 0): 21}),
        ("basic_reject", 3, {(3, 10): 4}),
        ("basic_reject", -1, {(3, 10): 1, (4, 0): 30}),
        ("basic_reject", 1_000_000_000, {(3, 10): 30}),
        ("basic_nack", 3, {(3, 10): 4, (4, 3): 30}),
    ],
)
def test_message_is_deleted_at_the_delivery_limit(
    declare, broker, channel, publish, method, limit, deliveries
):
    queue = declare(limit and {"x-delivery-limit": limit})
    publish(queue, b"x")
    count = 0
    while count < 30 and (message := channel.basic_get(queue)[0]):
        getattr(channel, method)(message.delivery_tag, requeue=True)
        count += 1
    assert count == deliveries[max(v for v in deliveries if v <= broker.version)]


# The way to the other queue.


def test_only_at_least_once_keeps_a_dead_letter_without_a_queue(
    declare, broker, channel, publish
):
    missing = declare()
    channel.queue_delete(missing)
    three_minutes = broker.ctl("eval", f"application:get_env(rabbit, {TIMEOUT}).")
    assert three_minutes == "{ok,180000}\n"
    # New queues will try every second instead.
    broker.ctl("eval", f"application:set_env(rabbit, {TIMEOUT}, 1000).")
    try:
        # The default is at-most-once, and at-least-once needs reject-publish.
        strategies = [{}, {"x-dead-letter-strategy": "at-least-once"}, AT_LEAST_ONCE]
        queues = [declare(dead_letters_to(missing) | s) for s in strategies]
        for queue in queues:
            publish(queue, queue.encode())
            reject(channel, queue, requeue=False)
            assert channel.basic_get(queue)[0] is None
        # It arrives once the queue exists.
        channel.queue_declare(missing, durable=True, arguments=QUORUM)
        assert get(channel, missing)[2] == queues[2].encode()
        assert channel.basic_get(missing)[0] is None
    finally:
        broker.ctl("eval", f"application:set_env(rabbit, {TIMEOUT}, 180000).")


# advanced/retry: ways that are simpler, but don't work.


def test_one_queue_for_all_delays_holds_up_the_shorter(declare, channel, publish):
    target = declare()
    mixed = declare(dead_letters_to(target) | AT_LEAST_ONCE)
    for delay in ("1500", "10"):
        publish(mixed, delay.encode(), expiration=delay)
    assert [get(channel, target)[2] for _ in range(2)] == [b"1500", b"10"]


def test_x_death_counts_a_message_that_is_published_again_only_before_4(
    declare, broker, channel, publish
):
    target = declare()
    delay_queue = declare(dead_letters_to(target) | {"x-message-ttl": 10})
    publish(delay_queue, b"x")
    counts = []
    for _ in range(3):
        _, properties, body = get(channel, target)
        counts.append(properties.headers["x-death"][0]["count"])
        publish(delay_queue, body, headers=properties.headers)
    assert counts == ([1, 2, 3] if broker.version < (4,) else [1, 1, 1])


@pytest.mark.parametrize("strategy", [{}, AT_LEAST_ONCE], ids=["most", "least"])
def test_loop_of_two_queues_never_delivers_what_reaches_the_limit(
    declare, channel, publish, strategy
):
    limit = {"x-delivery-limit": 1, "x-dead-letter-exchange": "amq.direct"}
    work = declare(limit | strategy)
    delay_queue = declare(dead_letters_to(work) | {"x-message-ttl": 10} | strategy)
    channel.queue_bind(delay_queue, "amq.direct", work)
    publish(work, b"at the limit")
    for _ in range(2):
        reject(channel, work)  # it counts, as a crash does
    # What's rejected without requeue goes around behind it as often as we like.
    publish(work, b"rejected")
    bodies = {reject(channel, work, requeue=False) for _ in range(3)}
    assert bodies == {b"rejected"}


@pytest.mark.parametrize("method", ["basic_reject", "basic_nack"])
def test_delayed_retry_delays_only_what_is_rejected(
    declare, broker, channel, publish, method
):
    limits = {"x-delayed-retry-min": 1000, "x-delayed-retry-max": 9000}
    queue = declare({"x-delayed-retry-type": "failed"} | limits)
    publish(queue, b"failing")
    getattr(channel, method)(get(channel, queue)[0].delivery_tag)
    publish(queue, b"other")
    delays = method == "basic_reject" and broker.version >= (4, 3)
    expected = [b"other", b"failing"] if delays else [b"failing", b"other"]
    assert [get(channel, queue)[2] for _ in range(2)] == expected
