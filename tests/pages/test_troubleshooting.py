"""docs/troubleshooting.md: each message has a row, and a test that causes it."""

import re

from tests.helpers import message_rows
from tools.common import ROOT

NOT_CAUSED = "externally-managed-environment"  # pip prints it, outside of .venv


def test_each_row_has_a_test_that_causes_its_message():
    """The test calls documented() with the message."""
    sources = [path.read_text() for path in (ROOT / "tests").glob("**/test_*.py")]
    strings = re.findall(r'"([^"\n]+)"', "".join(sources))
    assert not [
        row
        for row in message_rows()
        if not {*strings, NOT_CAUSED} & set(re.findall(r"`([^`]+)`", row))
    ]
