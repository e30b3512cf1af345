"""Bytes from other programs of the broker: bodies that look like text, and headers."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import aiohttp
import pika
import pytest

from queuecast.testing import RunningGateway
from tests.conftest import RABBITS, Rabbits
from tests.e2e.clients import gateway, sse
from tests.support.confluent import Publisher, create
from tests.support.kafka import Kafkas
from tests.support.servers import RabbitMQ, unique

# A schema registry's record: text by chance, as the next one is not.
TEXT, BYTES = b"\x00\x00\x00\x00\x07\rtext", b"\x00\x00\x00\x00\x07\xffrest"
LARGE = (1 << 60) + 1


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.rabbitmq) for name in RABBITS])
def rabbit(request: pytest.FixtureRequest, rabbits: Rabbits) -> RabbitMQ:
    return rabbits.shared(request.param)


def emit(url: str, key: str) -> None:
    """Publish as a back end does."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        headers = {"bytes": b"\x00\x01", "text": b"text", "n": LARGE, "t": {"n": [LARGE, b"\xff"]}}
        for body in (TEXT, BYTES):
            connection.channel().basic_publish(
                "amq.topic", key, body, pika.BasicProperties(headers=headers)
            )


async def envelopes(gw: RunningGateway, query: str, publish: Any) -> list[dict[str, Any]]:
    async with sse(f"{gw.url}/sse{query}") as stream:
        await stream.any()
        await asyncio.to_thread(publish)
        return [(await stream.next()).json for _ in range(2)]


async def test_rabbitmq(rabbit: RabbitMQ) -> None:
    key = unique("avro")
    binary = [{"destination": f"/topic/{key}.#"}]
    async with gateway(broker={"url": rabbit.url, "start": "exit"}, binary=binary) as gw:

        def publish() -> None:
            emit(rabbit.url, f"{key}.a")

        for query in (
            f"/topic/{key}.a?envelope=json",
            "/topic/%23?envelope=json&binary=always",
            "/exchange/amq.topic/*.a?envelope=json",
        ):
            for said, body in zip(await envelopes(gw, query, publish), (TEXT, BYTES), strict=True):
                assert base64.b64decode(said["base64"]) == body, query
                assert said["headers"]["bytes"] == {"base64": "AAE="}
                assert said["headers"]["text"] == {"base64": "dGV4dA=="}
                assert said["headers"]["n"] == str(LARGE)
                assert said["headers"]["t"] == {"n": [str(LARGE), {"base64": "/w=="}]}
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{gw.url}/ws/topic/{key}.a") as socket,
        ):
            await asyncio.to_thread(publish)
            for body in (TEXT, BYTES):
                got = await socket.receive(timeout=20)
                assert (got.type, got.data) == (aiohttp.WSMsgType.BINARY, body)


@pytest.mark.kafka
@pytest.mark.timeout(400)
async def test_kafka(kafkas: Kafkas) -> None:
    kafka = kafkas.shared()
    topic = await asyncio.to_thread(create, kafka)

    def publish() -> None:
        publisher = Publisher(kafka)
        for body in (TEXT, BYTES):
            publisher.send(topic, body, b"\xff\x00", headers={"raw": b"\xff", "text": b"t"})
        publisher.flush()

    binary = [{"destination": f"/topic/{topic}"}]
    async with gateway(broker={"url": kafka.url}, binary=binary) as gw:
        found = await envelopes(gw, f"/topic/{topic}?envelope=json", publish)
        found += await envelopes(gw, f"/exchange/{topic}/%23?envelope=json&binary=always", publish)
        for said, body in zip(found, (TEXT, BYTES) * 2, strict=True):
            assert base64.b64decode(said["base64"]) == body
            assert said["headers"]["raw"] == {"base64": "/w=="}
            assert said["headers"]["text"] == "t"
            assert said["headers"]["kafka-key"] == {"base64": "/wA="}
