"""Draw a real run of a lesson: both terminals side by side, as an SVG for the README.

    python tools/picture.py              writes tools/pictures/run.svg

It starts work_queue/ on a broker of its own, and draws what the two ends have printed.
"""

from __future__ import annotations

import io
import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

from broker import BrokerError, private
from end import ROOT, End
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.terminal_theme import TerminalTheme
from rich.text import Text

PICTURE = ROOT / "tools" / "pictures" / "run.svg"
TASKS = ["Resize.", "Encode..."]
HEIGHT = 8
WIDTH = 58
# A dark terminal on a page of either colour; nothing stands on the page itself.
THEME = TerminalTheme((13, 17, 23), (230, 237, 243), [(72, 79, 88), (255, 123, 114),
    (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207),
    (177, 186, 196)])  # fmt: skip


def run() -> list[tuple[str, End]]:
    """Return the worker and the producer after their run, each with the command that is typed."""
    with private() as broker:
        worker = End("work_queue/consumer.py", url=broker.url)
        try:
            worker.ready()
            producer = End("work_queue/producer.py", *TASKS, url=broker.url)
            if producer.end() != 0:
                raise AssertionError(producer)
            worker.wait_for("Done", times=len(TASKS))
        finally:
            worker.kill()
    tasks = " ".join(f"'{task}'" for task in TASKS)
    return [
        ("python work_queue/consumer.py", worker),
        (f"python work_queue/producer.py {tasks}", producer),
    ]


def draw(ends: list[tuple[str, End]], file: Path) -> None:
    console = Console(record=True, width=2 * WIDTH + 1, file=io.StringIO())
    terminals = []
    for number, (command, end) in enumerate(ends, start=1):
        text = Text("$ ", style="green")
        text.append(command + "\n", style="bold white")
        for line in end.lines:
            text.append(line + "\n", style="cyan" if "Received" in line else "white")
        text.rstrip()
        terminals.append(
            Panel(text, title=f"terminal {number}", width=WIDTH, height=HEIGHT, border_style="blue")
        )
    console.print(Columns(terminals, padding=(0, 1)))
    svg = console.export_svg(title="work_queue", theme=THEME, unique_id="run")
    # rich names a font on a server of its own: a picture asks nobody for anything.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")
    svg = "\n".join(line.rstrip() for line in svg.splitlines() if line.strip()) + "\n"
    file.parent.mkdir(exist_ok=True)
    file.write_text(svg)


def main() -> None:
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    draw(run(), PICTURE)
    print(f"{PICTURE.relative_to(ROOT)} shows the run.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (AssertionError, BrokerError) as error:
        sys.exit(f"picture: {error}")
