"""The pages: commands print what's shown, excerpts match the scripts, links work.

In a ```console block, lines that begin with $ are typed, and the others are printed. In
these, … stands for anything, and alone on a line for any number of lines. A line ^C
shows where the reader presses Ctrl+C. Blocks ```console terminal-1, terminal-2 … that
follow each other run side by side.
A comment above a block that we can't run says why: <!-- not run: the reason -->.

Below a paragraph that links to a script, a block is an excerpt from it. A line "..."
stands for lines left out. Comments can differ from the script's.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pika
import pytest
from conftest import message_count
from lessons import LESSONS
from markdown_it import MarkdownIt
from markdown_it.token import Token
from script import READY, ROOT, ScriptProcess

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


@dataclass
class Block:
    page: str
    line: int
    info: str  # such as "console terminal-1"
    text: str
    above: str  # the paragraph before it
    links: list[str]  # in that paragraph
    reason: str  # why we don't run it

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass
class Section:
    page: str
    line: int
    level: int
    title: str
    blocks: list[Block] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)  # rows of cells
    links: list[tuple[int, str]] = field(default_factory=list)  # lines and targets

    @property
    def anchor(self) -> str:
        """The anchor that GitHub, GitLab and Gitea give to a heading."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


@cache
def sections(page: str) -> list[Section]:
    """Return the sections of a page, in order."""
    markdown = (ROOT / page).read_text()
    found: list[Section] = []
    comment = above = ""
    links: list[str] = []
    line = 0
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    for i, token in enumerate(tokens):
        line = token.map[0] + 1 if token.map else line
        if token.type == "heading_open":
            title = tokens[i + 1].content
            found.append(Section(page, line, int(token.tag[1:]), title))
        elif token.type == "fence":
            reason = re.fullmatch(r"<!-- not run: (.+) -->", comment, re.DOTALL)
            about = above, links, reason[1] if reason else ""
            found[-1].blocks.append(
                Block(page, line, token.info, token.content, *about)
            )
        elif token.type == "table_open":
            found[-1].tables.append([])
        elif token.type == "tr_open":
            found[-1].tables[-1].append([])
        elif token.type == "inline":
            above, links = token.content, targets(token)
            found[-1].links += [(line, target) for target in links]
            if tokens[i - 1].type in ("th_open", "td_open"):
                found[-1].tables[-1][-1].append(token.content)
        comment = token.content.strip() if token.type == "html_block" else ""
    return found


def targets(token: Token) -> list[str]:
    return [
        unquote(str(child.attrs.get("href") or child.attrs.get("src")))
        for child in token.children or []
        if child.type in ("link_open", "image")
    ]


def section(page: str, title: str) -> Section:
    """Return the section with that English title, from either language's page."""
    english = sections(page.replace(".zh-CN", ""))
    (number,) = [i for i, part in enumerate(english) if part.title == title]
    return sections(page)[number]


def blocks(pages: list[str], kind: str = "") -> list[Block]:
    """Return the pages' blocks whose info begins with `kind`."""
    found = [
        block for page in pages for part in sections(page) for block in part.blocks
    ]
    return [block for block in found if block.info.startswith(kind)]


# Console blocks.


def scenes() -> list[list[Block]]:
    """Return the blocks that we run. Those that run side by side are together."""
    found: list[list[Block]] = []
    for block in blocks(ENGLISH, "console"):
        if block.reason:
            continue
        number = int(block.info.partition("terminal-")[2] or 1)
        if number > 1:
            found[-1].append(block)
        else:
            found.append([block])
    return found


def commands(block: Block) -> list[tuple[str, list[str]]]:
    """Return the typed commands, each with the lines that it's shown to print."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line != "^C":  # we stop every consumer after its last line
            found[-1][1].append(line)
    return found


def pattern(text: str) -> str:
    """Return a regular expression for a text in which … stands for anything."""
    return ".*".join(map(re.escape, text.split("…")))


def check_output(process: ScriptProcess, shown: list[str], place: str) -> None:
    """Compare both streams. A lesson's lines on standard output begin with [x]."""
    for stream, printed in enumerate((process.errors, process.output)):
        expected = [
            line
            for line in shown
            if line == "…" or bool(re.match(r" \[[x*.]\]", line)) == stream
        ]
        parts = [r"(.*\n)*" if e == "…" else pattern(e) + r"\n" for e in expected]
        text = "".join(f"{line}\n" for line in printed)
        assert re.fullmatch("".join(parts), text), (
            f"{place} shows\n" + "\n".join(shown) + f"\nbut {process}"
        )


def run(start, block: Block, folder: Path) -> Iterator[None]:
    """Run a terminal's commands. Pause while a consumer waits for other terminals."""
    status = 0
    typed = commands(block)
    followers = [command for command, _ in typed[1:]] + [""]
    for (command, shown), follower in zip(typed, followers, strict=True):
        if command == "echo $?":
            assert shown == [str(status)], block.place
            continue
        python, script, *arguments = shlex.split(command)
        assert python == "python", f"{block.place}: we can't run {command!r}"
        process = start(script, *arguments, cwd=folder)
        if script.endswith("consumer.py"):
            process.wait_until(
                lambda p=process: p.count(*READY) or not p.running, process
            )
        if script.endswith("consumer.py") and process.running:
            yield  # until the other terminals have started their scripts
            count = len([line for line in shown if line != "…"])
            with contextlib.suppress(AssertionError):  # check_output explains it better
                process.wait_until(
                    lambda p=process, n=count: (
                        len(p.output + p.errors) >= n or not p.running
                    ),
                    process,
                )
            yield  # until the other consumers have their messages, too
            if follower != "echo $?":
                process.kill()  # the reader presses Ctrl+C
        status = process.wait()
        status = status if status >= 0 else 128 - status  # as a shell prints it
        check_output(process, shown, block.place)
        if follower != "echo $?":
            assert status in (0, 128 + signal.SIGKILL), f"{block.place}: {process}"


@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene[0].place)
def test_console_block_prints_what_the_page_shows(start, scene, tmp_path):
    terminals = [run(start, block, tmp_path) for block in scene]
    while terminals:
        terminals = [t for t in terminals if next(t, "finished") != "finished"]


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
        assert above == word.format(block.info[-1]), block.place


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
    typed = "".join(block.text for block in blocks([page], "console"))
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
