"""rpc/: what its comments and its page claim."""

import signal

import pika
import pytest
from conftest import wait_for_message_count

CLIENT, SERVER = "rpc/producer.py", "rpc/consumer.py"
QUORUM = {"x-queue-type": "quorum"}
REFUSAL = "error: not a number from 0 to 9999"


def fib(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def answers(client):
    return sorted(line for line in client.output if " [.] Got " in line)


def test_client_gets_an_answer(start):
    server = start(SERVER).wait_until_ready()
    client = start(CLIENT)
    assert client.wait() == 0
    assert client.output == [" [x] Requesting fib(30)", " [.] Got fib(30) = 832040"]
    assert server.output == [" [x] Awaiting RPC requests", " [.] fib(30)"]
    assert client.errors == server.errors == []


def test_all_requests_are_sent_before_the_first_answer_is_printed(start):
    numbers = [7, 0, 1, 100, 7, 9999, 30]
    for _ in range(2):
        start(SERVER).wait_until_ready()
    client = start(CLIENT, *map(str, numbers))
    assert client.wait() == 0
    requests = [f" [x] Requesting fib({n})" for n in numbers]
    assert client.output[: len(numbers)] == requests
    assert answers(client) == sorted(f" [.] Got fib({n}) = {fib(n)}" for n in numbers)


def test_clients_each_get_their_own_answers(start):
    for _ in range(2):
        start(SERVER).wait_until_ready()
    clients = {n: start(CLIENT, str(n), str(n + 10)) for n in range(4)}
    for n, client in clients.items():
        assert client.wait() == 0, client
        expected = [f" [.] Got fib({i}) = {fib(i)}" for i in (n, n + 10)]
        assert answers(client) == sorted(expected)


def test_server_refuses_bad_requests_and_continues(start):
    bad = ["abc", "-5", "10000", "1" * 5000, "", "3.5", "1_0", "٣"]
    server = start(SERVER).wait_until_ready()
    client = start(CLIENT, "--", "10", *bad, "11")
    assert client.wait() == 1
    assert answers(client) == [" [.] Got fib(10) = 55", " [.] Got fib(11) = 89"]
    assert client.errors == [f" [!] fib({n}): {REFUSAL!r}" for n in bad]
    assert server.errors == [f" [!] Refused {n!r}" for n in bad]


def test_server_acknowledges_each_request(start, channel):
    """If it didn't, the broker would redeliver them when the server exits."""
    server = start(SERVER).wait_until_ready()
    assert start(CLIENT, "10", "abc").wait() == 1
    assert server.stop(signal.SIGINT) == 0
    other = start(SERVER).wait_until_ready()
    assert start(CLIENT, "11").wait() == 0
    assert other.output[1:] == [" [.] fib(11)"]


def test_servers_share_the_requests(start, channel):
    servers = [start(SERVER).wait_until_ready() for _ in range(2)]
    servers[0].process.send_signal(signal.SIGSTOP)
    client = start(CLIENT, *map(str, range(10)))
    # The stopped one holds a single request (prefetch 1). The other answers the rest.
    client.wait_for("Got", times=9)
    servers[0].process.send_signal(signal.SIGCONT)
    assert client.wait() == 0
    assert servers[0].count("fib(") == 1


def test_request_of_a_killed_server_is_answered_by_another(start):
    killed = start(SERVER).wait_until_ready()
    killed.process.send_signal(signal.SIGSTOP)
    other = start(SERVER).wait_until_ready()
    client = start(CLIENT, "5", "6", "7").wait_for("Got", times=2)
    killed.kill()
    assert client.wait() == 0
    assert sorted(other.output[1:]) == [" [.] fib(5)", " [.] fib(6)", " [.] fib(7)"]


def test_client_reports_that_no_server_has_ever_run(start):
    client = start(CLIENT, "1", "2", "--timeout", "60")
    assert client.wait() == 1
    assert client.errors == [
        " [!] Not delivered: no queue 'rpc_queue'. Start consumer.py first."
    ]


def test_client_stops_waiting_and_leaves_no_request_behind(start, channel):
    channel.queue_declare("rpc_queue", durable=True, arguments=QUORUM)
    client = start(CLIENT, "1", "2", "--timeout", "2")
    assert client.wait() == 1
    assert client.errors == [" [!] No answer in 2 s: fib(1), fib(2)"]
    # The requests expire a moment later: that time starts when they reach the queue.
    wait_for_message_count(0, channel, "rpc_queue")


def test_timeout_bounds_the_call_while_the_broker_is_silent(start, broker):
    start(SERVER).wait_until_ready()
    broker.freeze()
    try:
        client = start(CLIENT, "--timeout", "1")
        assert client.wait(timeout=10) == 1
        assert "Can't connect" in client.errors[0]
    finally:
        broker.thaw()


def test_timeout_bounds_the_call_when_the_broker_falls_silent(start, broker, channel):
    channel.queue_declare("rpc_queue", durable=True, arguments=QUORUM)
    client = start(CLIENT, "--timeout", "2").wait_for("Requesting")
    broker.freeze()
    try:
        assert client.wait(timeout=10) == 1
        assert "No answer" in client.errors[0] or "Can't connect" in client.errors[0]
    finally:
        broker.thaw()


@pytest.mark.parametrize("seconds", ["0", "nan", "soon"])
def test_invalid_timeout_is_a_usage_error(start, seconds):
    client = start(CLIENT, "--timeout", seconds)
    assert client.wait() == 2
    assert "--timeout" in client.errors[-1]


def test_refused_request_prints_the_brokers_reason(start, user):
    start(SERVER).wait_until_ready()
    client = start(CLIENT, "1", "--timeout", "60", url=user("^$"))
    assert client.wait() == 1
    assert len(client.errors) == 1
    assert "ACCESS_REFUSED" in client.errors[0]


def test_server_that_may_not_answer_prints_the_brokers_reason(start, user):
    # It may consume, but not publish to the default exchange.
    server = start(SERVER, url=user("^rpc_queue$")).wait_until_ready()
    start(CLIENT, "1", "--timeout", "60")
    assert server.wait() == 1
    assert len(server.errors) == 1
    assert "ACCESS_REFUSED" in server.errors[0]


@pytest.fixture
def ask(start, channel):
    """ask(reply) starts the client, and answers its first request as the test wants."""
    channel.queue_declare("rpc_queue", durable=True, arguments=QUORUM)

    def ask(*replies):
        client = start(CLIENT, "30")
        consumed = channel.consume("rpc_queue", auto_ack=True, inactivity_timeout=30)
        _, request, body = next(consumed)
        assert body == b"30"
        for body, correlation_id in replies:
            properties = pika.BasicProperties(
                correlation_id=correlation_id or request.correlation_id
            )
            channel.basic_publish("", request.reply_to, body, properties)
        channel.cancel()
        return client, request

    return ask


def test_client_ignores_answers_it_did_not_ask_for(ask):
    client, _ = ask((b"1", "wrong"), (b"2", "\x1b[2J"), (b"832040", None))
    assert client.wait() == 0
    assert client.output[1:] == [" [.] Got fib(30) = 832040"]


def test_answer_that_is_not_a_number_is_printed_escaped(ask):
    client, _ = ask((b"\xff\x1b[2J", None))
    assert client.wait() == 1
    assert client.errors == [" [!] fib(30): '\ufffd\\x1b[2J'"]


def test_wrong_number_is_not_detected(ask):
    """Both sides have to agree on types, as the page explains."""
    client, _ = ask((b"3736710778780434371", None))
    assert client.wait() == 0


def test_request_uses_direct_reply_to(ask):
    client, request = ask((b"832040", None))
    assert request.reply_to.startswith("amq.rabbitmq.reply-to.")
    assert request.correlation_id
    assert request.expiration == "10000"
    assert client.wait() == 0


def test_server_answers_to_a_queue_as_well(start, channel):
    """Some of the official tutorials' clients declare their own reply queue."""
    start(SERVER).wait_until_ready()
    queue = channel.queue_declare("", exclusive=True).method.queue
    properties = pika.BasicProperties(reply_to=queue, correlation_id="mine")
    channel.basic_publish("", "rpc_queue", b"30", properties)
    _, reply, body = next(channel.consume(queue, auto_ack=True, inactivity_timeout=30))
    assert (reply.correlation_id, body) == ("mine", b"832040")


def test_server_survives_a_reply_queue_that_does_not_exist(start, channel):
    server = start(SERVER).wait_until_ready()
    for reply_to in ["no-such-queue", "amq.rabbitmq.reply-to.garbage", "x" * 255]:
        properties = pika.BasicProperties(reply_to=reply_to, correlation_id="x")
        channel.basic_publish("", "rpc_queue", b"30", properties)
    channel.basic_publish("", "rpc_queue", b"31")  # no reply_to at all
    server.wait_for("fib(31)")
    assert start(CLIENT, "5").wait() == 0
    assert server.running
