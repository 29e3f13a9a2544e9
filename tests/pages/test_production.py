"""The code and the files that docs/production.md shows, and the exit statuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.helpers import wait_for_message_count
from tests.servers import closed_port
from tools.broker import broker_on
from tools.broker.docker import DockerBroker, docker_problem
from tools.common import ROOT
from tools.pages import blocks, sections


def block(text: str, kind: str = "python") -> str:
    """Return the page's block that contains a text."""
    found = [b.text for b in blocks(["docs/production.md"], kind) if text in b.text]
    assert len(found) == 1, f"docs/production.md has {len(found)} blocks with {text!r}"
    return found[0]


def test_fixture_for_your_own_tests_works(broker, tmp_path):
    yours = """def publish_order(channel, queue, item):
        channel.basic_publish("", queue, b'{"item": "%s"}' % item.encode())\n"""
    (tmp_path / "test_yours.py").write_text(yours + block("@pytest.fixture"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    environment = os.environ | {"TEST_AMQP_URL": broker.url}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


def test_batches_are_saved_and_acknowledged_together(channel, declare):
    queue = declare()
    for i in range(250):
        channel.basic_publish("", queue, b"%d" % i)
    wait_for_message_count(250, channel, queue)
    batches: list[list[int]] = []

    def save(batch: list[bytes]) -> None:
        batches.append([int(body) for body in batch])
        if batches[-1][-1] == 249:
            raise KeyboardInterrupt  # before the acknowledgement

    code = block("batch = []").replace('"readings"', repr(queue))
    with pytest.raises(KeyboardInterrupt):
        exec(code, {"channel": channel, "save": save})
    assert len(batches[0]) == 100
    assert [n for batch in batches for n in batch] == [*range(250)]
    channel.close()
    channel = channel.connection.channel()
    # The broker redelivers the whole last batch, and nothing else.
    wait_for_message_count(len(batches[-1]), channel, queue)


def test_types_of_a_callback_are_what_pika_passes(channel, queue):
    names: dict[str, Callable] = {}
    code = block("def on_message(")
    exec(compile(code, "page", "exec", dont_inherit=True), names)
    hints = names["on_message"].__annotations__
    channel.basic_publish("", queue, b"x")
    method, properties, body = next(channel.consume(queue, inactivity_timeout=30))
    arguments = [channel, method, properties, body]
    for argument, hint in zip(arguments, hints.values(), strict=False):
        assert isinstance(argument, hint)


@pytest.mark.parametrize("text", ["dockerfile_inline", "./tls.conf"])
def test_compose_understands_the_file(text, tmp_path):
    if docker_problem():
        pytest.skip("This requires Docker Compose.")
    (tmp_path / "other.yml").write_text(block(text, "yaml"))
    files = ["-f", "docker-compose.yml", "-f", str(tmp_path / "other.yml")]
    command = ["docker", "compose", *files, "config", "--quiet"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_supervisors_start_a_script_that_exists():
    for kind, text in [("ini", "ExecStart="), ("yaml", "command: ")]:
        (line,) = [line for line in block(text, kind).splitlines() if text in line]
        assert (ROOT / line.split()[-1]).is_file()


def test_exit_statuses_are_those_in_the_table(start):
    (table,) = next(
        part for part in sections("docs/troubleshooting.md") if "Exit" in part.title
    ).tables
    with closed_port() as port:
        failed = start("simple/producer.py", url=f"amqp://localhost:{port}")
        assert failed.wait() == 1
    assert start("simple/producer.py", "x", "many").wait() == 2
    producer = start("advanced/reconnect/producer.py", url=f"amqp://localhost:{port}")
    producer.wait_for("Retrying.")
    interrupted = producer.stop(signal.SIGINT)
    consumer = start("simple/consumer.py").wait_until_ready()
    terminated = 128 - consumer.stop(signal.SIGTERM)  # as a shell shows it
    finished = start("simple/producer.py").wait()
    found = [finished, 1, 2, interrupted, terminated]
    assert [int(row[0]) for row in table[1:]] == found


def test_setup_names_the_compose_project_of_make_broker(monkeypatch):
    monkeypatch.setattr("tools.broker.uses_docker", lambda: True)
    broker = broker_on(5672, 15672)
    assert isinstance(broker, DockerBroker)
    page = (ROOT / "docs/setup.md").read_text()
    (project,) = re.findall(r"docker compose -p (\S+) exec rabbitmq rabbitmqctl", page)
    assert broker._command[-1] == project
