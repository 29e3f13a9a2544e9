"""The pages: commands print what's shown, excerpts match the scripts, links work.

Below a paragraph that links to a script, a block is an excerpt from it. A line "..."
stands for lines left out. Comments can differ from the script's.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pika
import pytest
from conftest import message_count
from demo import run_terminals
from lessons import LESSONS
from pages import Block, Section, blocks, pattern, sections, terminal_groups
from script import ROOT

GLOBS = "*.md", "docs/*.md", "[a-z]*/README*.md", "advanced/*/README*.md"
FILES = sorted(path for glob in GLOBS for path in ROOT.glob(glob))
ALL = [str(path.relative_to(ROOT)) for path in FILES]
ENGLISH = [page for page in ALL if not page.endswith(".zh-CN.md")]
MODULES = [page for page in ALL if page.startswith("docs/production.")]
LESSON_SECTIONS = [
    "Run it",
    "The lines that matter",
    "Try this next",
    "What can get lost",
]


def twin(page: str) -> str:
    """Return the path of an English page's Chinese twin."""
    return page.replace(".md", ".zh-CN.md")


def section(page: str, title: str) -> Section:
    """Return the section with that English title, from either language's page."""
    english = sections(page.replace(".zh-CN", ""))
    (number,) = [i for i, part in enumerate(english) if part.title == title]
    return sections(page)[number]


# Console blocks.


@pytest.mark.usefixtures("start")  # deletes the queues
@pytest.mark.parametrize(
    "terminals", terminal_groups(ENGLISH), ids=lambda t: t[0].place
)
def test_console_block_prints_what_the_page_shows(terminals, broker, capsys):
    run_terminals(terminals, broker.url)
    output = capsys.readouterr().out
    assert "terminal 1 | $ python " in output
    assert "\x1b" not in output  # no colors outside a terminal


def test_blocks_are_of_a_kind_that_we_check():
    for block in blocks(ALL):
        kind = block.info.split()[0] if block.info else ""
        assert kind in ("console", "mermaid", "python", "ini", "yaml"), block.place
        assert kind != "console" or block.text.startswith("$ "), block.place


@pytest.mark.parametrize("page", ALL)
def test_paragraph_names_the_terminal(page):
    word = "终端 {}:" if page.endswith(".zh-CN.md") else "Terminal {}:"
    for block in blocks([page], "console terminal-"):
        above = block.above.replace("\N{FULLWIDTH COLON}", ":")
        assert above == word.format(block.terminal), block.place


# Excerpts.


def code(text: str) -> str:
    """Return a source text without comments and empty lines."""
    lines = [re.split(r"(?:^|\s)#\s", line)[0].rstrip() for line in text.splitlines()]
    return "".join(f"{line}\n" for line in lines if line)


def first_difference(excerpt: str, script: str) -> str:
    """Return the excerpt's first line that isn't where it should be in the script."""
    found = "^"
    for line in excerpt.splitlines():
        found += r"(.*\n)*?" if line.strip() == "..." else re.escape(line) + r"\n"
        if not re.search(found, script, re.MULTILINE):
            return line
    return ""


@pytest.mark.parametrize(
    "block",
    [block for block in blocks(ALL) if re.match("python|ini|yaml", block.info)],
    ids=lambda block: block.place,
)
def test_excerpt_has_the_lines_of_the_script(block):
    files = [(ROOT / block.page).parent / link for link in block.links]
    scripts = [path for path in files if path.is_file() and path.suffix != ".md"]
    if not scripts:
        is_module = block.text.startswith("import ") and block.page in MODULES
        assert block.info != "python" or is_module, (
            f"{block.place}: link to the script in the paragraph above"
        )
        return
    excerpt, script = code(block.text), code(scripts[-1].read_text())
    wrong = [
        first_difference(textwrap.indent(excerpt, " " * columns), script)
        for columns in (0, 4, 8, 12, 16)
    ]
    assert "" in wrong, f"{block.place}: not in {scripts[-1]}: {wrong}"


# Links.


@pytest.mark.parametrize("page", ALL)
def test_links_lead_to_a_file_and_a_heading(page):
    links = [link for part in sections(page) for link in part.links]
    broken = [
        f"{page}:{line}: {target}: {why_broken(page, target)}"
        for line, target in links
        if why_broken(page, target)
    ]
    assert not broken, "\n".join(broken)


def why_broken(page: str, target: str) -> str:
    """Return what's wrong with a link, or nothing."""
    if re.match(r"https?://", target):
        return ""
    path, _, anchor = target.partition("#")
    file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    if not file.exists() or not file.is_relative_to(ROOT):
        return "no such file"
    if page.endswith(".zh-CN.md") and file != ROOT / page.replace(".zh-CN", ""):
        index = file / "README.md" if file.is_dir() else file
        chinese = index.with_name(twin(index.name))
        if chinese != index and chinese.exists():
            return "there's a Chinese page"
    if anchor and file.suffix != ".md":
        return "link to the file, because its lines move"
    headings = sections(str(file.relative_to(ROOT))) if anchor else []
    if anchor and anchor not in [heading.anchor for heading in headings]:
        return "no such heading"
    return ""


# What the handbook promises.

# Messages in docs/troubleshooting.md, commands that print them, and the arguments of a
# queue that exists already. Other tests cause most of the other messages.
QUEUES = {
    "RESOURCE_LOCKED": (["simple/consumer.py"], {"queue": "hello", "exclusive": True}),
    "Not delivered: …": (["fanout/producer.py"], {"queue": "", "exclusive": True}),
    "PRECONDITION_FAILED - Invalid x-match …": (
        ["advanced/headers/consumer.py", "level=5"],
        {"queue": "", "exclusive": True},
    ),
    "No answer in … s": (
        ["rpc/producer.py", "--timeout", "1"],
        {"queue": "rpc_queue", "durable": True},
    ),
}


