"""fanout/: what its comments and its section of the README claim."""

from conftest import received


def test_every_consumer_gets_a_copy(start):
    consumers = [start("fanout/consumer.py") for _ in range(3)]
    for consumer in consumers:
        consumer.ready()
    producer = start("fanout/producer.py")
    assert producer.end() == 0
    assert producer.lines == [" [x] Sent 'info: Hello World!'"]
    assert start("fanout/producer.py", "second").end() == 0
    for consumer in consumers:
        consumer.wait_for("Received", times=2)
        assert consumer.stop() == 0
        assert received(consumer) == ["'info: Hello World!'", "'second'"]


def test_a_late_consumer_gets_nothing_from_before(start):
    early = start("fanout/consumer.py").ready()
    start("fanout/producer.py", "before").end()
    early.wait_for("before")
    late = start("fanout/consumer.py").ready()
    start("fanout/producer.py", "after").end()
    late.wait_for("after")
    assert received(late) == ["'after'"]


def test_a_message_to_nobody_is_reported(start):
    producer = start("fanout/producer.py", "hello?")
    assert producer.end() == 1
    assert producer.lines == []
    assert producer.errors == [" [!] Nobody got 'hello?': no queue is bound to the exchange logs"]


def test_the_queue_of_a_consumer_goes_with_it(start):
    consumer = start("fanout/consumer.py").ready()
    assert consumer.stop() == 0
    assert start("fanout/producer.py").end() == 1
