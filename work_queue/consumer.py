# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Work queue: workers share the tasks. If one crashes, another gets its task.

    producer.py --> (default exchange) --> [queue "task_queue"] -+-> consumer.py
                                                                 +-> consumer.py

    python work_queue/consumer.py

Start it in two terminals, then run producer.py in a third. The workers share the tasks.
After Ctrl+C the worker finishes its task. After a second one it exits immediately.
"""

import itertools
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor, TimeoutError

import pika

# One broker, or the nodes of a cluster, separated by commas.
AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

busy = stopping = False


def work(task):
    """Do one task. Here: sleep a second for each dot."""
    for _ in range(task.count(".")):
        time.sleep(1)


def consume(connection, pool):
    channel = connection.channel()
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="task_queue", durable=True, arguments=quorum)

    # Take one task at a time. Otherwise the broker sends us more of them in advance,
    # and they wait here while another worker idles.
    channel.basic_qos(prefetch_count=1)

    def on_message(channel, method, properties, body):
        global busy
        busy = True
        task = body.decode(errors="replace")
        print(f" [x] Received {task!r}")

        # Work in another thread, so that this one can keep sending heartbeats. Without
        # them, the broker would close the connection during a long task.
        future = pool.submit(work, task)
        while not future.done():
            try:
                future.exception(timeout=0.5)  # wait half a second for its end
            except TimeoutError:
                connection.process_data_events()
        if future.exception():
            # Exit without acknowledging: the broker redelivers the task.
            raise RuntimeError(f"task {task!r} failed") from future.exception()
        print(f" [x] Done {task!r}")

        # Acknowledge after the work, not before. Until then the broker keeps the task,
        # and redelivers it if we crash: it might run twice, but it isn't lost.
        if channel.is_open:  # if it isn't, start_consuming raises the broker's reason
            channel.basic_ack(delivery_tag=method.delivery_tag)
        busy = False
        if stopping:
            channel.stop_consuming()

    channel.basic_consume(queue="task_queue", on_message_callback=on_message)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
    if not stopping:
        text = "Was the queue deleted, or did a task take longer than consumer_timeout?"
        sys.exit(f" [!] The broker cancelled our consumer. {text}")


def main():
    global busy
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    nodes = [parameters(url) for url in AMQP_URL.split(",")]

    # The pool outlives a connection: if we lose it during a task, that task still
    # finishes before the next one starts.
    with ThreadPoolExecutor(max_workers=1) as pool:
        for node in itertools.cycle(nodes):
            try:
                connection = connect(node)
                consume(connection, pool)
                return connection.close()
            except pika.exceptions.AMQPConnectionError as error:
                busy = False
                retry(node, error)


def stop(signum, frame):
    """Exit when the current task is acknowledged, or immediately if there is none."""
    global stopping
    stopping = True
    signal.signal(signum, signal.SIG_DFL)  # the second time, exit immediately
    if not busy:
        sys.exit()


# The same in every script that reconnects: connecting, and errors in one line.
def parameters(url):
    try:
        parameters = pika.URLParameters(url)
        if "@" in parameters.virtual_host:  # an unescaped / in the password
            raise ValueError
        return parameters
    except Exception as error:  # print it only if it can't contain the password
        hint = "It should look like amqp://user:password@host:5672/%2F"
        sys.exit(f" [!] AMQP_URL: {error if 'URL parameter' in str(error) else hint}")


def connect(node):
    try:
        return pika.BlockingConnection(node)
    except Exception as error:  # refused, unknown host, TLS, no answer: of many types
        raise pika.exceptions.AMQPConnectionError(error) from error


def retry(node, error):
    """Print why there's no connection, and wait a second. Exit if that can't help."""
    line = f" [!] RabbitMQ at {node.host}:{node.port}: {error!r}."
    if "ACCESS_REFUSED" in line or "NOT_ALLOWED" in line:
        sys.exit(f"{line} Are user, password and vhost right?")
    print(f"{line} Retrying.", file=sys.stderr)
    time.sleep(1)


if __name__ == "__main__":
    # Print immediately, even to a pipe, and any character, even to an old terminal.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
