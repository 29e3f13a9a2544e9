"""fanout: its binding. The rest of its page: tests/scripts/test_exchanges.py."""

from tests.helpers import edited, received, run_script

PRODUCER, CONSUMER = "fanout/producer.py", "fanout/consumer.py"
BIND = 'channel.queue_bind(queue=queue, exchange="logs")'


def test_queue_gets_a_copy_only_from_when_it_is_bound(start, broker, channel, tmp_path):
    """Steps 1 and 2."""
    unbound = start(edited(tmp_path, CONSUMER, {BIND: ""})).wait_until_ready()
    (queue,) = broker.queues()
    early = start(CONSUMER).wait_until_ready()
    run_script(start, PRODUCER, "before")
    late = start(CONSUMER).wait_until_ready()
    channel.basic_publish("logs", "an ignored key", b"after")
    channel.basic_publish("", queue, b"to the queue")
    for consumer, messages in [
        (early, ["'before'", "'after'"]),
        (late, ["'after'"]),
        (unbound, ["'to the queue'"]),
    ]:
        consumer.wait_for(messages[-1])
        assert received(consumer) == messages
