"""What the tools and the tests know about the lessons: each has one entry here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """What a lesson declares on the broker, and how a message reaches its consumer."""

    send_to: tuple[str, str]  # an exchange and a routing key
    queues: Sequence[str] = ()
    exchanges: Sequence[str] = ()

    @property
    def queue(self) -> str | None:
        """The queue that the consumer takes messages from, unless it's a private one.

        The default exchange, "", has a binding to each queue with the queue's name.
        """
        exchange, routing_key = self.send_to
        return routing_key if exchange == "" else None


LESSONS = {
    "simple": Lesson(("", "hello"), queues=["hello"]),
    "work_queue": Lesson(("", "task_queue"), queues=["task_queue"]),
    "fanout": Lesson(("logs", ""), exchanges=["logs"]),
    "direct": Lesson(("direct_logs", "info"), exchanges=["direct_logs"]),
    "topic": Lesson(("topic_logs", "kern.info"), exchanges=["topic_logs"]),
    "rpc": Lesson(("", "rpc_queue"), queues=["rpc_queue"]),
    "advanced/confirms": Lesson(("", "confirms"), queues=["confirms"]),
    "advanced/dead_letter": Lesson(
        ("", "orders"), queues=["orders", "dead_orders"], exchanges=["dead_letters"]
    ),
    "advanced/retry": Lesson(
        ("", "emails"),
        queues=[
            "emails",
            "emails_wait_1s",
            "emails_wait_3s",
            "emails_wait_9s",
            "dead_emails",
        ],
    ),
    "advanced/idempotent": Lesson(("", "purchases"), queues=["purchases"]),
    "advanced/headers": Lesson(("headers_logs", ""), exchanges=["headers_logs"]),
    "advanced/stream": Lesson(("", "events"), queues=["events"]),
}

PRODUCERS = [f"{lesson}/producer.py" for lesson in LESSONS]
CONSUMERS = [f"{lesson}/consumer.py" for lesson in LESSONS]
SCRIPTS = sorted([*PRODUCERS, *CONSUMERS])
