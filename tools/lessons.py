"""What the tools and the tests know about the lessons: each has one entry here.

The entries are in the order in which people read the lessons.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """What a lesson declares on the broker, and how a message reaches its consumer."""

    # An exchange and a routing key. A consumer without arguments gets such a message.
    send_to: tuple[str, str]
    queues: Sequence[str] = ()
    exchanges: Sequence[str] = ()


LESSONS = {
    "simple": Lesson(("", "hello"), queues=["hello"]),
    "work_queue": Lesson(("", "task_queue"), queues=["task_queue"]),
    "fanout": Lesson(("logs", ""), exchanges=["logs"]),
    "direct": Lesson(("direct_logs", "info"), exchanges=["direct_logs"]),
    "topic": Lesson(("topic_logs", "kern.info"), exchanges=["topic_logs"]),
    "rpc": Lesson(("", "rpc_queue"), queues=["rpc_queue"]),
    "advanced/long_tasks": Lesson(("", "videos"), queues=["videos"]),
    "advanced/reconnect": Lesson(("", "jobs"), queues=["jobs"]),
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
    "advanced/ordered": Lesson(
        ("", "shipments_0"), queues=["shipments_0", "shipments_1"]
    ),
    "advanced/headers": Lesson(("headers_logs", ""), exchanges=["headers_logs"]),
    "advanced/stream": Lesson(("", "events"), queues=["events"]),
    "advanced/web": Lesson(("", "signups"), queues=["signups"]),
}

PRODUCERS = [f"{lesson}/producer.py" for lesson in LESSONS]
CONSUMERS = [f"{lesson}/consumer.py" for lesson in LESSONS]
SCRIPTS = sorted([*PRODUCERS, *CONSUMERS])
