# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Reconnect: a worker that continues when the broker restarts, or on another node.

    producer.py --> (default exchange) --> [queue "jobs"] -+-> consumer.py
                                                           +-> consumer.py

    python advanced/reconnect/consumer.py

Start it, then run producer.py. Restart the broker during a task: the worker finishes
the task, reconnects, and receives it again. Ctrl+C finishes the task and exits. A
second Ctrl+C exits immediately.
"""

import itertools
import os
import signal
import sys
import threading
import time

import pika

# One broker, or the nodes of a cluster, separated by commas.
AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def work(task):
    """Do one task. Here: sleep a second for each dot."""
    time.sleep(task.count("."))


def main():
    nodes = [parameters(url) for url in AMQP_URL.split(",")]
    busy = stopping = False

    def on_message(channel, method, properties, body):
        nonlocal busy
        busy = True
        task = body.decode(errors="replace")
        print(f" [x] Received {task!r}")

        # Work in another thread, so that this one can send heartbeats. Without those,
        # the broker would close the connection during a long task.
        done = []  # stays empty if work() raises an exception
        lost = None
        thread = threading.Thread(target=lambda: done.append(work(task)), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(timeout=1)
            try:
                if not lost:
                    channel.connection.process_data_events()
            except pika.exceptions.AMQPConnectionError as error:
                # We can't acknowledge the task any more, so the broker redelivers it.
                # Finish it before we reconnect, so that it doesn't overlap the next.
                lost = error
                print(f" [!] Disconnected. Finishing {task!r} first.", file=sys.stderr)
        if not done:
            # The thread has printed why. Exit without acknowledging the task, so that
            # the broker redelivers it.
            sys.exit(f" [!] Failed {task!r}")
        print(f" [x] Done {task!r}")
        if lost:
            raise lost

        # Acknowledge in this thread, because no other may use the connection.
        if channel.is_open:  # if it isn't, start_consuming raises the broker's reason
            if stopping:
                channel.stop_consuming()  # before the ack, which asks for another task
            channel.basic_ack(delivery_tag=method.delivery_tag)
        busy = False
        if stopping and channel.is_open:
            channel.stop_consuming()  # the signal came during the ack

    # Exit when the task is acknowledged, or immediately if there isn't one.
    def stop(signum, frame):
        nonlocal stopping
        stopping = True
        signal.signal(signum, signal.SIG_DFL)  # the second time, exit immediately
        if not busy:
            sys.exit()

    signal.signal(signal.SIGINT, stop)  # Ctrl+C
    signal.signal(signal.SIGTERM, stop)  # sent by docker stop, systemd or Kubernetes

    # Try the nodes in turn. The broker forgets our channel and our consumer with the
    # connection, so set them up again each time.
    for node in itertools.cycle(nodes):
        try:
            connection = connect(node)
            channel = connection.channel()
            quorum = {"x-queue-type": "quorum"}
            channel.queue_declare(queue="jobs", durable=True, arguments=quorum)
            channel.basic_qos(prefetch_count=1)  # take one task at a time
            channel.basic_consume(queue="jobs", on_message_callback=on_message)
            print(" [*] Waiting for messages. To exit press CTRL+C")
            channel.start_consuming()
            if not stopping:
                text = "Was the queue deleted, or did a task outlast consumer_timeout?"
                sys.exit(f" [!] The broker cancelled our consumer. {text}")
            return connection.close()
        except pika.exceptions.AMQPConnectionError as error:
            busy = False  # the task isn't ours any more
            if stopping:
                raise  # exit with status 1, because the task isn't acknowledged
            retry(node, error)


# Skip this on a first read: it's the same in every script that reconnects.
def parameters(url):
    try:
        return pika.URLParameters(url)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")


def connect(node):
    try:
        return pika.BlockingConnection(node)
    except pika.exceptions.AMQPConnectionError:
        raise
    except Exception as error:  # many types: unknown host, TLS, timeout
        raise pika.exceptions.AMQPConnectionError(error) from error


def retry(node, error):
    """Print why there's no connection and wait a second. Exit if a retry can't help."""
    line = f" [!] RabbitMQ at {node.host}:{node.port}: {error!r}."
    refused = "ACCESS_REFUSED" in line or "NOT_ALLOWED" in line
    if refused and "connection limit" not in line:  # others might disconnect soon
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
