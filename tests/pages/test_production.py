"""The code and the files that docs/production.md shows, and the exit statuses."""

import re
import signal
import subprocess
from functools import partial

import pika
import pytest

from tests.helpers import connect, page_block, rows, wait_for_message_count
from tools.broker import broker_on
from tools.broker.base import free_port
from tools.broker.docker import docker_problem
from tools.common import ROOT

PAGE = "docs/production.md"
block = partial(page_block, PAGE)


def test_test_of_your_own_code_works(broker):
    def publish_order(channel, queue, item):
        channel.basic_publish("", queue, b'{"item": "tea"}')

    code = block("def test_").replace("pika.BlockingConnection()", "connect()")
    code += "test_publishes_the_order()"
    exec(code, {"connect": lambda: connect(broker), "publish_order": publish_order})


def test_batches_are_saved_and_acknowledged_together(channel, declare):
    queue = declare()
    for _ in range(150):
        channel.basic_publish("", queue, b"x")
    wait_for_message_count(150, channel, queue)
    saved = []

    def save(batch):
        if saved:
            raise KeyboardInterrupt  # before the second acknowledgement
        saved.extend(batch)

    code = block("batch = []").replace('"readings"', repr(queue))
    with pytest.raises(KeyboardInterrupt):
        exec(code, {"channel": channel, "save": save})
    assert len(saved) == 100
    channel.close()
    wait_for_message_count(50, channel.connection.channel(), queue)


def test_types_of_a_callback_are_what_pika_passes(channel, queue):
    hints = re.findall(r"`\w+: (pika\.[\w.]+)`", (ROOT / PAGE).read_text())
    channel.basic_publish("", queue, b"x")
    method, properties, _ = next(channel.consume(queue, inactivity_timeout=30))
    for argument, hint in zip((channel, method, properties), hints, strict=True):
        assert isinstance(argument, eval(hint, {"pika": pika}))


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
    table = rows("docs/troubleshooting.md", "Exit status")
    wrong = start("simple/producer.py", "x", "many").wait()
    url = f"amqp://localhost:{free_port()}"
    producer = start("advanced/reconnect/producer.py", url=url)
    interrupted = producer.wait_for("Retrying.").stop(signal.SIGINT)
    # tests/scripts/test_behavior.py shows 0, 1 and SIGTERM.
    expected = [0, 1, wrong, interrupted, 128 + signal.SIGTERM]
    assert [int(row[0]) for row in table] == expected


def test_setup_names_the_compose_project_of_make_broker(monkeypatch):
    monkeypatch.setattr("tools.broker.uses_docker", lambda: True)
    project = broker_on(5672, 15672)._command[-1]  # type: ignore[attr-defined]
    page = (ROOT / "docs/setup.md").read_text()
    assert f"docker compose -p {project} exec rabbitmq rabbitmqctl" in page
