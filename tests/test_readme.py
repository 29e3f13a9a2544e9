"""The README: what it shows is run, what it links to is there, and both languages say the same.

A block of ```console is a terminal: each line that begins with $ is typed, the others are printed.
Blocks ```console terminal-1, terminal-2 … that follow each other run together, consumers first. In
what is printed, … stands for anything. A block that is not run has a comment before it: <!-- not
run: the reason -->.

A link such as [`basic_ack(`](work_queue/consumer.py#L76) has to name the first line of that file in
which its text stands. Lines move: `python tests/test_readme.py` corrects the numbers.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, CHINESE = "README.md", "README.zh-CN.md"
PAGES = (ENGLISH, CHINESE)
ENDS = ("producer", "consumer")
LINE = re.compile(r"\[`([^`]+)`\]\(([\w/.-]+)#L(\d+)\)")


@dataclass
class Block:
    info: str
    text: str
    reason: str  # why it is not run
    line: int
    above: str  # the paragraph before it

    @property
    def terminal(self) -> bool:
        return self.info.startswith("console terminal-")


@dataclass
class Section:
    level: int
    title: str
    blocks: list[Block] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)  # rows of cells, as written
    targets: list[str] = field(default_factory=list)  # of links and images


@cache
def sections(page: str) -> list[Section]:
    """Return the parts of a page, each with what stands in it."""
    parsed = MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text())
    found: list[Section] = []
    comment = above = ""
    for i, token in enumerate(parsed):
        if token.type == "heading_open":
            found.append(Section(int(token.tag[1:]), parsed[i + 1].content))
        elif token.type == "fence":
            reason = re.fullmatch(r"<!-- not run: (.+) -->", comment, re.DOTALL)
            line = token.map[0] + 1
            found[-1].blocks.append(
                Block(token.info, token.content, reason[1] if reason else "", line, above)
            )
        elif token.type == "table_open":
            found[-1].tables.append([])
        elif token.type == "tr_open":
            found[-1].tables[-1].append([])
        elif token.type == "inline":
            found[-1].targets += targets(token)
            if parsed[i - 1].type in ("th_open", "td_open"):
                found[-1].tables[-1][-1].append(token.content)
            above = token.content
        comment = token.content.strip() if token.type == "html_block" else ""
    return found


def targets(token: Token) -> list[str]:
    return [
        unquote(str(child.attrs.get("href") or child.attrs.get("src")))
        for child in token.children or []
        if child.type in ("link_open", "image")
    ]


def anchor(title: str) -> str:
    """Return the anchor that GitHub, GitLab and Gitea give to a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def scenes(page: str) -> list[list[Block]]:
    """Return the blocks that are run, those for terminals side by side together."""
    found: list[list[Block]] = []
    for section in sections(page):
        for block in section.blocks:
            if not block.info.startswith("console") or block.reason:
                continue
            if block.terminal and found and found[-1][-1].terminal and block.info[-1] != "1":
                found[-1].append(block)
            else:
                found.append([block])
    return found


def pattern(shown: list[str]) -> str:
    """Return the regular expression that the lines of a terminal have to match."""
    return "\n".join(".*".join(map(re.escape, line.split("…"))) for line in shown)


