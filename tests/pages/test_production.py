"""The code and the files that docs/production.md shows, and the exit statuses."""

from __future__ import annotations

import re
import signal
import subprocess
from operator import attrgetter

import pika
import pytest

from tests.helpers import connect, wait_for_message_count
from tests.servers import closed_port
from tools.broker import broker_on
from tools.broker.docker import docker_problem
from tools.common import ROOT
from tools.pages import blocks, sections


def block(text: str) -> str:
    """Return the page's block that contains a text."""
    (found,) = [b.text for b in blocks(["docs/production.md"]) if text in b.text]
    return found


def test_test_of_your_own_code_works(broker):
    def publish_order(channel, queue, item):
        channel.basic_publish("", queue, b'{"item": "tea"}')

    code = block("def test_").replace("pika.BlockingConnection()", "connect()")
    code += "test_publishes_the_order()"
    exec(code, {"connect": lambda: connect(broker), "publish_order": publish_order})


def test_batches_are_saved_and_acknowledged_together(channel, declare):
    queue = declare()
    for i in range(150):
        channel.basic_publish("", queue, b"%d" % i)
    wait_for_message_count(150, channel, queue)
    saved: list[list[bytes]] = []

    def save(batch: list[bytes]) -> None:
        saved.append([*batch])
        if batch[-1] == b"149":
            raise KeyboardInterrupt  # before the acknowledgement

    code = block("batch = []").replace('"readings"', repr(queue))
    with pytest.raises(KeyboardInterrupt):
        exec(code, {"channel": channel, "save": save})
    assert len(saved[0]) == 100
    channel.close()
    # The broker redelivers the whole last batch, and nothing else.
    wait_for_message_count(len(saved[-1]), channel.connection.channel(), queue)


def test_types_of_a_callback_are_what_pika_passes(channel, queue):
    page = (ROOT / "docs/production.md").read_text()
    hints = dict(re.findall(r"`(\w+): pika\.([\w.]+)`", page))
    channel.basic_publish("", queue, b"x")
    method, properties, _ = next(channel.consume(queue, inactivity_timeout=30))
    found = {"channel": channel, "method": method, "properties": properties}
    assert found.keys() == hints.keys()
    assert all(isinstance(found[x], attrgetter(hints[x])(pika)) for x in found)


def test_supervisors_start_a_script_that_exists(tmp_path):
    for text in ("ExecStart=", "command: "):
        (line,) = [line for line in block(text).splitlines() if text in line]
        assert (ROOT / line.split()[-1]).is_file()
    if docker_problem():
        pytest.skip("This requires Docker Compose.")
    (tmp_path / "worker.yml").write_text(block("command: "))
    files = ["-f", "docker-compose.yml", "-f", str(tmp_path / "worker.yml")]
    command = ["docker", "compose", *files, "config", "--quiet"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_exit_statuses_are_those_in_the_table(start):
    page = sections("docs/troubleshooting.md")
    (table,) = next(part for part in page if part.title == "Exit status").tables
    wrong = start("simple/producer.py", "x", "many").wait()
    with closed_port() as port:
        producer = start(
            "advanced/reconnect/producer.py", url=f"amqp://localhost:{port}"
        )
        interrupted = producer.wait_for("Retrying.").stop(signal.SIGINT)
    # tests/scripts/test_behavior.py shows 0, 1 and SIGTERM.
    expected = [0, 1, wrong, interrupted, 128 + signal.SIGTERM]
    assert [int(row[0]) for row in table[1:]] == expected


def test_setup_names_the_compose_project_of_make_broker(monkeypatch):
    monkeypatch.setattr("tools.broker.uses_docker", lambda: True)
    project = broker_on(5672, 15672)._command[-1]  # type: ignore[attr-defined]
    page = (ROOT / "docs/setup.md").read_text()
    assert f"docker compose -p {project} exec rabbitmq rabbitmqctl" in page
