"""The pages: commands print what's shown, excerpts match the scripts, links work.

Below a paragraph that links to a script, a block is an excerpt from it. A line "..."
stands for lines left out. In Chinese, comments are translated.
"""

from __future__ import annotations

import ast
import itertools
import os
import re
import textwrap
import warnings
from pathlib import Path

import pytest

from tools.common import ROOT
from tools.demo import run_terminals
from tools.lessons import LESSONS
from tools.pages import Block, Section, blocks, sections, terminal_groups

GLOBS = "*.md", "docs/*.md", "[a-z]*/README*.md", "advanced/*/README*.md"
FILES = sorted(path for glob in GLOBS for path in ROOT.glob(glob))
ALL = [path.relative_to(ROOT).as_posix() for path in FILES]
ENGLISH = [page for page in ALL if not page.endswith(".zh-CN.md")]
CHINESE = [page for page in ALL if page.endswith(".zh-CN.md")]
LESSON_SECTIONS = ["Run it", "How it works", "Try this next", "What can go wrong"]


def twin(page: str) -> str:
    """Return the path of an English page's Chinese twin."""
    return page.replace(".md", ".zh-CN.md")


def english(page: str) -> str:
    return page.replace(".zh-CN", "")


# Console blocks.


@pytest.mark.usefixtures("start")  # deletes the queues
@pytest.mark.parametrize("page", ENGLISH)
def test_consoles_print_what_the_page_shows(page, broker, capsys):
    for terminals in terminal_groups([page]):
        run_terminals(terminals, broker.url)
    output = capsys.readouterr().out
    assert ("terminal 1 | $ " in output) == bool(terminal_groups([page]))
    assert "\x1b" not in output  # no colors outside a terminal


def test_blocks_are_of_a_kind_that_we_check():
    for block in blocks(ALL):
        kind = block.info.split()[0] if block.info else ""
        assert kind in ("console", "mermaid", "python", "ini", "yaml"), block.place
        assert kind != "console" or block.text.startswith("$ "), block.place


@pytest.mark.parametrize("page", ALL)
def test_paragraph_names_the_terminal(page):
    word = "终端 {}:" if page in CHINESE else "Terminal {}:"
    for block in blocks([page], "console terminal-"):
        above = block.above.replace("\N{FULLWIDTH COLON}", ":")
        assert above == word.format(block.terminal), block.place


# Excerpts.


def code(text: str) -> str:
    """Return a source text without comments and empty lines."""
    lines = [re.split(r"(?:^|\s)#\s", line)[0].rstrip() for line in text.splitlines()]
    return without_empty_lines("\n".join(lines))


def without_empty_lines(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line.strip())


def first_difference(excerpt: str, script: str) -> str:
    """Return the excerpt's first line that isn't where it should be in the script."""
    found = "^"
    for line in excerpt.splitlines():
        found += r"(.*\n)*?" if line.strip() == "..." else re.escape(line) + r"\n"
        if not re.search(found, script, re.MULTILINE):
            return line
    return ""


def excerpted(block: Block) -> Path | None:
    """Return the file that the paragraph above an excerpt links to."""
    files = [(ROOT / block.page).parent / link for link in block.links]
    files = [path for path in files if path.is_file() and path.suffix != ".md"]
    return files[-1] if files else None


@pytest.mark.parametrize("page", ALL)
def test_excerpts_have_the_lines_of_the_script(page):
    for block in blocks([page]):
        path = excerpted(block)
        if not re.match("python|ini|yaml", block.info):
            continue
        if path is None:
            assert block.info != "python" or ast.parse(block.text), block.place
            assert not re.match("From|摘自", block.above), f"{block.place}: which file?"
            continue
        lines = without_empty_lines if page in ENGLISH else code
        wrong = [
            first_difference(
                textwrap.indent(lines(block.text), " " * columns),
                lines(path.read_text()),
            )
            for columns in (0, 4, 8, 12, 16)
        ]
        assert "" in wrong, f"{block.place}: not in {path}: {wrong}"


