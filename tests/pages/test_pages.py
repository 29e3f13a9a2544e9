"""The pages: commands print what's shown, excerpts match the scripts, links work.

Below a paragraph that links to a script, a block is an excerpt from it. A line "..."
stands for lines left out. In Chinese, comments are translated.
"""

import ast
import itertools
import os
import re
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


@pytest.mark.usefixtures("start")  # deletes the queues
@pytest.mark.parametrize("page", ENGLISH)
def test_consoles_print_what_the_page_shows(page, broker):
    for terminals in terminal_groups(page):
        run_terminals(terminals, broker.url)


@pytest.mark.parametrize("page", ALL)
def test_blocks_are_of_a_kind_that_we_check(page):
    for block in blocks(page):
        kind = block.info.split()[0] if block.info else ""
        assert kind in ("console", "mermaid", "python", "ini", "yaml"), block.place
        assert kind != "console" or block.text.startswith("$ "), block.place


# Excerpts.


def code(text: str) -> str:
    """Return a source text without comments and empty lines."""
    lines = [re.split(r"(?:^|\s)#\s", line)[0].rstrip() for line in text.splitlines()]
    return without_empty_lines("\n".join(lines))


def without_empty_lines(text: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if line.strip())


def first_difference(excerpt: str, script: str) -> str:
    """Return the excerpt's first line that isn't where it should be in the script.

    The whole excerpt can be indented less than it is there.
    """
    found = "^(?P<indent> *)"
    for number, line in enumerate(excerpt.splitlines()):
        indent = "(?P=indent)" if number else ""
        same = f"{indent}{re.escape(line)}\n"
        found += r"(.*\n)*?" if line.strip() == "..." else same
        if not re.search(found, script, re.MULTILINE):
            return line
    return ""


@pytest.mark.parametrize("page", ALL)
def test_excerpts_have_the_lines_of_the_script(page):
    lines = without_empty_lines if page in ENGLISH else code
    for block in blocks(page):
        if not re.match("python|ini|yaml", block.info):
            continue
        linked = [(ROOT / page).parent / link for link in block.links]
        files = [path for path in linked if path.is_file() and path.suffix != ".md"]
        if files:
            wrong = first_difference(lines(block.text), lines(files[-1].read_text()))
            assert not wrong, f"{block.place}: not in {files[-1]}"
        else:
            assert not re.match("From|摘自", block.above), f"{block.place}: which file?"
            assert block.info != "python" or ast.parse(block.text), block.place


@pytest.mark.parametrize("script", ["producer.py", "consumer.py"])
@pytest.mark.parametrize("lesson", ["simple", "work_queue"])
def test_chinese_page_shows_the_whole_lesson_with_chinese_comments(lesson, script):
    page = sections(f"{lesson}/README.zh-CN.md")
    (details,) = [part for part in page if part.title == "details"]
    (shown,) = [block.text for block in details.blocks if block.links == [script]]
    _, main = (ROOT / lesson / script).read_text().split("def main():\n")
    assert code(main.partition("\n\n\n")[0]) in code(shown)
    comments = re.findall(r"#\s.*", shown)
    assert comments
    assert all(re.search(r"[\u4e00-\u9fff]", comment) for comment in comments)


# Links.


def resolve(page: str, target: str) -> tuple[Path, str]:
    """Return the file that a link in a page leads to, and the anchor there."""
    path, _, anchor = target.partition("#")
    file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
    index = file / "README.md"
    return index if index.is_file() else file, anchor


def anchors(file: Path) -> list[str]:
    parts = sections(str(file.relative_to(ROOT)))
    return [part.anchor for part in parts if part.level]


@pytest.mark.parametrize("page", ALL)
def test_links_lead_to_a_file_and_a_heading(page):
    links = [link for part in sections(page) for link in part.links]
    reasons = {f"{page}:{n}: {target}": why_broken(page, target) for n, target in links}
    assert not {link: reason for link, reason in reasons.items() if reason}


def why_broken(page: str, target: str) -> str:
    """Return what's wrong with a link, or nothing."""
    if re.match(r"https?://", target):
        return ""
    file, anchor = resolve(page, target)
    if not file.exists() or not file.is_relative_to(ROOT):
        return "no such file"
    chinese = file.with_name(twin(file.name))
    own_twin = ROOT / page.replace(".zh-CN", "")
    if page in CHINESE and chinese.exists() and file not in (chinese, own_twin):
        return "there's a Chinese page"
    if anchor and anchor not in anchors(file):
        return "no such heading"
    return ""


# The set of pages.


def rows(page: str) -> list[list[str]]:
    """Return the rows of all tables in a page."""
    return [row for part in sections(page) for table in part.tables for row in table]


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_readme_is_short_and_has_a_row_for_each_lesson(page):
    assert len((ROOT / page).read_text().splitlines()) <= 150
    cells = "".join(row[0] for row in rows(page))
    linked = re.findall(r"\]\(((?:advanced/)?\w+)/[\w.-]*\)", cells)
    assert linked == list(LESSONS), "one row for each lesson, in their order"


@pytest.mark.parametrize("page", ["docs/concepts.md", "docs/concepts.zh-CN.md"])
def test_concepts_table_has_the_lessons_exchanges_and_queues(page):
    found = {}
    for cell, *cells in rows(page):
        if link := re.search(r"\]\(\.\./([\w/]+)/", cell):
            found[link[1]] = [re.findall(r"`(\w+)`", each) for each in cells]
    assert len(found) > 9  # a new lesson needs no row
    for name, names in found.items():
        assert names == [[*LESSONS[name].exchanges], [*LESSONS[name].queues]], name


@pytest.mark.parametrize("lesson", LESSONS)
def test_lesson_page_has_its_sections_and_shows_both_scripts(lesson):
    page = f"{lesson}/README.md"
    titles = [part.title for part in sections(page) if part.level == 2]
    assert [t for t in titles if t != "Versions"] == [*LESSON_SECTIONS, "Next"]
    typed = "".join(b.text for group in terminal_groups(page) for b in group)
    links = [link for block in blocks(page, "python") for link in block.links]
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
    for one, other in itertools.zip_longest(sections(page), chinese):
        if not (one and other):
            return f"only one language has this section: {one or other}"
        for pair in zip(neutral(one), neutral(other), strict=True):
            if pair[0] != pair[1]:
                return f"{page}:{one.line} and {twin(page)}:{other.line}: {pair}"
    return ""


def neutral(part: Section) -> list[object]:
    """Return everything in a section that doesn't depend on the language."""
    table_rows = [" ".join(row) for table in part.tables for row in table]
    return [
        part.level,
        [(block.info, bool(block.reason)) for block in part.blocks],
        [neutral_text(block) for block in part.blocks],
        # In a row, the languages can put code in another order.
        [sorted(re.findall("`+[^`]+`+", row)) for row in table_rows],
        sorted(neutral_link(part.page, target) for _, target in part.links),
    ]


def neutral_text(block: Block) -> str:
    if block.info == "mermaid":
        return re.sub(r'"[^"]*"', '""', block.text)
    return block.text if block.info.startswith("console") else code(block.text)


def neutral_link(page: str, target: str) -> str:
    if re.match(r"https?://", target):
        return target
    file, anchor = resolve(page, target)
    number = [*anchors(file), anchor].index(anchor) if anchor else ""
    return f"{file}#{number}".replace(".zh-CN", "")