def typed(block: Block) -> list[tuple[str, list[str]]]:
    """Return the commands of a block, each with the lines that it is shown to print."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        else:
            commands[-1][1].append(line)
    return commands


def test_every_console_block_runs_or_says_why_not():
    blocks = [block for section in sections(ENGLISH) for block in section.blocks]
    assert {block.info.split()[0] for block in blocks} <= {"console", "mermaid"}
    assert all(block.text.startswith("$ ") for block in blocks if "console" in block.info)
    lessons = re.findall(r"python (\w+/(?:\w+/)*\w+\.py)", str(scenes(ENGLISH)))
    # advanced/dead_letter is shown, and marked as not run.
    scripts = [*ROOT.glob("*/*er.py"), *ROOT.glob("advanced/confirms/*er.py")]
    scripts = {str(path.relative_to(ROOT)) for path in scripts if path.stem in ENDS}
    assert len(scripts) == 14
    assert scripts <= set(lessons)


@pytest.mark.parametrize(
    ("page", "word"),
    [(ENGLISH, "Terminal {}:"), (CHINESE, "终端 {}：")],  # noqa: RUF001
)
def test_a_reader_sees_which_terminal_a_block_is_for(page, word):
    blocks = [block for section in sections(page) for block in section.blocks if block.terminal]
    assert len(blocks) > 10
    for block in blocks:
        assert block.above == word.format(block.info[-1]), block


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(
            scene,
            id=f"line-{scene[0].line}",
            marks=[pytest.mark.unconfirmed] if "simple/producer.py" in str(scene) else [],
        )
        for scene in scenes(ENGLISH)
    ],
)
def test_a_console_block_prints_what_the_page_shows(start, scene):
    ends = []
    code = None
    for block in scene:
        for command, shown in typed(block):
            if command == "echo $?":
                assert shown == [str(code)]
                continue
            python, script, *arguments = shlex.split(command)
            assert python == "python"
            end = start(script, *arguments)
            if script.endswith("consumer.py"):
                end.ready()
            else:
                code = end.end()
                assert block.terminal is False or code == 0, str(end)
            ends.append((end, shown))
    for end, shown in ends:
        if end.process.poll() is None:
            end.wait_until(
                lambda end=end, shown=shown: len(end.lines) >= len(shown), f"{shown}: {end}"
            )
            # A consumer that takes a count ends by itself, and a signal to a Python that is ending
            # kills it. So first let it be.
            with contextlib.suppress(subprocess.TimeoutExpired):
                end.process.wait(0.5)
            code = end.end() if end.process.poll() is not None else end.stop()
            assert code == 0, str(end)
        assert re.fullmatch(pattern(shown), "\n".join([*end.lines, *end.errors])), (
            f"the page shows\n{shown}\nbut {end}"
        )


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_somewhere(page):
    anchors = {anchor(section.title) for section in sections(page)}
    used = [target for section in sections(page) for target in section.targets]
    assert len(used) > 20
    broken = [
        target
        for target in used
        if not re.match(r"https?://", target)
        and not (target.startswith("#") and target[1:] in anchors)
        and not (not target.startswith("#") and (ROOT / target.split("#")[0]).is_file())
    ]
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_every_section_is_in_the_contents_or_under_one_that_is(page):
    listed = {target for target in sections(page)[0].targets if target.startswith("#")}
    big = {f"#{anchor(section.title)}" for section in sections(page) if section.level == 2}
    assert big <= listed


def first_line(file: str, text: str) -> int:
    """Return the number of the first line of a file that has text in it; 0 if there is none."""
    lines = (ROOT / file).read_text().splitlines()
    return next((n for n, line in enumerate(lines, start=1) if text in line), 0)


@pytest.mark.parametrize("page", PAGES)
def test_a_link_to_a_line_leads_to_what_it_says(page):
    links = LINE.findall((ROOT / page).read_text())
    assert len(links) > 20
    wrong = [
        f"{file}: {text!r} is on line {first_line(file, text)}, not {number}"
        for text, file, number in links
        if int(number) != first_line(file, text) or number == "0"
    ]
    assert wrong == [], "`python tests/test_readme.py` corrects the numbers"


def test_both_languages_have_the_same_sections_commands_outputs_and_tables():
    pairs = itertools.zip_longest(sections(ENGLISH), sections(CHINESE))
    for english, chinese in pairs:
        where = f"{english and english.title} / {chinese and chinese.title}"
        assert english, where
        assert chinese, where
        assert english.level == chinese.level, where
        assert [(b.info, b.text) for b in english.blocks] == [
            (b.info, b.text) for b in chinese.blocks
        ], where
        assert [bool(b.reason) for b in english.blocks] == [
            bool(b.reason) for b in chinese.blocks
        ], where
        assert [*map(first_column, english.tables)] == [*map(first_column, chinese.tables)], where
        assert [*map(codes, english.tables)] == [*map(codes, chinese.tables)], where
        # A sentence of one language may have its links in another order; anchors are translated.
        assert sorted(map(neutral, english.targets)) == sorted(map(neutral, chinese.targets)), where


def first_column(table: list[list[str]]) -> list[str]:
    """Return what does not depend on the language in a table's first column: code, links, numbers.

    A row whose first cell is a sentence counts as a row.
    """
    return [" ".join(re.findall(r"`[^`]+`|\[\w+\]\(#\w+\)|^\d+$", row[0])) for row in table]


def codes(table: list[list[str]]) -> list[list[str]]:
    """Return the code in each row of a table, in any order: names, values and commands."""
    return [sorted(re.findall(r"`[^`]+`", " ".join(row))) for row in table]


def neutral(target: str) -> str:
    anchors = [
        {anchor(section.title): str(n) for n, section in enumerate(sections(page))}
        for page in PAGES
    ]
    if target.startswith("#"):
        name = target[1:]
        return f"#{anchors[0].get(name) or anchors[1].get(name)}"
    return target.replace(CHINESE, ENGLISH)  # each links to the other


if __name__ == "__main__":
    for name in PAGES:
        file = ROOT / name
        text = LINE.sub(lambda m: f"[`{m[1]}`]({m[2]}#L{first_line(m[2], m[1])})", file.read_text())
        file.write_text(text)
        missing = [link for link in LINE.findall(text) if link[2] == "0"]
        if missing:
            sys.exit(f"{name}: not in the file that it links to: {missing}")
