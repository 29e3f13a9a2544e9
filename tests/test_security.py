"""What the README says of TLS, of users and of their permissions; no password is ever printed."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import threading
import urllib.parse

import pika
import pytest
import trustme
from conftest import waiting
from end import ROOT


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def authority_file(authority, tmp_path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
def port(broker, authority):
    """The port of a TLS end in front of the broker, as a load balancer is, for localhost alone."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    target = pika.URLParameters(broker.url)

    async def copy(reader, writer):
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader, writer):
        there = await asyncio.open_connection(target.host, target.port)
        await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def call(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(30)

    server = call(asyncio.start_server(handle, "127.0.0.1", 0, ssl=context))
    yield server.sockets[0].getsockname()[1]

    async def stop():
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    call(stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def amqps(host: str, port: int, **query: str) -> str:
    return f"amqps://guest:guest@{host}:{port}/%2F?{urllib.parse.urlencode(query)}"


def test_an_authority_named_by_ssl_cert_file_is_trusted(start, port, authority_file):
    url = amqps("localhost", port)
    assert start("simple/producer.py", url=url, SSL_CERT_FILE=authority_file).end() == 0
    consumer = start("simple/consumer.py", url=url, SSL_CERT_FILE=authority_file)
    consumer.wait_for("Received", times=10)
    assert consumer.stop() == 0


def test_an_authority_named_in_the_url_is_trusted(start, port, authority_file):
    url = amqps("localhost", port, ssl_options=repr({"cafile": authority_file}))
    assert start("simple/producer.py", url=url).end() == 0


def test_an_unknown_certificate_is_refused(start, port):
    producer = start("simple/producer.py", url=amqps("localhost", port))
    assert producer.end() == 1
    (line,) = producer.errors
    assert line.startswith(f" [!] localhost:{port}: ")
    assert "CERTIFICATE_VERIFY_FAILED" in line


def test_a_certificate_for_another_host_is_refused(start, port, authority_file):
    producer = start(
        "simple/producer.py", url=amqps("127.0.0.1", port), SSL_CERT_FILE=authority_file
    )
    assert producer.end() == 1
    (line,) = producer.errors
    assert "not valid for '127.0.0.1'" in line


def test_a_broker_without_tls_is_one_line(start, broker):
    plain = pika.URLParameters(broker.url)
    producer = start("simple/producer.py", url=amqps(plain.host, plain.port))
    assert producer.end() == 1
    (line,) = producer.errors
    assert line.startswith(f" [!] {plain.host}:{plain.port}: SSL")


@pytest.fixture
def shop(broker):
    """The URL of a user with the permissions that the README gives it."""
    broker.ctl("add_user", "shop", "secret")
    broker.ctl("set_permissions", "shop", "^hello$", r"^amq\.default$", "^hello$")
    yield broker.url.replace("guest:guest", "shop:secret")
    broker.ctl("delete_user", "shop")


@pytest.mark.unconfirmed
def test_a_user_may_do_what_its_permissions_say_and_no_more(start, shop, channel):
    assert start("simple/producer.py", url=shop).end() == 0
    consumer = start("simple/consumer.py", url=shop).wait_for("Received", times=10)
    assert consumer.stop() == 0
    refused = start("work_queue/producer.py", url=shop)
    assert refused.end() == 1
    (line,) = refused.errors
    assert "ACCESS_REFUSED" in line
    assert "task_queue" in line
    assert "secret" not in line

    # Who may write to the default exchange may write to every queue.
    queue = channel.queue_declare("", exclusive=True).method.queue
    with pika.BlockingConnection(pika.URLParameters(shop)) as connection:
        its = connection.channel()
        its.confirm_delivery()
        its.basic_publish("", queue, b"x", mandatory=True)
        with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"):
            its.basic_get("other")
    assert waiting(channel, queue) == 1


def test_compose_publishes_every_port_on_this_machine_alone():
    compose = (ROOT / "docker-compose.yml").read_text()
    ports = re.findall(r"[\w.{}:$-]*:(?:5672|15672)\b", compose.split("services:")[1])
    assert len(ports) == 6
    assert all(port.startswith("127.0.0.1:") for port in ports), ports
