"""Users, permissions, ports and TLS, set up with the commands of docs/production.md."""

from __future__ import annotations

import base64
import re
import shlex
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import pika
import psutil
import pytest

from tests.helpers import documented
from tools.broker import uses_docker
from tools.broker.base import free_port
from tools.broker.native import NativeBroker
from tools.common import ROOT
from tools.pages import blocks, commands

PAGE = "docs/production.md"


def typed(program: str) -> list[list[str]]:
    """Return the page's commands that run a program, each as a list of words."""
    text = "".join(block.text for block in blocks([PAGE], "console"))
    lines = [command for command, _ in commands(text.replace("\\\n", ""))]
    found = [shlex.split(line) for line in lines if line.startswith(f"{program} ")]
    assert found, f"{PAGE} has no command that begins with {program}"
    return found


def block(kind: str, text: str) -> str:
    """Return the page's block of that kind that contains a text."""
    (found,) = [block.text for block in blocks([PAGE], kind) if text in block.text]
    return found


@pytest.fixture(scope="module")
def url_of(session_broker):
    """url_of("shop") is the URL of a user, as the page creates it."""
    names = ("admin", "shop", "watcher")
    for _, command, *arguments in typed("rabbitmqctl"):
        if command == "add_user":
            session_broker.ctl(command, *arguments, "secret")
        elif arguments and arguments[0] in names:
            session_broker.ctl(command, *arguments)
    return lambda name: session_broker.url.replace("guest:guest", f"{name}:secret")


def test_user_can_do_only_what_its_permissions_allow(start, url_of):
    shop = url_of("shop")
    assert start("simple/producer.py", url=shop).wait() == 0
    start("simple/consumer.py", url=shop).wait_for("Received", times=10)
    refused = {
        "work_queue/producer.py": "queue 'task_queue'",
        "work_queue/consumer.py": "queue 'task_queue'",
        "fanout/producer.py": "exchange 'logs'",
        "rpc/consumer.py": "queue 'rpc_queue'",
    }
    processes = {script: start(script, url=shop) for script in refused}
    documented("ACCESS_REFUSED - … access to … refused")
    for script, process in processes.items():
        assert process.wait() == 1
        assert process.count(f"access to {refused[script]} in vhost '/' refused") == 1
        assert "secret" not in str(process)


def test_permission_for_the_default_exchange_is_for_every_queue(queue, url_of):
    with pika.BlockingConnection(pika.URLParameters(url_of("shop"))) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", queue, b"x", mandatory=True)
        with pytest.raises(
            pika.exceptions.ChannelClosedByBroker, match="access to queue 'other'"
        ):
            channel.basic_get("other")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("users", {"admin": 200, "watcher": 401, "shop": 401}),
        ("queues/%2F/{queue}", {"admin": 200, "watcher": 200, "shop": 401}),
    ],
)
def test_tags_let_users_into_the_management_ui(broker, declare, url_of, path, expected):
    address = f"http://localhost:{broker.ui_port}/api/" + path.format(queue=declare())
    found = {}
    for name in expected:
        assert f"{name}:secret" in url_of(name)
        login = base64.b64encode(f"{name}:secret".encode()).decode()
        request = urllib.request.Request(address)
        request.add_header("Authorization", f"Basic {login}")
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                found[name] = response.status
        except urllib.error.HTTPError as error:
            found[name] = error.code
    assert found == expected


def test_passive_declaration_needs_one_permission_since_4_3_1(broker, declare, url_of):
    queue = declare()  # with which `shop` may do nothing
    with pika.BlockingConnection(pika.URLParameters(url_of("shop"))) as connection:
        channel = connection.channel()
        if broker.version < (4, 3, 1):
            channel.queue_declare(queue, passive=True)
        else:
            with pytest.raises(
                pika.exceptions.ChannelClosedByBroker, match="ACCESS_REFUSED"
            ):
                channel.queue_declare(queue, passive=True)


