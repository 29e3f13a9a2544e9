# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Long tasks: work in a thread, so that heartbeats continue. Finish before you exit.

    producer.py --> (default exchange) --> [queue "videos"] -+-> consumer.py
                                                             +-> consumer.py

    python advanced/long_tasks/consumer.py

Start it, then run producer.py. Press Ctrl+C during a task: the consumer finishes it and
exits. Press Ctrl+C twice: it exits immediately, and another consumer gets the task.
"""

import os
import signal
import sys
import threading
import time

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def work(task):
    """Do one task. Here: sleep a second for each dot."""
    time.sleep(task.count("."))


def main():
    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()
    quorum = {"x-queue-type": "quorum"}
    channel.queue_declare(queue="videos", durable=True, arguments=quorum)
    channel.basic_qos(prefetch_count=1)  # take one task at a time
    busy = stopping = False

    def on_message(channel, method, properties, body):
        nonlocal busy
        busy = True
        task = body.decode(errors="replace")
        print(f" [x] Received {task!r}")

        # Work in another thread, so that this one can send heartbeats. Without those,
        # the broker would close the connection during a long task.
        done = []  # stays empty if work() raises an exception
        thread = threading.Thread(target=lambda: done.append(work(task)), daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(timeout=1)
            connection.process_data_events()  # sends and receives heartbeats
        if not done:
            # The thread has printed why. Exit without acknowledging the task, so that
            # the broker redelivers it.
            sys.exit(f" [!] Failed {task!r}")
        print(f" [x] Done {task!r}")

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
    channel.basic_consume(queue="videos", on_message_callback=on_message)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
    if not stopping:
        text = "Was the queue deleted, or did a task outlast consumer_timeout?"
        sys.exit(f" [!] The broker cancelled our consumer. {text}")
    connection.close()


# Skip this on a first read: it's the same in every consumer.
def connect():
    try:
        parameters = pika.URLParameters(AMQP_URL)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")
    try:
        return pika.BlockingConnection(parameters)
    except Exception as error:  # many types: refused, unknown host, TLS, timeout
        hint = "Is it running, and are user, password, host and vhost right?"
        sys.exit(f" [!] Can't connect to RabbitMQ: {error!r}. {hint}")


if __name__ == "__main__":
    # Print immediately, even to a pipe, and any character, even to an old terminal.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        pass
    except pika.exceptions.AMQPError as error:
        sys.exit(f" [!] {error!r}")
