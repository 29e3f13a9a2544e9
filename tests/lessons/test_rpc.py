"""rpc: what its comments and its page claim."""

import signal

import pika
import pytest

from tests.helpers import (
    QUORUM,
    documented,
    edited,
    get,
    wait_for_message_count,
)

CLIENT, SERVER = "rpc/producer.py", "rpc/consumer.py"
REFUSAL = "error: not a number from 0 to 9999"
BLOCKED = " [!] The broker is low on memory. Waiting."
# Lines of the scripts.
FIRST_CONSUME = "next_reply(0)"
EXPIRATION = "expiration=str(timeout * 1000),"
CALL = "for n, reply in call(channel, arguments.n, arguments.timeout):"
PROPERTIES = "properties=pika.BasicProperties(correlation_id=correlation_id),"
IF_REPLY_TO = "if properties.reply_to:"
ACK = "channel.basic_ack(delivery_tag=method.delivery_tag)"


def fib(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def replies(client):
    return [line for line in client.output if " [.] Got " in line]


def expected(*numbers):
    return [f" [.] Got fib({n}) = {fib(n)}" for n in numbers]


@pytest.fixture
def queue(channel):
    """The queue, as both scripts declare it."""
    channel.queue_declare("rpc_queue", durable=True, arguments=QUORUM)
    return "rpc_queue"


@pytest.fixture
def ask(start, channel, queue):
    """ask([b"832040"]) starts the client and sends these replies to fib(30).

    A reply can also be (body, correlation_id). Returns the client and its request.
    """

    def ask(*bodies, numbers=("30",), timeout="10"):
        client = start(CLIENT, *numbers, "--timeout", timeout)
        method, request, body = get(channel, queue)
        channel.basic_ack(method.delivery_tag)
        assert body == b"30"
        for reply in bodies:
            body, correlation_id = (
                reply if isinstance(reply, tuple) else (reply, request.correlation_id)
            )
            properties = pika.BasicProperties(correlation_id=correlation_id)
            channel.basic_publish("", request.reply_to, body, properties)
        return client, request

    return ask


# Requests and replies.


def test_client_gets_a_reply(start):
    server = start(SERVER).wait_until_ready()
    client = start(CLIENT)
    assert client.wait() == 0
    assert client.output == [" [x] Requesting fib(30)", *expected(30)]
    assert server.output == [" [x] Awaiting RPC requests", " [.] fib(30)"]
    assert client.errors == server.errors == []


def test_clients_send_all_requests_first_and_each_get_their_own_replies(start):
    for _ in range(2):
        start(SERVER).wait_until_ready()
    clients = {n: start(CLIENT, *map(str, (n, 0, n, 9999))) for n in (5, 6, 7)}
    for n, client in clients.items():
        assert client.wait() == 0, client
        requests = [f" [x] Requesting fib({i})" for i in (n, 0, n, 9999)]
        assert client.output[:4] == requests
        assert sorted(replies(client)) == sorted(expected(n, 0, n, 9999))


def test_servers_share_requests_and_replies_come_in_any_order(start):
    """A stopped server holds only the first request (prefetch 1)."""
    slow = start(SERVER).wait_until_ready()
    slow.process.send_signal(signal.SIGSTOP)
    client = start(CLIENT, *map(str, range(10)), "--timeout", "60")
    fast = start(SERVER)
    client.wait_for("Got", times=9)
    slow.process.send_signal(signal.SIGCONT)
    assert client.wait() == 0
    assert replies(client) == expected(*range(1, 10), 0)
    assert (slow.count("fib("), fast.count("fib(")) == (1, 9)


def test_request_waits_for_a_server(start):
    client = start(CLIENT, "5", "--timeout", "60").wait_for("Requesting")
    start(SERVER)
    assert client.wait() == 0


def test_server_refuses_bad_requests_and_continues(start):
    bad = ["banana", "-5", "10000", "1" * 5000, "", "3.5", "1_0", "٣"]
    server = start(SERVER).wait_until_ready()
    client = start(CLIENT, "--", "10", *bad, "11")
    assert client.wait() == 1
    assert replies(client) == expected(10, 11)
    assert client.errors == [f" [!] fib({n}): {REFUSAL!r}" for n in bad]
    assert server.errors == [f" [!] Refused {n!r}" for n in bad]


def test_call_returns_one_reply_as_the_page_shows(start, tmp_path):
    """Also the second time on the same channel."""
    start(SERVER).wait_until_ready()
    one = "[next(call(channel, [n], timeout=10)) for n in arguments.n]"
    client = start(
        edited(tmp_path, CLIENT, {CALL: f"for n, reply in {one}:"}), "5", "6"
    )
    assert client.wait() == 0, client
    assert replies(client) == expected(5, 6)


def test_request_has_an_address_an_id_and_a_limit(ask):
    client, request = ask(b"832040")
    assert client.wait() == 0
    assert request.reply_to.startswith("amq.rabbitmq.reply-to.")
    assert request.correlation_id
    assert request.expiration == "10000"


def test_broker_refuses_a_request_if_nothing_consumes_the_replies(start, tmp_path):
    client = start(edited(tmp_path, CLIENT, {FIRST_CONSUME: ""}))
    assert client.wait() == 1
    (error,) = client.errors
    assert "PRECONDITION_FAILED - fast reply consumer does not exist" in error


def test_client_ignores_replies_that_it_did_not_ask_for(ask):
    client, _ = ask((b"1", "wrong"), (b"2", "\x1b[2J"), b"832040", b"832040")
    assert client.wait() == 0
    assert replies(client) == expected(30)


def test_client_ignores_a_second_reply_while_it_waits(ask, channel, queue):
    client, _ = ask(b"832040", b"3", numbers=("30", "5"))
    _, request, _ = get(channel, queue)
    channel.basic_publish(
        "",
        request.reply_to,
        b"5",
        pika.BasicProperties(correlation_id=request.correlation_id),
    )
    assert client.wait() == 0
    assert replies(client) == expected(30, 5)


def test_reply_that_is_not_a_number_is_printed_escaped(ask):
    client, _ = ask(b"\xff\x1b[2J")
    assert client.wait() == 1
    assert client.errors == [" [!] fib(30): '\ufffd\\x1b[2J'"]


def test_reply_without_the_correlation_id_has_no_request(start, tmp_path):
    server = start(edited(tmp_path, SERVER, {PROPERTIES: ""})).wait_until_ready()
    client = start(CLIENT, "--timeout", "2")
    assert client.wait() == 1
    assert client.errors == [" [!] No reply in 2 s: fib(30)"]
    assert server.output[1:] == [" [.] fib(30)"]


@pytest.mark.parametrize("correlation_id", ["mine", None])
def test_server_replies_to_any_queue_with_or_without_an_id(
    start, channel, queue, correlation_id
):
    """Some of the official tutorials' clients declare their own reply queue."""
    start(SERVER).wait_until_ready()
    mine = channel.queue_declare("", exclusive=True).method.queue
    properties = pika.BasicProperties(reply_to=mine, correlation_id=correlation_id)
    channel.basic_publish("", queue, b"30", properties)
    _, reply, body = get(channel, mine)
    assert (reply.correlation_id, body) == (correlation_id, b"832040")


def test_server_survives_an_address_that_does_not_exist(start, channel, queue):
    """The client of such a request might have disconnected."""
    server = start(SERVER).wait_until_ready()
    for reply_to in ["no-such-queue", "amq.rabbitmq.reply-to.garbage", "x" * 255]:
        properties = pika.BasicProperties(reply_to=reply_to, correlation_id="x")
        channel.basic_publish("", queue, b"30", properties)
    channel.basic_publish("", queue, b"31")  # no reply_to at all
    server.wait_for("fib(31)")
    assert start(CLIENT, "5").wait() == 0
    assert server.running


# Acknowledgements.


def test_server_acknowledges_each_request(start, channel, queue):
    """If it didn't, the broker would redeliver them when the server exits."""
    server = start(SERVER).wait_until_ready()
    assert start(CLIENT, "10", "abc").wait() == 1
    assert server.stop(signal.SIGINT) == 0
    wait_for_message_count(0, channel, queue)
    other = start(SERVER).wait_until_ready()
    assert start(CLIENT, "11").wait() == 0
    assert other.output[1:] == [" [.] fib(11)"]


@pytest.mark.parametrize("before", [IF_REPLY_TO, ACK])
def test_request_of_a_crashed_server_gets_its_reply_from_another(
    start, tmp_path, before
):
    crash = "os.kill(os.getpid(), 9)"
    server = start(edited(tmp_path, SERVER, {before: f"{crash}\n{before}"}))
    server.wait_until_ready()
    client = start(CLIENT, "5", "6", "--timeout", "60")
    assert server.wait() == -signal.SIGKILL
    other = start(SERVER)
    assert client.wait() == 0
    # If it crashed before the ack, the client got two replies and prints one.
    assert replies(client) == expected(5, 6)
    assert other.output[1:] == [" [.] fib(5)", " [.] fib(6)"]


# No reply.


def test_client_lists_the_requests_without_a_reply(ask):
    documented("No reply in … s")
    client, _ = ask(b"832040", numbers=("30", "1", "2"), timeout="2")
    assert client.wait() == 1
    assert replies(client) == expected(30)
    assert client.errors == [" [!] No reply in 2 s: fib(1), fib(2)"]


def test_client_waits_no_longer_than_its_limit(start, channel, queue):
    client = start(CLIENT, "1", "--timeout", "3").wait_for("Requesting")
    assert client.wait(timeout=5) == 1


def test_request_expires_with_its_client(start, tmp_path, channel, queue):
    assert start(CLIENT, "1", "--timeout", "1").wait() == 1
    # It expires a moment later: that time starts when it reaches the queue.
    wait_for_message_count(0, channel, queue)
    copy = edited(tmp_path, CLIENT, {EXPIRATION: ""})
    assert start(copy, "2", "--timeout", "1").wait() == 1
    server = start(SERVER).wait_for("fib(")
    assert server.output[1:] == [" [.] fib(2)"]


def test_client_stops_waiting_when_the_broker_falls_silent(start, broker, queue):
    client = start(CLIENT, "--timeout", "3").wait_for("Requesting")
    with broker.frozen():
        assert client.wait(timeout=20) == 1
        assert client.errors == [" [!] No reply in 3 s: fib(30)"]


def test_client_prints_that_the_broker_is_low_on_memory(start, broker):
    documented("The broker is low on …")
    start(SERVER).wait_until_ready()
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        client = start(CLIENT, "1", "--timeout", "60").wait_for(BLOCKED)
        assert not replies(client)
    finally:
        broker.ctl("set_vm_memory_high_watermark", "0.4")
    assert client.wait() == 0
    assert client.errors == [BLOCKED]
    assert replies(client) == expected(1)


def test_request_that_no_queue_gets_looks_like_a_slow_server(start, tmp_path):
    line = 'routing_key="rpc_queue",'
    copy = edited(tmp_path, CLIENT, {line: 'routing_key="mistyped",'})
    client = start(copy, "--timeout", "1")
    assert client.wait() == 1
    assert client.errors == [" [!] No reply in 1 s: fib(30)"]


# Refusals.


def test_refused_request_prints_the_brokers_reason(start, user):
    client = start(CLIENT, "1", "--timeout", "60", url=user("^$"))
    assert client.wait() == 1
    (error,) = client.errors
    assert "ACCESS_REFUSED" in error


def test_server_that_may_not_reply_prints_the_brokers_reason(start, user):
    # It may consume, but not publish to the default exchange.
    server = start(SERVER, url=user("^rpc_queue$")).wait_until_ready()
    start(CLIENT, "1", "--timeout", "60")
    assert server.wait() == 1
    (error,) = server.errors
    assert "ACCESS_REFUSED" in error
