"""What holds for every lesson script alike: see the README, "What a lesson script is"."""

import ast
import re
import shutil
import subprocess
import sys
import uuid

import pika
import pytest
from broker import wait_until
from end import ROOT
from test_errors import SCRIPTS


def part(script: str, kind: type, name: str) -> str:
    """Return the source of a script's function or main guard, without the comments on their own."""
    source = (ROOT / script).read_text()
    for node in ast.parse(source).body:
        if isinstance(node, kind) and name in (getattr(node, "name", ""), ""):
            return ast.get_source_segment(source, node)
    raise AssertionError(f"{script} has no {name or kind}")


@pytest.mark.parametrize("script", SCRIPTS)
class TestScript:
    def test_connecting_lines_and_main_guard_are_alike_to_the_letter(self, script):
        pattern = f"work_queue/{script.rsplit('/')[-1]}"  # of the same end
        assert part(script, ast.If, "") == part(pattern, ast.If, "")
        nodes, expected = (part(name, ast.FunctionDef, "nodes") for name in (script, pattern))
        if script.startswith("simple/"):  # which has the long form besides
            nodes = nodes[nodes.index("    try:") :]
            expected = expected[expected.index("    try:") :]
        assert nodes == expected

    def test_it_depends_on_pika_alone(self, script):
        source = (ROOT / script).read_text()
        imported = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(source))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert imported <= set(sys.stdlib_module_names) | {"pika"}
        assert source.startswith(
            '# /// script\n# requires-python = ">=3.10"\n# dependencies = ["pika>=1.3"]\n# ///\n'
        )

    def test_it_runs_alone_with_nothing_but_uv(self, script, tmp_path):
        shutil.copy(ROOT / script, tmp_path / "alone.py")
        done = subprocess.run(
            [sys.executable, "-m", "uv", "run", "--no-project", "alone.py", "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=80,
        )
        assert done.returncode == 0, done.stderr
        assert "AMQP_URL" in done.stdout


RUNS = {
    "simple": ([], []),
    "work_queue": ([], ["x"]),
    "fanout": ([], []),
    "direct": ([], []),
    "topic": ([], []),
    "rpc": ([], []),
}


def log_until_now(broker) -> str:
    """Return the broker's log up to a connection made now, whose name is a line of its own."""
    name = f"marker {uuid.uuid4()}"
    parameters = pika.URLParameters(broker.url)
    parameters.client_properties = {"connection_name": name}
    pika.BlockingConnection(parameters).close()
    log = ""

    def logged() -> bool:
        nonlocal log
        log = broker.log()
        return name in log

    wait_until(logged, "the marker in the log", 10)
    return log.split(name)[0]


@pytest.mark.parametrize("lesson", RUNS)
def test_a_lesson_leaves_no_warning_in_the_log_and_uses_nothing_deprecated(lesson, start, broker):
    before = log_until_now(broker)
    consumer_arguments, producer_arguments = RUNS[lesson]
    consumer = start(f"{lesson}/consumer.py", *consumer_arguments).ready()
    assert start(f"{lesson}/producer.py", *producer_arguments).end() == 0
    if not broker.version.startswith("3.10."):  # which has no such command
        command = ("list_deprecated_features", "--used", "--formatter", "csv", "--silent")
        used = set(re.findall(r"^\"?(\w+)", broker.ctl(*command), re.MULTILINE))
        # What the node itself uses, without a client: the management plugin's own statistics.
        assert used - {"name", "management_metrics_collection"} == set()
    assert consumer.stop() == 0
    log = log_until_now(broker).removeprefix(before)
    assert "accepting AMQP connection" in log
    assert not re.search(r".*\[(warning|error|critical)\].*|.*(abruptly|unexpectedly).*", log)
