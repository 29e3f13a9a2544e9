# /// script
# requires-python = ">=3.10"
# dependencies = ["pika>=1.3,<1.5"]
# ///
"""Retry: if an email fails, retry it after 1, 3 and 9 seconds. Others don't wait.

    producer.py --> [queue "emails"] <--> consumer.py --> [queue "dead_emails"]
                         ^                     | failed
    after 1, 3 or 9 s    |                     v
                         +---- [queue "emails_wait_1s", "_3s" or "_9s"]

    python advanced/retry/consumer.py

Start it, then run producer.py. An email that fails four times goes to dead_emails.
"""

import os
import sys

import pika

AMQP_URL = os.environ.get("AMQP_URL", "amqp://guest:guest@localhost:5672/%2F")

DELAYS = [1, 3, 9]  # seconds before the second, third and fourth attempt


def send_email(email, attempt):
    """Send one email. Here: one attempt fails for each dot."""
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
    connection = connect()
    channel = connection.channel()

    # Keep dead emails, however often you look at them. By default, RabbitMQ 4 deletes a
    # message that's returned to its queue more than 20 times.
    dead = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000}
    channel.queue_declare(queue="dead_emails", durable=True, arguments=dead)

    # An email that crashes us must not crash us forever: when it's returned for the
    # fourth time, it's a dead letter.
    emails = dead_letters_to("dead_emails") | {"x-delivery-limit": 3}
    channel.queue_declare(queue="emails", durable=True, arguments=emails)

    # One wait queue for each delay. No script consumes from it: after x-message-ttl, an
    # email there is a dead letter, and the broker moves it back to the queue emails.
    for delay in DELAYS:
        wait = dead_letters_to("emails") | {"x-message-ttl": delay * 1000}  # in ms
        channel.queue_declare(f"emails_wait_{delay}s", durable=True, arguments=wait)

    # Publisher confirms: basic_publish now returns only when the broker has stored the
    # email on disk. With mandatory, it raises an exception if the queue doesn't exist.
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
        except OSError as error:  # an error that might pass, such as those of a network
            queue = "dead_emails"
            if attempt <= len(DELAYS):
                queue = f"emails_wait_{DELAYS[attempt - 1]}s"
            print(f" [!] Failed {email!r}: {error}. Next: {queue}", file=sys.stderr)

            # Keep the sender's headers, but not the broker's, such as x-death.
            headers = {key: headers[key] for key in headers if key[:2] != "x-"}
            properties.headers = headers | {"attempt": attempt + 1}

            # Publish first, and acknowledge after the confirm. If we crash in between,
            # the email exists twice, but it isn't lost.
            channel.basic_publish("", queue, body, properties, mandatory=True)
        else:
            print(f" [x] Done {email!r}")
        channel.basic_ack(delivery_tag=method.delivery_tag)

    # Take one email at a time. If we crash, each that we hold counts as returned.
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue="emails", on_message_callback=on_message)
    print(" [*] Waiting for messages. To exit press CTRL+C")
    channel.start_consuming()
    sys.exit(" [!] The broker cancelled our consumer. Was the queue deleted?")


# The same in every consumer: connecting, Ctrl+C, and the broker's errors in one line.
def connect():
    try:
        parameters = pika.URLParameters(AMQP_URL)
        if "@" in parameters.virtual_host:  # an unescaped / in the password
            raise ValueError
    except Exception as error:  # print it only if it can't contain the password
        hint = "It should look like amqp://user:password@host:5672/%2F"
        sys.exit(f" [!] AMQP_URL: {error if 'URL parameter' in str(error) else hint}")
    try:
        return pika.BlockingConnection(parameters)
    except Exception as error:  # refused, unknown host, TLS, no answer: of many types
        hint = "Is it running? Are user, password, host and vhost right?"
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
