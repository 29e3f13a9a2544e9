"""rpc: what its comments and its page claim."""

import signal
import uuid

import pika

from tests.helpers import documented, edited, get, run_script, wait_for_message_count

CLIENT, SERVER = "rpc/producer.py", "rpc/consumer.py"
REFUSAL = "error: not a number from 0 to 9999"
BLOCKED = " [!] The broker is low on memory. Waiting."
# Lines of the scripts.
FIRST_CONSUME = "next_reply(0)"
EXPIRATION = "expiration=str(timeout * 1000),"
CALL = "for n, reply in call(channel, args.n, args.timeout):"
PROPERTIES = "properties=pika.BasicProperties(correlation_id=correlation_id),"
IF_REPLY_TO = "if properties.reply_to:"


def fib(n: int) -> int:
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def replies(client):
    return [line for line in client.output if " [.] Got " in line]


def expected(*numbers):
    return [f" [.] Got fib({n}) = {fib(n)}" for n in numbers]


def test_requests_wait_for_servers_and_each_client_gets_its_own_replies(start):
    """Step 4."""
    clients = {
        n: start(CLIENT, *map(str, (n, 0, n, 9999)), "--timeout", "60")
        for n in (5, 6, 7)
    }
    for client in clients.values():
        client.wait_for("Requesting", times=4)
    for _ in range(2):
        start(SERVER)
    for n, client in clients.items():
        assert client.wait() == 0, client
        assert sorted(replies(client)) == sorted(expected(n, 0, n, 9999))


def test_servers_share_requests_and_replies_come_in_any_order(start):
    """Step 1. A stopped server holds only the first request (prefetch 1)."""
    slow = start(SERVER).wait_until_ready()
    slow.process.send_signal(signal.SIGSTOP)
    client = start(CLIENT, *map(str, range(10)), "--timeout", "60")
    fast = start(SERVER)
    client.wait_for("Got", times=9)
    slow.process.send_signal(signal.SIGCONT)
    assert client.wait() == 0
    assert replies(client) == expected(*range(1, 10), 0)
    assert (slow.count("fib("), fast.count("fib(")) == (1, 9)


def test_server_refuses_bad_requests_and_continues(start):
    """Step 2."""
    bad = ["banana", "-5", "10000", "1" * 5000, "", "3.5", "1_0", "٣"]
    server = start(SERVER).wait_until_ready()
    client = start(CLIENT, "--", "10", *bad, "11")
    assert client.wait() == 1
    assert replies(client) == expected(10, 11)
    assert client.errors == [f" [!] fib({n}): {REFUSAL!r}" for n in bad]
    assert server.errors == [f" [!] Refused {n!r}" for n in bad]


def test_reply_without_the_correlation_id_has_no_request(start, tmp_path):
    """Step 3."""
    server = start(edited(tmp_path, SERVER, {PROPERTIES: ""})).wait_until_ready()
    client = start(CLIENT, "--timeout", "2")
    assert client.wait() == 1
    assert client.errors == [" [!] No reply in 2 s: fib(30)"]
    assert server.output[1:] == [" [.] fib(30)"]


def test_request_expires_with_its_client(start, tmp_path, channel):
    """Step 5."""
    assert start(CLIENT, "1", "--timeout", "1").wait() == 1
    # It expires a moment later: that time starts when it reaches the queue.
    wait_for_message_count(0, channel, "rpc_queue")
    copy = edited(tmp_path, CLIENT, {EXPIRATION: ""})
    assert start(copy, "2", "--timeout", "1").wait() == 1
    server = start(SERVER).wait_for("fib(")
    assert server.output[1:] == [" [.] fib(2)"]


def test_call_returns_one_reply_as_the_page_shows(start, tmp_path):
    """Also the second time on the same channel."""
    start(SERVER).wait_until_ready()
    one = "[next(call(channel, [n], timeout=10)) for n in args.n]"
    client = edited(tmp_path, CLIENT, {CALL: f"for n, reply in {one}:"})
    assert run_script(start, client, "5", "6")[2:] == expected(5, 6)


def test_broker_refuses_a_request_if_nothing_consumes_the_replies(start, tmp_path):
    client = start(edited(tmp_path, CLIENT, {FIRST_CONSUME: ""}))
    assert client.wait() == 1
    (error,) = client.errors
    assert "PRECONDITION_FAILED - fast reply consumer does not exist" in error


def test_client_prints_one_reply_to_each_request_and_lists_those_without(
    start, channel
):
    client = start(CLIENT, "30", "5", "1", "2", "--timeout", "5")
    client.wait_for("Requesting")  # the queue exists
    first, second = (get(channel, "rpc_queue")[1] for _ in range(2))
    assert first.expiration == "5000"
    assert uuid.UUID(first.correlation_id)  # it's random
    for body, correlation_id in [
        (b"1", "not asked for"),
        (b"832040", first.correlation_id),
        (b"2", first.correlation_id),
        (b"\xff\x1b[2J", second.correlation_id),
    ]:
        properties = pika.BasicProperties(correlation_id=correlation_id)
        channel.basic_publish("", first.reply_to, body, properties)
    # Less than twice its limit.
    assert client.wait(timeout=8) == 1
    assert replies(client) == expected(30)
    documented("No reply in … s")
    missing = " [!] No reply in 5 s: fib(1), fib(2)"
    assert client.errors == [" [!] fib(5): '\ufffd\\x1b[2J'", missing]


def test_server_replies_to_any_queue_even_without_an_id(start, channel, queue):
    """Some of the official tutorials' clients declare their own reply queue."""
    start(SERVER).wait_until_ready()
    properties = pika.BasicProperties(reply_to=queue)
    channel.basic_publish("", "rpc_queue", b"30", properties)
    _, reply, body = get(channel, queue)
    assert (reply.correlation_id, body) == (None, b"832040")


def test_request_of_a_crashed_server_gets_its_reply_from_another(start, tmp_path):
    crash = f"os.kill(os.getpid(), {signal.SIGKILL:d})\n{IF_REPLY_TO}"
    server = start(edited(tmp_path, SERVER, {IF_REPLY_TO: crash})).wait_until_ready()
    client = start(CLIENT, "5", "6", "--timeout", "60")
    assert server.wait() == -signal.SIGKILL
    other = start(SERVER)
    assert client.wait() == 0
    assert replies(client) == expected(5, 6)
    assert other.output[1:] == [" [.] fib(5)", " [.] fib(6)"]


def test_client_prints_that_the_broker_is_low_on_memory(start, broker):
    documented("The broker is low on …")
    start(SERVER).wait_until_ready()
    broker.ctl("set_vm_memory_high_watermark", "absolute", "1")
    try:
        client = start(CLIENT, "1", "--timeout", "60").wait_for(BLOCKED)
        assert not replies(client)
    finally:
        broker.ctl("set_vm_memory_high_watermark", "absolute", "600MB")
    assert client.wait() == 0
    assert client.errors == [BLOCKED]
    assert replies(client) == expected(1)
