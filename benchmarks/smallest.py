"""The smallest program that sends a message with pika, to compare start-up times."""

import os

import pika

connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
channel = connection.channel()
channel.queue_declare("hello", durable=True, arguments={"x-queue-type": "quorum"})
channel.basic_publish("", "hello", b"Hello")
connection.close()
print(" [x] Sent 'Hello'")
