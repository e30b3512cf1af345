"""Publishers that number their messages, and say a number again until it is answered."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import aiohttp
import pika
import pika.exceptions

from tests.chaos.kafka import KafkaPublisher
from tests.chaos.sources import LIVE, WORK, Source
from tests.support.rabbit import NOT_CONNECTED

# Seconds that an answer may take before its outcome counts as unknown.
ANSWER = 8.0


class HttpPublisher:
    """Publishes over the gateways; 503 and the like are a No, anything unclear is unknown."""

    def __init__(self, source: Source, url: str, interval: float) -> None:
        self.source = source
        self._url = f"{url}/publish{source.destination}"
        self._interval = interval
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while not self._stopping.is_set():
                await self._publish(session, self.source.confirmed + 1)
                await asyncio.sleep(self._interval)

    async def _publish(self, session: aiohttp.ClientSession, number: int) -> None:
        source = self.source
        while True:
            source.copies[number] += 1
            try:
                async with session.post(self._url, data=source.body(number)) as answer:
                    status, text = answer.status, await answer.text()
            except (aiohttp.ClientError, OSError, TimeoutError):
                await asyncio.sleep(0.2)
                continue
            if status == 200:
                break
            said = json.loads(text)
            if said["code"] not in ("outcome_unknown", "publish_failed", "internal"):
                assert said["retry"], f"{self._url}: {status} {text}"
                source.copies[number] -= 1  # It says that it did not publish.
                source.refused += 1
            await asyncio.sleep(0.2)
        source.confirmed = number
        if source.copies[number] < 2:
            del source.copies[number]

    def stop(self) -> None:
        """Finish the number at hand."""
        self._stopping.set()


class AmqpPublisher:
    """Publishes at RabbitMQ itself with confirms, as a back end does; in a thread of its own.

    What has to be kept is published as mandatory, because RabbitMQ confirms what reaches no queue,
    and just after a start not all bindings and streams are there yet.
    """

    def __init__(self, source: Source, url: str, interval: float) -> None:
        self.source = source
        self._parameters = pika.URLParameters(url)
        self._parameters.socket_timeout = ANSWER
        self._parameters.stack_timeout = ANSWER
        self._parameters.heartbeat = 4
        self._interval = interval
        self._stopping = threading.Event()
        self._abandoned = False

    async def run(self) -> None:
        try:
            await asyncio.to_thread(self._run)
        finally:
            self._abandoned = True  # Nobody can cancel a thread.

    def stop(self) -> None:
        """Finish the number at hand."""
        self._stopping.set()

    def _run(self) -> None:
        while not self._abandoned:
            try:
                connection = pika.BlockingConnection(self._parameters)
            except NOT_CONNECTED:
                time.sleep(0.3)
                continue
            try:
                channel = connection.channel()
                channel.confirm_delivery()
                while not self._abandoned:
                    if not self._publish(channel):
                        return
                    connection.sleep(self._interval)
            except (pika.exceptions.AMQPError, OSError):
                time.sleep(0.3)
            finally:
                _close(connection)

    def _publish(self, channel: pika.adapters.blocking_connection.BlockingChannel) -> bool:
        source = self.source
        number = source.confirmed + 1
        if self._stopping.is_set() and number not in source.copies:
            return False
        exchange, key = ("", source.queue) if source.kind == WORK else ("amq.topic", source.key)
        source.copies[number] += 1
        persistent = pika.BasicProperties(delivery_mode=2)
        body, mandatory = source.body(number).encode(), source.kind != LIVE
        try:
            channel.basic_publish(exchange, key, body, persistent, mandatory)
        except pika.exceptions.UnroutableError:
            source.copies[number] -= 1  # It came back: it is in no queue.
            source.refused += 1
            return True
        source.confirmed = number
        if source.copies[number] < 2:
            del source.copies[number]
        return True


def _close(connection: pika.BlockingConnection) -> None:
    try:
        if connection.is_open:
            connection.close()
    except (pika.exceptions.AMQPError, OSError):
        return  # It was lost: there is nothing to close.


Publisher = HttpPublisher | AmqpPublisher | KafkaPublisher


def make_publisher(source: Source, url: str, broker: str, interval: float) -> Publisher:
    if source.via == "amqp":
        return AmqpPublisher(source, broker, interval)
    if source.via == "kafka":
        return KafkaPublisher(source, broker, interval)
    return HttpPublisher(source, url, interval)