def test_passive_declaration_of_a_missing_queue_closes_the_channel(channel):
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        channel.queue_declare("no such queue", passive=True)
    assert not channel.is_open


def test_compose_file_publishes_ports_only_on_this_machine():
    compose = (ROOT / "docker-compose.yml").read_text()
    published = re.findall(r'"(.*):(?:5672|15672)"', compose)
    assert len(published) == 6
    assert all(address.startswith("127.0.0.1:") for address in published), published


@pytest.fixture
def native(tmp_path) -> Iterator[NativeBroker]:
    """A broker that hasn't started, with its files in tmp_path/node."""
    if uses_docker():
        pytest.skip("The configuration file of a broker in Docker isn't ours.")
    broker = NativeBroker(free_port(), tmp_path / "node")
    yield broker
    broker.remove()


def configure(broker: NativeBroker, lines: str) -> None:
    with (broker.folder / "rabbitmq.conf").open("a") as file:
        file.write(lines)


@pytest.mark.faults  # it starts another broker
def test_three_lines_keep_the_broker_local(native):
    lines = block("ini", "listeners.tcp.1").replace("5672", str(native.port))
    ui, metrics = free_port(), free_port()
    lines += f"management.tcp.port = {ui}\nprometheus.tcp.port = {metrics}\n"
    (native.folder / "rabbitmq.conf").write_text(lines)
    plugins = native.folder / "enabled_plugins"
    plugins.write_text("[rabbitmq_management,rabbitmq_prometheus].")
    native.start()
    native.ctl("await_startup")
    processes = psutil.Process().children(recursive=True)
    addresses = {
        connection.laddr
        for process in processes
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses >= {("127.0.0.1", p) for p in (native.port, ui, metrics)}
    assert {address.ip for address in addresses} <= {"127.0.0.1", "::1"}


@pytest.fixture
def tls(native, tmp_path) -> int:
    """The port of a broker with the page's certificates, which are in tmp_path."""
    if not shutil.which("openssl"):
        pytest.skip("There's no openssl command.")
    for command in typed("openssl"):
        command = [word.replace("broker.example", "localhost") for word in command]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    config = block("ini", "listeners.ssl").replace("/etc/rabbitmq", str(tmp_path))
    # native.start() waits for the port without TLS, which opens first.
    config = config.replace("listeners.tcp = none\n", "")
    configure(native, config.replace("5671", str(port)))
    native.start()
    native.ctl("await_startup")
    return port


@pytest.mark.faults  # it starts another broker
def test_scripts_trust_only_the_certificates_authority_and_host(start, tls, tmp_path):
    url = f"amqps://guest:guest@localhost:{tls}/%2F"
    trusted = {"url": url, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    producer = start("simple/producer.py", **trusted)
    assert producer.wait() == 0, producer
    start("simple/consumer.py", **trusted).wait_for("Received", times=10)
    assert start("work_queue/producer.py", "task", **trusted).wait() == 0
    start("work_queue/consumer.py", **trusted).wait_for("Done 'task'")

    other_host = trusted | {"url": url.replace("localhost", "127.0.0.1")}
    for options, reason in [
        ({"url": url}, documented("CERTIFICATE_VERIFY_FAILED")),
        (other_host, "certificate is not valid for '127.0.0.1'"),
    ]:
        process = start("simple/producer.py", **options)
        assert process.wait() == 1
        (line,) = process.errors
        assert line.startswith(" [!] Can't connect to RabbitMQ: ")
        assert reason in line

    # What the page shows for an app: it trusts the authority in this connection only.
    code = block("python", "SSLOptions").replace("broker.example", "localhost")
    code = code.replace("5671", str(tls)).replace("ca.pem", str(tmp_path / "ca.pem"))
    names: dict[str, pika.ConnectionParameters] = {}
    exec(code.replace('"shop", "secret"', '"guest", "guest"'), names)
    with pika.BlockingConnection(names["parameters"]) as connection:
        assert connection.is_open