def documented(message: str) -> str:
    """Return the message. Assert that docs/troubleshooting.md has a row for it."""
    (table,) = section("docs/troubleshooting.md", "By message").tables
    assert f"`{message}`" in "".join(row[0] for row in table)
    return message


@pytest.mark.parametrize("message", QUEUES)
def test_existing_queue_prints_the_message_in_the_table(start, channel, message):
    command, queue = QUEUES[message]
    channel.queue_declare(**queue)
    process = start(*command)
    assert process.wait() == 1, process
    assert re.search(pattern(documented(message)), process.errors[-1]), process


def test_missing_pika_prints_the_message_in_the_table():
    command = [sys.executable, "-S", "-I", ROOT / "simple/producer.py"]
    errors = subprocess.run(command, capture_output=True, text=True).stderr
    assert errors.endswith("No module named 'pika'\n")


def module(text: str) -> str:
    """Return the Python module in docs/production.md that contains a text."""
    (found,) = [b.text for b in blocks(MODULES[:1], "python") if text in b.text]
    return found


def test_module_for_web_apps_confirms_and_reconnects(broker, channel, monkeypatch):
    monkeypatch.setenv("AMQP_URL", broker.url)
    names: dict[str, object] = {}
    exec(module("def publish("), names)
    publish = names["publish"]
    queue = channel.queue_declare("", exclusive=True).method.queue
    with ThreadPoolExecutor(max_workers=4) as pool:
        list(pool.map(publish, [queue] * 20, [b"x"] * 20))
    publish(queue, b"x")
    connection = names["local"].channel.connection
    connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)
    publish(queue, b"x")
    assert message_count(channel, queue) == 22
    with pytest.raises(pika.exceptions.UnroutableError):
        publish("no such queue", b"x")
    _, properties, _ = channel.basic_get(queue)
    assert properties.delivery_mode == pika.spec.PERSISTENT_DELIVERY_MODE


def test_fixture_for_your_own_tests_works(broker, tmp_path):
    yours = """def publish_order(channel, queue, item):
        channel.basic_publish("", queue, b'{"item": "%s"}' % item.encode())\n"""
    (tmp_path / "test_yours.py").write_text(yours + module("@pytest.fixture"))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    environment = os.environ | {"TEST_AMQP_URL": broker.url}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)


# The set of pages.


@pytest.mark.parametrize("page", [page for page in ALL if page.startswith("README")])
def test_readme_is_short_and_has_a_row_for_each_lesson(page):
    assert len((ROOT / page).read_text().splitlines()) <= 150
    tables = [table for part in sections(page) for table in part.tables]
    cells = "".join(row[0] for table in tables for row in table)
    missing = [lesson for lesson in LESSONS if f"]({lesson}/" not in cells]
    assert not missing, f"{page} has no row for these"


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_page_has_its_sections_and_shows_both_scripts(lesson):
    page = f"{lesson}/README.md"
    titles = [part.title for part in sections(page) if part.level == 2]
    assert titles in (LESSON_SECTIONS, [*LESSON_SECTIONS, "Versions"])
    typed = "".join(b.text for group in terminal_groups([page]) for b in group)
    links = [link for block in blocks([page], "python") for link in block.links]
    for script in ("producer.py", "consumer.py"):
        assert f"$ python {lesson}/{script}" in typed
        assert script in links


# Both languages.


@pytest.mark.parametrize("page", ENGLISH)
def test_chinese_twin_has_the_same_content(page):
    assert (ROOT / twin(page)).is_file(), f"Write {twin(page)}, the Chinese {page}"
    for pair in itertools.zip_longest(sections(page), sections(twin(page))):
        assert None not in pair, f"{page}: only one language has this section: {pair}"
        english, chinese = map(neutral, pair)
        for part, value in english.items():
            where = " and ".join(f"{s.page}:{s.line}" for s in pair)
            assert chinese[part] == value, f"the {part} at {where}"


def neutral(part: Section) -> dict[str, object]:
    """Return everything in a section that doesn't depend on the language."""
    code_spans = r"(`+[^`]+`+)"
    return {
        "level": part.level,
        "kinds of blocks": [(block.info, bool(block.reason)) for block in part.blocks],
        "blocks": [neutral_text(block) for block in part.blocks],
        # In a row, the languages can put code in another order. Numbers aside, a first
        # column has code and links, too.
        "table rows": [
            [sorted(re.findall(code_spans, " ".join(row))) for row in table]
            for table in part.tables
        ],
        "links": sorted(neutral_link(part.page, target) for _, target in part.links),
    }


def neutral_text(block: Block) -> object:
    if block.info == "mermaid":
        return re.sub(r'"[^"]*"', '""', block.text)
    return block.text if block.info.startswith("console") else code(block.text)


def neutral_link(page: str, target: str) -> str:
    if re.match(r"https?://", target):
        return target
    path, _, anchor = target.partition("#")
    path = os.path.normpath(os.path.join(os.path.dirname(page), path) if path else page)
    if anchor and (ROOT / path).is_file():
        anchors = [heading.anchor for heading in sections(path)]
        anchor = str(anchors.index(anchor)) if anchor in anchors else anchor
    path = path.replace(".zh-CN.md", ".md").removesuffix("README.md").rstrip("/")
    return f"{path}#{anchor}"
