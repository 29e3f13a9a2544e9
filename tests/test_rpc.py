"""rpc/: what its comments and its section of the README claim."""

import signal

import pika
import pytest


def fib(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def test_ask_and_get_the_answer(start):
    server = start("rpc/consumer.py").ready()
    client = start("rpc/producer.py")
    assert client.end() == 0
    assert client.lines == [" [x] Requesting fib(30)", f" [.] Got fib(30) = {fib(30)}"]
    assert server.stop() == 0
    assert server.lines[1:] == [" [.] fib(30)"]
    assert client.errors == server.errors == []


def test_requests_are_in_flight_together_and_answers_find_theirs(start):
    numbers = [7, 0, 1, 100, 7, 9999, 30]
    for _ in range(2):
        start("rpc/consumer.py").ready()
    client = start("rpc/producer.py", *map(str, numbers))
    assert client.end() == 0
    assert client.lines[: len(numbers)] == [f" [x] Requesting fib({n})" for n in numbers]
    assert sorted(client.lines[len(numbers) :]) == sorted(
        f" [.] Got fib({n}) = {fib(n)}" for n in numbers
    )


def test_ten_clients_at_once_each_get_their_own_answers(start):
    for _ in range(2):
        start("rpc/consumer.py").ready()
    asked = {start("rpc/producer.py", str(n), str(n + 10)): (n, n + 10) for n in range(10)}
    for client, numbers in asked.items():
        assert client.end() == 0, str(client)
        assert sorted(client.lines[2:]) == sorted(f" [.] Got fib({n}) = {fib(n)}" for n in numbers)


@pytest.mark.parametrize("bad", ["abc", "-5", "10000", "1" * 5000, "", "3.5", "1_0", "٣", "\x1b"])
def test_a_bad_request_is_refused_and_the_server_lives_on(start, bad):
    server = start("rpc/consumer.py").ready()
    client = start("rpc/producer.py", "10", bad)
    assert client.end() == 1
    assert f" [.] Got fib(10) = {fib(10)}" in client.lines
    (complaint,) = client.errors
    assert complaint.endswith("was refused: 'not a whole number from 0 to 9999'")
    assert start("rpc/producer.py", "11").end() == 0
    assert server.errors == []


def test_what_has_been_answered_is_not_handed_out_again(start):
    server = start("rpc/consumer.py").ready()
    assert start("rpc/producer.py", "10", "abc").end() == 1
    assert server.stop() == 0
    next_one = start("rpc/consumer.py").ready()
    assert start("rpc/producer.py", "11").end() == 0
    assert next_one.stop() == 0
    assert next_one.lines[1:] == [" [.] fib(11)"]


def test_with_no_server_ever_there_it_says_so_at_once(start):
    client = start("rpc/producer.py", "1", "2", "--timeout", "60")
    assert client.end() == 1
    assert client.errors == [
        f" [!] fib({n}) reached no server: there is no queue rpc_queue" for n in (1, 2)
    ]


def test_with_no_server_left_it_says_so_in_time_and_leaves_no_request_behind(start):
    server = start("rpc/consumer.py").ready()
    assert server.stop() == 0
    client = start("rpc/producer.py", "1", "2", "--timeout", "1")
    assert client.end() == 1
    assert client.errors == [f" [!] fib({n}) had no answer in 1 s" for n in (1, 2)]
    late = start("rpc/consumer.py").ready()
    assert start("rpc/producer.py", "3").end() == 0
    assert late.stop() == 0
    assert late.lines[1:] == [" [.] fib(3)"]


def test_a_request_outlives_its_killed_server(start):
    doomed = start("rpc/consumer.py").ready()
    doomed.process.send_signal(signal.SIGSTOP)
    other = start("rpc/consumer.py").ready()
    client = start("rpc/producer.py", "5", "6", "7")
    client.wait_for("Got")  # by the other one; the first request of two is with the stopped one
    doomed.kill()
    assert client.end() == 0
    assert other.stop() == 0
    assert sorted(other.lines[1:]) == [" [.] fib(5)", " [.] fib(6)", " [.] fib(7)"]


def test_a_server_may_be_stopped_in_the_middle_of_an_answer(start):
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start("rpc/consumer.py").ready()
        client = start("rpc/producer.py", *["0"] * 2000, "--timeout", "60")
        server.wait_for("fib(0)", times=100)
        assert server.stop(number) == 0
        assert server.errors == []
        client.kill()


def test_a_request_that_the_broker_refuses_is_said_at_once(start, broker):
    start("rpc/consumer.py").ready()
    broker.ctl("add_user", "mute", "secret")
    try:
        broker.ctl("set_permissions", "mute", ".*", "^$", ".*")
        url = broker.url.replace("guest:guest", "mute:secret")
        client = start("rpc/producer.py", "1", "--timeout", "60", url=url)
        assert client.end() == 1
    finally:
        broker.ctl("delete_user", "mute")
    assert client.errors == [" [!] fib(1) was refused by the broker, whose log says why"]


class TestAgainstAnotherServer:
    """rpc/producer.py, with the test as the server."""

    @pytest.fixture
    def ask(self, start, channel):
        channel.queue_declare("rpc_queue", durable=True, arguments={"x-queue-type": "quorum"})

        def ask(answer, *arguments):
            """Run the client; answer(request, reply) sees its first request and replies at will."""
            client = start("rpc/producer.py", *arguments)
            method, properties, _ = next(channel.consume("rpc_queue", inactivity_timeout=30))
            channel.basic_ack(method.delivery_tag)

            def reply(body, correlation_id=properties.correlation_id, **more):
                channel.basic_publish(
                    exchange="",
                    routing_key=properties.reply_to,
                    body=body,
                    properties=pika.BasicProperties(correlation_id=correlation_id, **more),
                )

            answer(properties, reply)
            client.end()
            return client

        return ask

    def test_a_reply_that_nobody_asked_for_is_ignored(self, ask):
        def answer(request, reply):
            reply(b"1", correlation_id="wrong")
            reply(b"2", correlation_id=None)
            reply(b"3", correlation_id="\x1b[2J")
            reply(b"832040")

        client = ask(answer, "30")
        assert client.process.returncode == 0
        assert client.lines[-1] == " [.] Got fib(30) = 832040"
        assert client.count("Ignored") == 3

    def test_a_reply_that_is_no_number_is_an_error(self, ask):
        client = ask(lambda request, reply: reply(b"\xff\x1b[2J"), "30")
        assert client.process.returncode == 1
        assert client.errors == [" [!] fib(30) was refused: '\ufffd\\x1b[2J'"]

    def test_requests_are_as_the_official_tutorials_have_them(self, ask):
        seen = []

        def answer(request, reply):
            seen.append(request)
            reply(b"832040")

        ask(answer)
        assert seen[0].correlation_id
        assert seen[0].reply_to.startswith("amq.rabbitmq.reply-to.")


def test_the_server_answers_the_official_tutorials_clients(start, channel):
    start("rpc/consumer.py").ready()
    queue = channel.queue_declare("", exclusive=True).method.queue
    properties = pika.BasicProperties(reply_to=queue, correlation_id="mine")
    channel.basic_publish("", "rpc_queue", b"30", properties)
    _, properties, body = next(channel.consume(queue, auto_ack=True, inactivity_timeout=30))
    assert (properties.correlation_id, body) == ("mine", b"832040")
