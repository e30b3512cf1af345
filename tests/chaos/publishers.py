"""Publishers that number their messages, and say a number again until it is answered."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time

import aiohttp
import pika
import pika.exceptions

from tests.chaos.clock import now
from tests.chaos.kafka_publisher import KafkaPublisher
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
            if said["code"] == "publish_failed":
                source.nacked.append((now(), text))
            elif said["code"] not in ("outcome_unknown", "internal"):
                source.copies[number] -= 1  # It says that it did not publish.
                source.refused += 1
                if not said["retry"]:
                    source.denied.append((now(), f"{status} {text}"))
            await asyncio.sleep(0.2)
        source.confirm(number)

    def stop(self) -> None:
        """Finish the number at hand."""
        self._stopping.set()


class AmqpPublisher:
    """Publishes at RabbitMQ itself with confirms, as a back end does; in a thread of its own.

    What has to be kept is published as mandatory, because RabbitMQ confirms what reaches no queue,
    and just after a start not all bindings and streams are there yet. urls: of the nodes, of which
    it takes the next one when a connection ends.
    """

    def __init__(self, source: Source, urls: list[str], interval: float) -> None:
        self.source = source
        parameters = [pika.URLParameters(url) for url in urls]
        for each in parameters:
            each.socket_timeout = ANSWER
            each.stack_timeout = ANSWER
            each.heartbeat = 4
        self._nodes = itertools.cycle(parameters)
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
                connection = pika.BlockingConnection(next(self._nodes))
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
        exchange, key = source.exchange, source.queue if source.kind == WORK else source.key
        source.copies[number] += 1
        persistent = pika.BasicProperties(delivery_mode=2)
        body, mandatory = source.body(number).encode(), source.kind != LIVE
        try:
            channel.basic_publish(exchange, key, body, persistent, mandatory)
        except pika.exceptions.UnroutableError:
            source.copies[number] -= 1  # It came back: it is in no queue.
            source.refused += 1
            return True
        except pika.exceptions.NackError:
            source.nacked.append((now(), "basic.nack"))
            time.sleep(0.2)
            return True
        source.confirm(number)
        return True


def _close(connection: pika.BlockingConnection) -> None:
    try:
        if connection.is_open:
            connection.close()
    except (pika.exceptions.AMQPError, OSError):
        return  # It was lost: there is nothing to close.


Publisher = HttpPublisher | AmqpPublisher | KafkaPublisher
