"""Draw a real run of a lesson as an SVG for the README: two terminals, side by side.

python tools/picture.py              writes tools/pictures/run.svg
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from broker import exit_on_error, temporary_broker
from script import ROOT, ScriptProcess

PICTURE = ROOT / "tools" / "pictures" / "run.svg"
TASKS = ["Resize.", "Encode..."]
WIDTH, HEIGHT, LINE = 480, 190, 20  # of a terminal and of a line, in pixels

# A dark terminal, readable on a page of either color.
TERMINAL = """\
<g transform="translate({x} 0)">
<rect width="{width}" height="{height}" rx="8" fill="#0d1117" stroke="#58a6ff"/>
<text x="16" y="28" fill="#7d8590">terminal {number}</text>
{lines}
</g>
"""


def run() -> list[list[str]]:
    """Return two terminals' lines: of the consumer and of the producer."""
    with temporary_broker() as broker:
        consumer = ScriptProcess("work_queue/consumer.py", url=broker.url)
        try:
            consumer.wait_until_ready()
            producer = ScriptProcess("work_queue/producer.py", *TASKS, url=broker.url)
            assert producer.wait() == 0, producer
            consumer.wait_for("Done", times=len(TASKS))
        finally:
            consumer.kill()
    tasks = " ".join(f"'{task}'" for task in TASKS)
    return [
        ["$ python work_queue/consumer.py", *consumer.output],
        [f"$ python work_queue/producer.py {tasks}", *producer.output],
    ]


def draw(terminals: list[list[str]]) -> str:
    """Return an SVG of the terminals."""
    width = len(terminals) * (WIDTH + 10) - 10
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" '
        'xml:space="preserve">\n'
    )
    for i, output in enumerate(terminals):
        lines = "\n".join(
            f'<text x="16" y="{28 + LINE * n}" fill="#e6edf3">{escape(line)}</text>'
            for n, line in enumerate(output, start=1)
        )
        svg += TERMINAL.format(
            x=i * (WIDTH + 10), width=WIDTH, height=HEIGHT, number=i + 1, lines=lines
        )
    return svg + "</svg>\n"


def main() -> None:
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(draw(run()))
    print(f"{PICTURE.relative_to(ROOT)} shows the run.")


if __name__ == "__main__":
    exit_on_error(main)
