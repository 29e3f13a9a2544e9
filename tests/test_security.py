"""Users, permissions and TLS, set up with the commands of docs/production.md."""

import re
import shlex
import shutil
import subprocess

import pika
import pytest
from broker import NativeBroker, free_port, uses_docker
from script import ROOT

PAGE = (ROOT / "docs/production.md").read_text()


def commands(program):
    """Return the page's commands that run a program, each as a list."""
    found = re.findall(rf"^\$ ({program} (?:.*\\\n)*.*)", PAGE, re.MULTILINE)
    return [shlex.split(command.replace("\\\n", "")) for command in found]


@pytest.fixture(scope="module")
def shop(broker):
    """The URL of the user `shop`."""
    add_user, set_permissions, *_ = commands("rabbitmqctl")
    broker.ctl(*add_user[1:], "secret")
    broker.ctl(*set_permissions[1:])
    return broker.url.replace("guest:guest", "shop:secret")


def test_user_can_do_only_what_its_permissions_allow(start, shop):
    assert start("simple/producer.py", url=shop).wait() == 0
    start("simple/consumer.py", url=shop).wait_for("Received", times=10)
    refused = {
        "work_queue/producer.py": "queue 'task_queue'",
        "work_queue/consumer.py": "queue 'task_queue'",
        "fanout/producer.py": "exchange 'logs'",
        "rpc/consumer.py": "queue 'rpc_queue'",
    }
    processes = {script: start(script, url=shop) for script in refused}
    for script, process in processes.items():
        assert process.wait() == 1
        assert process.count(f"access to {refused[script]} in vhost '/' refused") == 1
        assert "secret" not in str(process)


def test_permission_for_the_default_exchange_is_for_every_queue(shop, channel):
    queue = channel.queue_declare("", exclusive=True).method.queue
    with pika.BlockingConnection(pika.URLParameters(shop)) as connection:
        sender = connection.channel()
        sender.confirm_delivery()
        sender.basic_publish("", queue, b"x", mandatory=True)
        with pytest.raises(
            pika.exceptions.ChannelClosedByBroker, match="access to queue 'other'"
        ):
            sender.basic_get("other")


def test_compose_file_publishes_ports_only_on_this_machine():
    compose = (ROOT / "docker-compose.yml").read_text()
    published = re.findall(r'"(.*):(?:5672|15672)"', compose)
    assert len(published) == 6
    assert all(address.startswith("127.0.0.1:") for address in published), published


@pytest.fixture
def tls(tmp_path):
    """The URL of a broker with the page's certificates, which are in tmp_path."""
    if uses_docker() or not shutil.which("openssl"):
        pytest.skip("This requires openssl, and a broker that isn't in Docker.")
    for command in commands("openssl"):
        command = [word.replace("broker.example", "localhost") for word in command]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    port = free_port()
    (config,) = re.findall(r"```ini\n(listeners\.ssl.*?)```", PAGE, re.DOTALL)
    config = config.replace("/etc/rabbitmq", str(tmp_path)).replace("5671", str(port))
    # broker.start() waits for the port without TLS, which opens first.
    config = config.replace("listeners.tcp = none\n", "")
    broker = NativeBroker(free_port(), tmp_path / "node")
    with (broker.folder / "rabbitmq.conf").open("a") as file:
        file.write(config)
    try:
        broker.start()
        broker.ctl("await_startup")
        yield f"amqps://guest:guest@localhost:{port}/%2F"
    finally:
        broker.remove()


@pytest.mark.faults  # it starts another broker
def test_scripts_trust_only_the_certificates_authority_and_host(start, tls, tmp_path):
    trusted = {"url": tls, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    producer = start("simple/producer.py", **trusted)
    assert producer.wait() == 0, producer
    start("simple/consumer.py", **trusted).wait_for("Received", times=10)
    assert start("work_queue/producer.py", "task", **trusted).wait() == 0
    start("work_queue/consumer.py", **trusted).wait_for("Done 'task'")

    other_host = trusted | {"url": tls.replace("localhost", "127.0.0.1")}
    for options, reason in [
        ({"url": tls}, "CERTIFICATE_VERIFY_FAILED"),
        (other_host, "certificate is not valid for '127.0.0.1'"),
    ]:
        process = start("simple/producer.py", **options)
        assert process.wait() == 1
        (line,) = process.errors
        assert line.startswith(" [!] Can't connect to RabbitMQ: ")
        assert reason in line
