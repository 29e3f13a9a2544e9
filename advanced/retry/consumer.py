# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Retry: if an email fails, try again after 1, 3 and 9 seconds. Others don't wait.

    producer.py --> [queue "emails"] --> consumer.py --> [queue "dead_emails"]
                         ^                    | failed
    after 1, 3 or 9 s    |                    v
                         +---- [delay queue "emails_wait_1s", "_3s" or "_9s"]

    python advanced/retry/consumer.py

Start it, then run producer.py. An email that fails four times goes to dead_emails.
"""

import os
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

NO_LIMIT = 1_000_000_000  # no message reaches it; -1 works only since RabbitMQ 4.0
DELAYS = [1, 3, 9]  # seconds before the second, third and fourth attempt


def send_email(email, attempt):
    """Send one email. Yours needs a time limit. Here, an attempt fails for each dot."""
    if attempt <= email.count("."):
        raise ConnectionError("the mail server doesn't answer")


def dead_letters_to(queue):
    """Return the arguments of a queue that moves its dead letters to another queue."""
    return {
        "x-queue-type": "quorum",
        # Publish a dead letter to the default exchange, with this routing key.
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": queue,
        # Keep it until the other queue has confirmed it. This needs reject-publish.
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def main():
    connection = connect()  # a pika.BlockingConnection; exits if it can't connect
    channel = connection.channel()

    # Keep dead emails, however often you look at them, as in advanced/dead_letter.
    dead = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT}
    channel.queue_declare(queue="dead_emails", durable=True, arguments=dead)

    # If an email keeps crashing this consumer, dead-letter it the fourth time.
    emails = dead_letters_to("dead_emails") | {"x-delivery-limit": 3}
    channel.queue_declare(queue="emails", durable=True, arguments=emails)

    # These have no consumers. After x-message-ttl, an email goes back to emails.
    for delay in DELAYS:
        wait = dead_letters_to("emails") | {"x-message-ttl": delay * 1000}  # in ms
        queue = f"emails_wait_{delay}s"
        channel.queue_declare(queue=queue, durable=True, arguments=wait)

    # Publisher confirms: from now on, basic_publish returns when the broker has stored
    # the message on disk. It raises an exception if the broker refuses or disconnects.
    channel.confirm_delivery()

    def on_message(channel, method, properties, body):
        email = body.decode(errors="replace")

        # We count attempts in our own header, because the broker counts other things:
        # crashes (in x-delivery-count) and dead letters (in x-death).
        headers = properties.headers or {}
        attempt = headers.get("attempt", 1)
        print(f" [x] Received {email!r}, attempt {attempt}")
        try:
            send_email(email, attempt)
        except OSError as error:  # a temporary error, such as a network failure
            queue = "dead_emails"
            if attempt <= len(DELAYS):
                queue = f"emails_wait_{DELAYS[attempt - 1]}s"
            print(f" [!] Failed {email!r}: {error}. Next: {queue}", file=sys.stderr)

            # Keep the sender's headers, except CC (copies) and the broker's (x-...).
            for name in list(headers):
                if name.startswith("x-") or name == "CC":
                    del headers[name]
            properties.headers = headers | {"attempt": attempt + 1}

            # Publish first, and acknowledge after the confirm. If we crash in between,
            # the email exists twice, but it isn't lost.
            try:
                channel.basic_publish(
                    exchange="",
                    routing_key=queue,
                    body=body,
                    properties=properties,
                    mandatory=True,  # raise an exception if the queue doesn't exist
                )
            except pika.exceptions.NackError:
                sys.exit(f" [!] The broker refused the message. Is {queue} full?")
        else:
            print(f" [x] Done {email!r}")
        channel.basic_ack(delivery_tag=method.delivery_tag)

    # Take one email at a time, because a crash counts against every email that we hold.
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="emails", on_message_callback=on_message)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
    sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")


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
