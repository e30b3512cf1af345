"""A back end on RabbitMQ that knows nothing of Queuecast: it publishes to a topic exchange.

pip install pika
python progress_worker.py

A page at /sse/exchange/rabbitmq/zjj (or /ws/exchange/rabbitmq/zjj) shows what it says.
"""

import os

import pika

AMQP = os.environ.get("AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")


def main() -> None:
    connection = pika.BlockingConnection(pika.URLParameters(AMQP))
    channel = connection.channel()
    channel.exchange_declare("rabbitmq", "topic", durable=True)
    channel.basic_publish("rabbitmq", "zjj", b"[disk.info] Hello World!333")
    connection.close()


if __name__ == "__main__":
    main()
