"""What the tools and the tests know about the lessons: each has an entry here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Lesson:
    """What a lesson declares on the broker, and how the demo shows it.

    The demo starts the consumers one after the other, each once the one before is
    ready. Then it runs the producers one after the other. It waits for the expected
    lines, and for the remaining messages. If a message kills a consumer, it starts that
    consumer again, as a supervisor would. In the end it stops the consumers and runs
    the `afterwards`, if any. The scripts run in an empty folder.

    "[x] Done 'tea'" as an expected line means: of all lines that begin with "[x] Done",
    exactly those that we list here appear, in any order. An "…" stands for any text.
    """

    queues: Sequence[str] = ()
    exchanges: Sequence[str] = ()
    consumers: Sequence[Sequence[str]] = ((),)  # the arguments of each consumer.py
    producers: Sequence[Sequence[str]] = ((),)  # the arguments of each producer.py
    # The lines expected from each consumer, or one list for all of them together.
    consumed: Sequence[Sequence[str]] = ((),)
    produced: Sequence[str] = ()  # the lines expected from the producers together
    remaining: Mapping[str, int] = field(default_factory=dict)  # messages in a queue
    afterwards: Sequence[Sequence[str]] = ()  # the arguments of each consumer.py
    found: Sequence[str] = ()  # the lines expected from these together


TASKS = ["First task.", "Second task..", "Third task.", "Fourth task."]

LESSONS = {
    "simple": Lesson(
        queues=["hello"],
        consumed=[[f"[x] Received '兔子{i}'" for i in range(10)]],
    ),
    "work_queue": Lesson(
        queues=["task_queue"],
        consumers=[[], []],
        producers=[TASKS],
        consumed=[
            [f"[x] {verb} {task!r}" for task in TASKS for verb in ("Received", "Done")]
        ],
        produced=[f"[x] Sent {task!r}" for task in TASKS],
    ),
    "fanout": Lesson(
        exchanges=["logs"],
        consumers=[[], []],
        producers=[["info: Hello World!"], ["warning: disk full"]],
        consumed=[
            ["[x] Received 'info: Hello World!'", "[x] Received 'warning: disk full'"]
        ]
        * 2,
    ),
    "direct": Lesson(
        exchanges=["direct_logs"],
        consumers=[["error"], []],
        producers=[["info", "All is well"], ["error", "Disk full"]],
        consumed=[
            ["[x] Received error: 'Disk full'"],
            ["[x] Received info: 'All is well'", "[x] Received error: 'Disk full'"],
        ],
    ),
    "topic": Lesson(
        exchanges=["topic_logs"],
        consumers=[["kern.*"], ["*.critical"]],
        producers=[
            ["kern.info", "Booted"],
            ["kern.critical", "Panic"],
            ["cron.critical", "No space"],
        ],
        consumed=[
            ["[x] Received …kern.info…Booted…", "[x] Received …kern.critical…Panic…"],
            ["[x] Received …kern.critical…", "[x] Received …cron.critical…No space…"],
        ],
    ),
    "rpc": Lesson(
        queues=["rpc_queue"],
        consumers=[[], []],
        producers=[["5", "10", "20"]],
        consumed=[[f"[.] fib({n})" for n in (5, 10, 20)]],
        produced=[
            f"[.] Got fib({n}) = {fib}" for n, fib in [(5, 5), (10, 55), (20, 6765)]
        ],
    ),
    "advanced/confirms": Lesson(
        queues=["confirms"],
        producers=[["1000"]],
        consumed=[["[x] Received 1000"]],
        produced=["[x] Confirmed 1000 …"],
    ),
    "advanced/dead_letter": Lesson(
        queues=["orders", "dead_orders"],
        exchanges=["dead_letters"],
        consumed=[["[x] Done 'tea'", "[x] Done 'coffee'"]],
        produced=["[x] Sent …"] * 5,
        remaining={"dead_orders": 3},
        afterwards=[["--dead"]],
        found=["[x] Dead …cof…", "[x] Dead …unicorn…", "[x] Dead …bomb…"],
    ),
    "advanced/headers": Lesson(
        exchanges=["headers_logs"],
        consumers=[
            ["all", "facility=kern", "level=5"],
            ["any", "facility=kern", "level=5"],
        ],
        producers=[
            ["Kernel panic", "facility=kern", "level=5"],
            ["Login failed", "facility=auth", "level=5"],
        ],
        consumed=[
            ["[x] Received 'Kernel panic' …"],
            ["[x] Received 'Kernel panic' …", "[x] Received 'Login failed' …"],
        ],
        produced=["[x] Sent 'Kernel panic' …", "[x] Sent 'Login failed' …"],
    ),
    "advanced/retry": Lesson(
        queues=[
            "emails",
            "emails_wait_1s",
            "emails_wait_3s",
            "emails_wait_9s",
            "dead_emails",
        ],
        producers=[["Hello", "Invoice.."]],
        consumed=[["[x] Done 'Invoice..'", "[x] Done 'Hello'"]],
        produced=["[x] Sent 'Hello'", "[x] Sent 'Invoice..'"],
    ),
    "advanced/idempotent": Lesson(
        queues=["purchases"],
        producers=[["book", "pen"]],
        consumed=[["[x] Sold 'book'", "[x] Sold 'pen'"]],
        produced=["[x] Sent 'book'", "[x] Sent 'pen'"],
    ),
    "advanced/stream": Lesson(
        queues=["events"],
        consumers=[["alice"], ["bob", "1"]],
        consumed=[
            [
                "[x] Received 0: 'signup'",
                "[x] Received 1: 'login'",
                "[x] Received 2: 'purchase'",
            ],
            ["[x] Received 1: 'login'", "[x] Received 2: 'purchase'"],
        ],
        produced=[f"[x] Sent {event!r}" for event in ("signup", "login", "purchase")],
    ),
}

SCRIPTS = [
    f"{lesson}/{name}.py" for lesson in LESSONS for name in ("producer", "consumer")
]
