"""docs/troubleshooting.md: each message has a row, and a test that causes it."""

from __future__ import annotations

import re

from tools.common import ROOT
from tools.pages import sections

# No test can cause these here, and why.
NOT_CAUSED = {
    "externally-managed-environment": "pip prints it outside of our environment",
}


def test_each_row_has_a_test_that_causes_its_message():
    page = sections("docs/troubleshooting.md")
    (table,) = next(part for part in page if part.title == "By message").tables
    sources = [path.read_text() for path in (ROOT / "tests").glob("**/test_*.py")]
    caused = re.findall(r'documented\(\s*"([^"]+)"', "".join(sources))
    untested = [
        row[0]
        for row in table[1:]
        if not {*caused, *NOT_CAUSED} & set(re.findall(r"`([^`]+)`", row[0]))
    ]
    assert not untested
