"""direct/: what its comments and its section of the README claim."""

from conftest import received


def test_a_message_goes_where_its_routing_key_is_bound(start):
    bindings = [["error"], [], ["info", "debug"], ["Error"], ["err"], [""]]
    consumers = [start("direct/consumer.py", *keys) for keys in bindings]
    for consumer in consumers:
        consumer.ready()
    keys = ["info", "warning", "error", "debug", "Error", "err", "", "errors", "#", "*"]
    producers = [start("direct/producer.py", key, f"with {key}") for key in keys]

    bound = [binding or ["info", "warning", "error"] for binding in bindings]
    for key, producer in zip(keys, producers, strict=True):
        anybody = any(key in binding for binding in bound)
        assert producer.end() == (0 if anybody else 1), str(producer)
        if not anybody:
            assert producer.errors == [
                f" [!] Nobody got 'with {key}': no queue is bound with the key {key!r}"
            ]
    for binding, consumer in zip(bound, consumers, strict=True):
        expected = [f"{key}: 'with {key}'" for key in keys if key in binding]
        consumer.wait_for("Received", times=len(expected))
        assert consumer.stop() == 0
        assert sorted(received(consumer)) == sorted(expected)


def test_info_by_default(start):
    consumer = start("direct/consumer.py").ready()
    producer = start("direct/producer.py")
    assert producer.end() == 0
    assert producer.lines == [" [x] Sent 'info': 'Hello World!'"]
    consumer.wait_for("Received")
    assert received(consumer) == ["info: 'Hello World!'"]


def test_a_key_bound_twice_gives_one_copy(start):
    consumer = start("direct/consumer.py", "info", "info").ready()
    start("direct/producer.py", "info", "once").end()
    start("direct/producer.py", "info", "end").end()
    consumer.wait_for("end")
    assert received(consumer) == ["info: 'once'", "info: 'end'"]
