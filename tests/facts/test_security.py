"""Users, permissions, ports and TLS, set up as docs/production.md does it."""

import base64
import http.client
import os
import re
import shutil
import ssl
import subprocess
from functools import partial

import pika
import psutil
import pytest

from tests.helpers import documented, page_block
from tools.broker import uses_docker
from tools.broker.base import free_port
from tools.broker.native import NativeBroker
from tools.common import ROOT, wait_until

block = partial(page_block, "docs/production.md")


@pytest.fixture(scope="module")
def url_of(session_broker):
    """url_of("shop") is the URL of a user with the page's tag and permissions."""
    tags = {"admin": "administrator", "shop": "", "watcher": "monitoring"}
    users = re.findall(r"set_permissions (\w+) '(.*)' '(.*)' '(.*)'", block("add_user"))
    for name, configure, write, read in [*users, ("watcher", "^$", "^$", "^$")]:
        session_broker.put(f"users/{name}", password="secret", tags=tags[name])
        allowed = {"configure": configure, "write": write, "read": read}
        session_broker.put(f"permissions/%2F/{name}", **allowed)
    return lambda name: session_broker.url.replace("guest:guest", f"{name}:secret")


def closed(reason: str):
    return pytest.raises(pika.exceptions.ChannelClosedByBroker, match=reason)


def test_user_can_do_only_what_its_permissions_allow(broker, start, declare, url_of):
    assert start("simple/producer.py", url=url_of("shop")).wait() == 0
    start("simple/consumer.py", url=url_of("shop")).wait_for("Received", times=10)
    with pika.BlockingConnection(pika.URLParameters(url_of("shop"))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        # Every queue is bound to the default exchange.
        channel.basic_publish("", declare(), b"x", mandatory=True)
        with closed("access to exchange 'amq.topic'"):
            channel.basic_publish("amq.topic", "x", b"x")
        with closed("access to queue 'task_queue'"):
            connection.channel().queue_declare("task_queue", durable=True)


def test_tags_let_users_into_the_management_ui(broker, declare, url_of):
    def status(path: str, name: str) -> int:
        login = base64.b64encode(f"{name}:secret".encode()).decode()
        client = http.client.HTTPConnection("localhost", broker.ui_port, timeout=10)
        client.request("GET", path, headers={"Authorization": f"Basic {login}"})
        return client.getresponse().status

    paths = "/api/users", f"/api/queues/%2F/{declare()}"
    names = "admin", "watcher", "shop"
    found = [[status(path, name) for name in names] for path in paths]
    assert found == [[200, 401, 401], [200, 200, 401]]


def test_user_over_the_connection_limit_is_one_line(broker, start, url_of):
    broker.put("user-limits/watcher/max-connections", value=0)
    producer = start("simple/producer.py", url=url_of("watcher"))
    assert producer.wait() == 1
    (line,) = producer.errors
    assert documented("connection limit") in line


def test_compose_file_publishes_ports_only_on_this_machine():
    compose = (ROOT / "docker-compose.yml").read_text()
    published = re.findall(r'"(.*):(?:5672|15672)"', compose)
    assert len(published) == 6
    assert all(address.startswith("127.0.0.1:") for address in published)


@pytest.fixture
def ports(tmp_path):
    """The ports of a broker that has the page's files, in the order of its lines."""
    if uses_docker() or not shutil.which("openssl"):
        pytest.skip("This requires openssl, and a broker whose configuration is ours.")
    commands = block("openssl req").replace("$ ", "").partition("sudo ")[0]
    commands = commands.replace("broker.example", "localhost")
    subprocess.run(["sh", "-ec", commands], cwd=tmp_path, check=True)
    amqp, ui, metrics, tls = ports = [free_port() for _ in range(4)]
    broker = NativeBroker(amqp, tmp_path / "node", ui)
    config = block("listeners.tcp.1").replace("5672", str(amqp))
    config += f"management.tcp.port = {ui}\nprometheus.tcp.port = {metrics}\n"
    config += block("listeners.ssl").replace("listeners.tcp = none", "")
    config = config.replace("5671", str(tls)).replace("/etc/rabbitmq", str(tmp_path))
    (broker.folder / "rabbitmq.conf").write_text(config)
    plugins = "[rabbitmq_management,rabbitmq_prometheus]."
    (broker.folder / "enabled_plugins").write_text(plugins)
    try:
        broker.start()
        yield ports
    finally:
        broker.remove()


def listeners() -> list:
    """Return the addresses on which this test's brokers listen."""
    processes = psutil.Process().children(recursive=True)
    found = [c for process in processes for c in process.net_connections()]
    return [c.laddr for c in found if c.status == psutil.CONN_LISTEN]


@pytest.mark.faults  # it starts another broker
def test_ports_are_local_and_scripts_trust_only_the_authority_and_host(
    start, ports, tmp_path, monkeypatch
):
    wait_until(lambda: {*ports} <= {address.port for address in listeners()}, ports)
    local = "127.0.0.1", "::1"
    assert {a.port for a in listeners() if a.ip not in local} == {ports[-1]}
    url = f"amqps://guest:guest@localhost:{ports[-1]}/%2F"
    authority = {"SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    for script in ("simple/producer.py", "work_queue/producer.py"):
        assert start(script, url=url, **authority).wait() == 0
    other_host = url.replace("localhost", "127.0.0.1")
    for address, environment, reason in [
        (url, {}, documented("CERTIFICATE_VERIFY_FAILED")),
        (other_host, authority, "certificate is not valid for '127.0.0.1'"),
    ]:
        process = start("simple/producer.py", url=address, **environment)
        assert process.wait() == 1
        (line,) = process.errors
        assert reason in line
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMQP_URL", url)
    names = {"os": os, "pika": pika, "ssl": ssl}
    exec(block("pika.SSLOptions("), names)
    assert pika.BlockingConnection(names["parameters"]).is_open
