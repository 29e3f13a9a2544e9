"""Dead letters: what makes one, where it goes, and ways to retry that don't work."""

import pika
import pytest

from tests.helpers import connect, crash_with_message, get, wait_for_message_count
from tools.common import wait_until

AT_LEAST_ONCE = {
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
TIMEOUT = "dead_letter_worker_publisher_confirm_timeout"


def dead_letters_to(queue, **arguments):
    """Return a queue's arguments. x_message_ttl=1 stands for "x-message-ttl": 1."""
    names = {name.replace("_", "-"): value for name, value in arguments.items()}
    return {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue} | names


@pytest.fixture
def publish(broker):
    """publish(queue, body) returns once the queue has the message."""
    with connect(broker) as connection:
        confirming = connection.channel()
        confirming.confirm_delivery()

        def publish(queue, body, **properties):
            message = pika.BasicProperties(**properties)
            confirming.basic_publish("", queue, body, message, mandatory=True)

        yield publish


def reject(channel, queue, requeue=True):
    method, _, _ = get(channel, queue)
    channel.basic_reject(method.delivery_tag, requeue=requeue)


def nack(channel, queue):
    method, _, _ = get(channel, queue)
    channel.basic_nack(method.delivery_tag, requeue=True)


def totals(broker):
    """Return how many messages each queue has, those at consumers and those on their
    way to another queue included. It can be some seconds old.
    """
    table = broker.ctl("list_queues", "--silent", "name", "messages")
    return {name: int(count) for name, count in map(str.split, table.splitlines())}


# The delivery limit.


def deliveries_until_dead(channel, queue, dead, most):
    """Reject the message in the queue until it's in the other one, or often enough."""
    count = 0

    def finished():
        nonlocal count
        method, _, _ = channel.basic_get(queue)
        if method:
            channel.basic_reject(method.delivery_tag, requeue=True)
            count += 1
        return count == most or channel.basic_get(dead)[0]

    wait_until(finished, "a dead letter")
    return count


@pytest.mark.parametrize(
    ("limit", "before_4", "since_4"),
    [(3, 4, 4), (-1, 1, 30), (None, 30, 21), (1_000_000_000, 30, 30)],
)
def test_delivery_limit_counts_rejections(
    declare, broker, channel, publish, limit, before_4, since_4
):
    dead = declare()
    limit = {} if limit is None else {"x_delivery_limit": limit}
    queue = declare(dead_letters_to(dead, **limit))
    publish(queue, b"x")
    expected = before_4 if broker.version < (4,) else since_4
    assert deliveries_until_dead(channel, queue, dead, most=30) == expected


def test_message_without_a_dead_letter_exchange_is_deleted_at_the_default_limit(
    declare, broker, channel, publish
):
    queue = declare()
    publish(queue, b"x")
    for _ in range(21):
        crash_with_message(broker, queue)
    wait_for_message_count(0 if broker.version >= (4,) else 1, channel, queue)


def test_crash_counts_against_every_message_that_the_consumer_holds(
    declare, broker, channel, publish
):
    dead = declare()
    queue = declare(dead_letters_to(dead, x_delivery_limit=1))
    for body in (b"bomb", b"good", b"not held"):
        publish(queue, body)
    for _ in range(2):
        with connect(broker) as connection:
            crashing = connection.channel()
            assert [get(crashing, queue)[2] for _ in range(2)] == [b"bomb", b"good"]
    wait_for_message_count(2, channel, dead)
    wait_for_message_count(1, channel, queue)


def test_nack_does_not_count_since_4_3(declare, broker, channel, publish):
    dead = declare()
    queue = declare(dead_letters_to(dead, x_delivery_limit=1))
    publish(queue, b"x")
    for _ in range(2):
        nack(channel, queue)
    counts = broker.version < (4, 3)
    wait_for_message_count(int(counts), channel, dead)
    wait_for_message_count(int(not counts), channel, queue)


def test_consumer_timeout_does_not_count_since_4_3(declare, broker, channel, publish):
    if broker.version < (4, 3):
        pytest.skip("before 4.3, a queue can't have a consumer timeout that short")
    dead = declare()
    limit = {"x_delivery_limit": 1, "x_consumer_timeout": 1000}
    queue = declare(dead_letters_to(dead, **limit))
    publish(queue, b"x")
    for _ in range(3):
        messages = []
        channel.basic_consume(queue, lambda *message, m=messages: m.append(message))
        # The broker cancels the consumer.
        while channel.consumer_tags:
            channel.connection.process_data_events(time_limit=30)
        assert len(messages) == 1
    wait_for_message_count(1, channel, queue)


# The way to the other queue.


def test_dead_letter_has_the_reason_and_the_queue(declare, channel, publish):
    dead = declare()
    queue = declare(dead_letters_to(dead))
    publish(queue, b"x")
    reject(channel, queue, requeue=False)
    headers = get(channel, dead)[1].headers
    assert headers["x-first-death-reason"] == "rejected"
    assert headers["x-first-death-queue"] == queue


def test_broker_tries_again_every_three_minutes(broker):
    assert broker.ctl("eval", f"application:get_env(rabbit, {TIMEOUT}).") == (
        "{ok,180000}\n"
    )


@pytest.fixture
def three_minutes_are_a_second(broker):
    def set_timeout(milliseconds):
        call = f"application:set_env(rabbit, {TIMEOUT}, {milliseconds})."
        broker.ctl("eval", call)

    set_timeout(1000)
    yield
    set_timeout(180_000)


@pytest.mark.usefixtures("three_minutes_are_a_second")
def test_only_at_least_once_keeps_a_dead_letter_without_a_queue(
    declare, broker, channel, publish
):
    missing = declare()
    channel.queue_delete(missing)
    lost = [
        declare(dead_letters_to(missing)),  # the default is at-most-once
        # at-least-once requires reject-publish.
        declare(dead_letters_to(missing, x_dead_letter_strategy="at-least-once")),
    ]
    kept = declare(dead_letters_to(missing) | AT_LEAST_ONCE)
    for queue in [*lost, kept]:
        publish(queue, queue.encode())
    everything = {lost[0]: 1, lost[1]: 1, kept: 1}
    wait_until(lambda: totals(broker) == everything, everything, interval=1)

    for queue in [*lost, kept]:
        reject(channel, queue, requeue=False)
    left = {lost[0]: 0, lost[1]: 0, kept: 1}
    wait_until(lambda: totals(broker) == left, left, interval=1)

    # It arrives once the queue exists.
    channel.queue_declare(missing, durable=True, arguments={"x-queue-type": "quorum"})
    assert get(channel, missing)[2] == kept.encode()
    assert channel.basic_get(missing)[0] is None


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
    delay_queue = declare(dead_letters_to(target, x_message_ttl=10) | AT_LEAST_ONCE)
    publish(delay_queue, b"x")
    counts = []
    for _ in range(3):
        _, properties, body = get(channel, target)
        counts.append(properties.headers["x-death"][0]["count"])
        publish(delay_queue, body, headers=properties.headers)
    assert counts == ([1, 2, 3] if broker.version < (4,) else [1, 1, 1])


def test_loop_of_two_queues_never_delivers_what_reaches_the_limit(
    declare, broker, channel, publish
):
    def loop(options):
        """Return a queue, and the one where its dead letters wait until they return."""
        limit = {"x-delivery-limit": 1, "x-dead-letter-exchange": "amq.direct"}
        work = declare(limit | options)
        delay_queue = declare(dead_letters_to(work, x_message_ttl=10) | options)
        channel.queue_bind(delay_queue, "amq.direct", work)
        return work, delay_queue

    loops = [loop({}), loop(AT_LEAST_ONCE)]
    for work, _ in loops:
        # What's rejected goes around as often as we like.
        publish(work, b"rejected")
        for _ in range(3):
            reject(channel, work, requeue=False)
        channel.basic_ack(get(channel, work)[0].delivery_tag)
        publish(work, b"crashed")
    (work, delay_queue), (work_2, delay_queue_2) = loops
    everything = {work: 1, delay_queue: 0, work_2: 1, delay_queue_2: 0}
    wait_until(lambda: totals(broker) == everything, everything, interval=1)

    for queue in (work, work_2, work, work_2):
        crash_with_message(broker, queue)
    # The broker drops it or, with at-least-once, keeps it forever.
    left = {work: 0, delay_queue: 0, work_2: 0, delay_queue_2: 1}
    wait_until(lambda: totals(broker) == left, left, interval=1)
    assert [channel.basic_get(queue)[0] for queue in left] == [None] * 4


# advanced/retry: RabbitMQ's own delayed retry, since 4.3.


def delayed(minimum, maximum):
    """Return the arguments of a queue that delays retries, on RabbitMQ 4.3."""
    return {
        "x-delayed-retry-type": "failed",
        "x-delayed-retry-min": minimum,
        "x-delayed-retry-max": maximum,
        "x-delivery-limit": 2,
    }


@pytest.mark.parametrize("give_back", [reject, nack])
def test_delayed_retry_delays_only_what_is_rejected(
    declare, broker, channel, publish, give_back
):
    queue = declare(delayed(500, 500))
    publish(queue, b"failing")
    give_back(channel, queue)
    publish(queue, b"other")
    bodies = [get(channel, queue)[2] for _ in range(2)]
    is_delayed = give_back is reject and broker.version >= (4, 3)
    assert (bodies == [b"other", b"failing"]) == is_delayed


@pytest.mark.parametrize("maximum", [1000, 2000])
def test_delayed_retry_grows_by_the_minimum_up_to_the_maximum(
    declare, broker, channel, publish, maximum
):
    queue = declare(delayed(1000, maximum))
    publish(queue, b"second")
    reject(channel, queue)
    second, _, _ = get(channel, queue)
    publish(queue, b"first")
    first, _, _ = get(channel, queue)

    # One is rejected for the second time, and then another for the first time.
    channel.basic_reject(second.delivery_tag, requeue=True)
    channel.basic_reject(first.delivery_tag, requeue=True)
    bodies = [get(channel, queue)[2] for _ in range(2)]
    grows = maximum > 1000 and broker.version >= (4, 3)
    assert (bodies == [b"first", b"second"]) == grows


def test_delivery_limit_ends_delayed_retries(declare, channel, publish):
    dead = declare()
    queue = declare(delayed(10, 10) | dead_letters_to(dead))
    publish(queue, b"failing")
    for _ in range(3):
        reject(channel, queue)
    assert get(channel, dead)[2] == b"failing"
