"""What the tools and the tests know about the lessons: each has an entry here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """What a lesson declares on the broker."""

    queues: Sequence[str] = ()
    exchanges: Sequence[str] = ()


LESSONS = {
    "simple": Lesson(queues=["hello"]),
    "work_queue": Lesson(queues=["task_queue"]),
    "fanout": Lesson(exchanges=["logs"]),
    "direct": Lesson(exchanges=["direct_logs"]),
    "topic": Lesson(exchanges=["topic_logs"]),
    "rpc": Lesson(queues=["rpc_queue"]),
    "advanced/confirms": Lesson(queues=["confirms"]),
    "advanced/dead_letter": Lesson(
        queues=["orders", "dead_orders"], exchanges=["dead_letters"]
    ),
    "advanced/headers": Lesson(exchanges=["headers_logs"]),
    "advanced/retry": Lesson(
        queues=[
            "emails",
            "emails_wait_1s",
            "emails_wait_3s",
            "emails_wait_9s",
            "dead_emails",
        ]
    ),
    "advanced/idempotent": Lesson(queues=["purchases"]),
    "advanced/stream": Lesson(queues=["events"]),
}

SCRIPTS = [
    f"{lesson}/{name}.py" for lesson in LESSONS for name in ("producer", "consumer")
]
