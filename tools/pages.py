"""Read the pages: their sections, tables and blocks, and what their terminals show.

In a ```console block, lines that begin with $ are typed, and the others are printed. In
these, … stands for anything, and alone on a line for any number of lines. A line ^C
shows where the reader presses Ctrl+C. Blocks ```console terminal-1, terminal-2 … that
follow each other run side by side.
Port 8000 stands for any free port.
A comment above a block that we can't run says why: <!-- not run: the reason -->.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import unquote

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tools.common import ROOT


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

    @property
    def terminal(self) -> str:
        return self.info.partition("terminal-")[2] or "1"


@dataclass
class Section:
    page: str
    line: int
    level: int  # of its heading, or 0 for a <details> element
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
        elif token.type == "html_block" and "<details>" in token.content:
            found.append(Section(page, line, 0, "details"))
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


def blocks(page: str, kind: str = "") -> list[Block]:
    """Return the page's blocks whose info begins with `kind`."""
    found = [block for part in sections(page) for block in part.blocks]
    return [block for block in found if block.info.startswith(kind)]


def terminal_groups(page: str) -> list[list[Block]]:
    """Return the terminals to run. Those that run side by side are together."""
    found: list[list[Block]] = []
    for block in blocks(page, "console"):
        if block.reason:
            continue
        if block.terminal == "1":
            found.append([])
        found[-1].append(block)
    return found


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return the typed commands in a console, each with the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line != "^C":  # we stop every consumer after its last line
            found[-1][1].append(line)
    return found


def pattern(text: str) -> str:
    """Return a regular expression for a string in which … stands for anything."""
    return ".*".join(map(re.escape, text.split("…")))
