"""Draw a real run of a lesson for the README: an SVG for each of the two terminals.

python tools/picture.py              writes tools/pictures/*.svg
"""

from __future__ import annotations

from xml.sax.saxutils import escape

from broker import exit_on_error, temporary_broker
from script import ROOT, ScriptProcess

PICTURES = ROOT / "tools" / "pictures"
TASKS = ["Resize.", "Encode..."]
# In pixels. A page shows two terminals side by side, and a phone one above the other.
WIDTH, LINE = 408, 18

# A dark terminal, readable on a page of either color.
TERMINAL = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" \
viewBox="0 0 {width} {height}" font-size="12" \
font-family="ui-monospace, Menlo, Consolas, monospace">
<rect x="1" y="1" width="{inner_width}" height="{inner_height}" rx="8" \
fill="#0d1117" stroke="#58a6ff"/>
<text x="12" y="24" fill="#7d8590">terminal {number}</text>
{lines}
</svg>
"""


def run() -> dict[str, list[str]]:
    """Return both terminals' lines, by the name of the picture."""
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
    return {
        "consumer": ["$ python work_queue/consumer.py", *consumer.output],
        "producer": [f"$ python work_queue/producer.py {tasks}", *producer.output],
    }


def draw(number: int, output: list[str], height: int) -> str:
    """Return an SVG of a terminal."""
    lines = "\n".join(
        f'<text x="12" y="{24 + LINE * n}" fill="#e6edf3">{escape(line)}</text>'
        for n, line in enumerate(output, start=1)
    )
    return TERMINAL.format(
        width=WIDTH,
        height=height,
        inner_width=WIDTH - 2,
        inner_height=height - 2,
        number=number,
        # A viewer would leave out a line's first spaces.
        lines=lines.replace("> ", ">\N{NO-BREAK SPACE}"),
    )


def main() -> None:
    terminals = run()
    height = 40 + LINE * max(map(len, terminals.values()))
    PICTURES.mkdir(exist_ok=True)
    for number, (name, output) in enumerate(terminals.items(), start=1):
        path = PICTURES / f"{name}.svg"
        path.write_text(draw(number, output, height))
        print(f"{path.relative_to(ROOT)} shows the run.")


if __name__ == "__main__":
    exit_on_error(main)