@pytest.mark.parametrize("lesson", ["simple", "work_queue"])
def test_chinese_page_shows_the_whole_lesson_with_chinese_comments(lesson):
    page = sections(f"{lesson}/README.zh-CN.md")
    (details,) = [part for part in page if part.title == "details"]
    for script in ("producer.py", "consumer.py"):
        source = (ROOT / lesson / script).read_text()
        functions = [
            n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)
        ]
        (main,) = [function for function in functions if function.name == "main"]
        lines = source.splitlines()[main.lineno - 1 : main.end_lineno]
        texts = [b.text for b in details.blocks if b.links == [script]]
        assert any(code("\n".join(lines)) in code(text) for text in texts), script
        comments = re.findall(r"#\s.*", "".join(texts))
        assert comments
        assert all(re.search(r"[\u4e00-\u9fff]", comment) for comment in comments)


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
    if page in CHINESE and file != ROOT / english(page):
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


# The set of pages.


def tables(page: str) -> list[list[list[str]]]:
    return [table for part in sections(page) for table in part.tables]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_readme_is_short_and_has_a_row_for_each_lesson(page):
    assert len((ROOT / page).read_text().splitlines()) <= 150
    cells = "".join(row[0] for table in tables(page) for row in table)
    linked = re.findall(r"\]\(((?:advanced/)?\w+)/[\w.-]*\)", cells)
    assert linked == list(LESSONS), "one row for each lesson, in their order"


@pytest.mark.parametrize("page", ["docs/concepts.md", "docs/concepts.zh-CN.md"])
def test_concepts_table_has_the_lessons_exchanges_and_queues(page):
    found = {}
    for row in itertools.chain(*tables(page)):
        link = re.search(r"\]\(\.\./((?:advanced/)?\w+)/[\w.-]*\)", row[0])
        if link and link[1] in LESSONS and len(row) >= 3:
            names = [re.findall(r"`(\w+)`", cell) for cell in row[1:3]]
            found[link[1]] = tuple(map(tuple, names))
    expected = {
        name: (tuple(lesson.exchanges), tuple(lesson.queues))
        for name, lesson in LESSONS.items()
        if name in found
    }
    assert found
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_page_has_its_sections_and_shows_both_scripts(lesson):
    page = f"{lesson}/README.md"
    titles = [part.title for part in sections(page) if part.level == 2]
    assert [t for t in titles if t != "Versions"] == [*LESSON_SECTIONS, "Next"]
    typed = "".join(b.text for group in terminal_groups([page]) for b in group)
    links = [link for block in blocks([page], "python") for link in block.links]
    for script in ("producer.py", "consumer.py"):
        assert f"$ python {lesson}/{script}" in typed
        assert script in links


# Both languages.


@pytest.mark.parametrize("page", ENGLISH)
def test_chinese_twin_has_the_same_content(page):
    """A twin that lags behind is only a warning, unless TWINS=error, as in CI."""
    difference = first_difference_between_languages(page)
    if difference and os.environ.get("TWINS") != "error":
        warnings.warn(difference, stacklevel=1)
    else:
        assert not difference


def first_difference_between_languages(page: str) -> str:
    if not (ROOT / twin(page)).is_file():
        return f"{twin(page)}, the Chinese {page}, doesn't exist"
    chinese = [part for part in sections(twin(page)) if part.title != "details"]
    for pair in itertools.zip_longest(sections(page), chinese):
        if None in pair:
            return f"{page}: only one language has this section: {pair}"
        one, other = map(neutral, pair)
        where = " and ".join(f"{part.page}:{part.line}" for part in pair)
        for key, value in one.items():
            if other[key] != value:
                return f"the {key} at {where}: {value} and {other[key]}"
    return ""


def neutral(part: Section) -> dict[str, object]:
    """Return everything in a section that doesn't depend on the language."""
    code_spans = r"(`+[^`]+`+)"
    return {
        "level": part.level,
        "kinds of blocks": [(block.info, bool(block.reason)) for block in part.blocks],
        "blocks": [neutral_text(block) for block in part.blocks],
        # In a row, the languages can put code in another order.
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
