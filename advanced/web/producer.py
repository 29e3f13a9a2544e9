# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Web: publish from a web server with many threads, and respond after the confirm.

    curl --> producer.py --> (default exchange) --> [queue "signups"] --> consumer.py

    python advanced/web/producer.py             listens on http://127.0.0.1:8000
    curl -d alice http://127.0.0.1:8000/        prints 'Accepted.'

Start consumer.py first, because it declares the queue. If the broker doesn't confirm
the signup within 5 seconds, curl prints 'Try again later.'
"""

import contextlib
import os
import queue
import sys
import threading
import uuid
from argparse import ArgumentParser
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")


def publish(body):
    """Return when the broker has confirmed the message. Otherwise, raise an exception.

    Any thread can call this. It takes at most 5 seconds.
    """
    confirmed = futures.Future()
    jobs.put_nowait((confirmed, body))  # raises queue.Full if 1,000 are waiting
    try:
        confirmed.result(timeout=5)
    finally:
        confirmed.cancel()  # if we've given up, don't start to publish it later


def start_publisher():
    """Start the thread that publishes. Call this once in each process."""
    global jobs
    jobs = queue.Queue(maxsize=1000)
    threading.Thread(target=run_publisher, daemon=True).start()


def run_publisher():
    # A pika connection isn't thread-safe. So only this thread uses one: it publishes
    # what the other threads have put into `jobs`.
    channel = None
    while True:
        try:
            confirmed, body = jobs.get(timeout=1)
        except queue.Empty:
            confirmed = None

        # If there's nothing to publish, send heartbeats. If the broker has closed the
        # connection, notice it before we publish the next message.
        if channel:
            try:
                channel.connection.process_data_events()
            except Exception:
                channel = None

        if not confirmed or not confirmed.set_running_or_notify_cancel():
            continue  # nothing to publish, or publish() has given up
        try:
            if not channel:
                channel = open_channel()
            channel.basic_publish(
                exchange="",
                routing_key="signups",
                body=body,
                properties=pika.BasicProperties(
                    delivery_mode=pika.DeliveryMode.Persistent,
                    # A consumer can recognize a redelivered message by this ID.
                    message_id=str(uuid.uuid4()),
                ),
                mandatory=True,  # raise UnroutableError if the queue doesn't exist
            )
            confirmed.set_result(True)
        except (pika.exceptions.UnroutableError, pika.exceptions.NackError) as error:
            confirmed.set_exception(error)  # the channel still works
        except Exception as error:
            confirmed.set_exception(error)
            # The broker or pika has usually closed the channel. Open another connection
            # for the next message, because that works after any error.
            with contextlib.suppress(Exception):
                channel.connection.close()
            channel = None


def open_channel():
    try:
        connection = pika.BlockingConnection(pika.URLParameters(AMQP_URL))
    except Exception as error:  # many types: refused, unknown host, TLS, timeout
        raise pika.exceptions.AMQPConnectionError(error) from error
    channel = connection.channel()

    # Publisher confirms: basic_publish returns when the broker has stored the message
    # on disk. It raises an exception if the broker refuses or disconnects.
    channel.confirm_delivery()
    return channel


# The web server. In your app, your framework does this part.
class Handler(BaseHTTPRequestHandler):
    timeout = 10  # seconds, for a client that sends nothing

    def do_POST(self):
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or len(size) > 4:
            return self.respond(400, "Content-Length must be a number up to 9999.")
        body = self.rfile.read(int(size))
        if not body or len(body) < int(size):
            return self.respond(400, "The body is empty or incomplete.")
        try:
            publish(body)
        except queue.Full:
            reason = "too many requests are waiting"
        except futures.TimeoutError:
            reason = "no confirm within 5 seconds"
        except pika.exceptions.UnroutableError:
            reason = "the queue doesn't exist. Start consumer.py first"
        except pika.exceptions.NackError:
            reason = "the broker refused the message. Is the queue full?"
        except pika.exceptions.AMQPError as error:
            reason = repr(error)
        else:
            print(f" [x] Sent {body.decode(errors='replace')!r}")
            return self.respond(202, "Accepted.")
        print(f" [!] Not confirmed: {reason}", file=sys.stderr)
        self.respond(503, "Try again later.")

    def respond(self, status, line):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f"{line}\n".encode())

    def handle(self):
        with contextlib.suppress(OSError):  # the client might disconnect at any time
            super().handle()

    def log_message(self, *arguments):
        pass  # we print our own lines


def main():
    parser = ArgumentParser(description="Accept signups over HTTP.")
    parser.add_argument("port", nargs="?", type=int, default=8000, help="default: 8000")
    port = parser.parse_args().port
    try:
        pika.URLParameters(AMQP_URL)
    except Exception:  # don't print it: it could contain a part of the password
        sys.exit(" [!] AMQP_URL should look like amqp://user:password@host:5672/%2F")
    ThreadingHTTPServer.request_queue_size = 100  # clients that we haven't accepted yet
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        sys.exit(f" [!] Can't listen on port {port}: {error}")
    start_publisher()
    print(f" [*] Listening on http://127.0.0.1:{port}. To exit press CTRL+C")
    server.serve_forever()


if __name__ == "__main__":
    # Print immediately, even to a pipe, and any character, even to an old terminal.
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        main()
    except KeyboardInterrupt:
        # Is a client still waiting? Each request has a thread. Besides those, there are
        # only this one and the publisher.
        if threading.active_count() > 2:
            sys.exit(130)
