"""Reaching Kafka: logins, TLS, permissions, and what is told while it is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from queuecast.brokers.base import TopicSpec
from queuecast.brokers.files import NO_FILES, Files
from queuecast.brokers.kafka import KafkaBroker
from queuecast.brokers.kafka.address import Address
from queuecast.brokers.kafka.control import Control
from queuecast.destination import Destination
from queuecast.errors import (
    ConfigError,
    Conflict,
    LoginRefused,
    Refused,
    Unavailable,
)
from tests.e2e.clients import gateway, get, request
from tests.support.confluent import allow, create, produce, read_all
from tests.support.kafka import Kafka, KafkaServer
from tests.support.processes import free_port
from tests.support.proxy import TcpProxy
from tests.support.servers import unique
from tests.support.sinks import DeliveryList, FeedList, eventually

# A busy machine takes a minute to start Kafka.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

D = Destination.parse


@contextlib.asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[KafkaBroker]:
    broker = KafkaBroker(url, **options)
    try:
        await broker.start()
        yield broker
    finally:
        await broker.close()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("user", ["admin", "scram256", "scram512"])
async def test_logins_with_and_without_tls(kafka_own: KafkaServer, user: str, tls: bool) -> None:
    topic = await asyncio.to_thread(create, kafka_own)
    await asyncio.to_thread(allow, kafka_own, user, "topic", topic, "read", "write", "describe")
    await asyncio.to_thread(allow, kafka_own, user, "group", f"queuecast.{topic}", "read")
    files = Files(cafile=str(kafka_own.cafile)) if tls else NO_FILES
    async with started(kafka_own.login(user, tls=tls), files=files) as broker:
        assert broker.ready
        assert "secret" not in broker.name
        sink, work = FeedList(), DeliveryList()
        await broker.open_feed(D(f"/topic/{topic}"), sink)
        await broker.publish(D(f"/topic/{topic}"), b"1")
        assert await sink.got(1) == [b"1"]
        work.consumer = await broker.consume(D(f"/queue/{topic}"), work)
        assert await work.got(1) == [b"1"]
        assert work.ack()


async def test_a_wrong_password_is_a_refusal_of_the_login(kafka_own: KafkaServer) -> None:
    for user in ("admin", "scram256"):
        url = kafka_own.login(user).replace("secret", "wrong")
        with pytest.raises(LoginRefused) as caught:
            async with started(url):
                pass
        assert user in caught.value.text
        assert "broker.url" in caught.value.hint
        assert "wrong" not in str(caught.value)


async def test_a_certificate_of_nobody_is_told(kafka_own: KafkaServer) -> None:
    with pytest.raises(Unavailable) as caught:
        async with started(kafka_own.login("admin", tls=True)):
            pass
    assert "certificate" in str(caught.value)


async def test_missing_permissions_are_refusals_by_name(kafka_own: KafkaServer) -> None:
    topic = await asyncio.to_thread(create, kafka_own)
    readable = await asyncio.to_thread(create, kafka_own)
    await asyncio.to_thread(allow, kafka_own, "plain", "topic", readable, "read", "describe")
    async with started(kafka_own.login("plain")) as broker:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            f"read topic '{topic}'": lambda: broker.open_feed(D(f"/topic/{topic}"), FeedList()),
            f"write to topic '{topic}'": lambda: broker.publish(D(f"/topic/{topic}"), b"1"),
            f"write to topic '{readable}'": lambda: broker.publish(D(f"/queue/{readable}"), b"1"),
            f"use the group 'queuecast.{readable}'": lambda: broker.consume(
                D(f"/queue/{readable}"), DeliveryList()
            ),
        }
        for what, call in calls.items():
            with pytest.raises(Refused) as caught:
                await call()
            assert what in caught.value.text
            assert "'plain'" in caught.value.text
            assert "kafka-acls" in caught.value.hint
        # What is allowed goes on.
        sink = FeedList()
        await broker.open_feed(D(f"/topic/{readable}"), sink)
        await asyncio.to_thread(produce, kafka_own, readable, [b"1"])
        assert await sink.got(1) == [b"1"]


async def test_no_broker_is_unavailable_and_says_why() -> None:
    with pytest.raises(Unavailable) as caught:
        async with started(f"kafka://127.0.0.1:{free_port()}"):
            pass
    assert "refused" in str(caught.value)
    with pytest.raises(Unavailable) as caught:
        async with started("kafka://no-such-host.invalid"):
            pass
    assert "away" in str(caught.value)


async def test_any_of_several_servers_will_do(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka)
    async with started(f"kafka://127.0.0.1:{free_port()},{kafka.bootstrap}") as broker:
        await broker.publish(D(f"/topic/{topic}"), b"1")


@pytest.fixture(scope="module")
def strict() -> Iterator[KafkaServer]:
    """A Kafka that creates no topics by itself."""
    if Kafka.external() is not None:
        pytest.skip("Kafka: KAFKA_BOOTSTRAP names a Kafka that this test must not configure")
    server = KafkaServer("auto.create.topics.enable=false")
    server.start()
    yield server
    server.close()


async def test_unknown_topics_where_none_are_created(strict: KafkaServer) -> None:
    topic = unique("missing")
    async with gateway(broker={"url": strict.url}) as gw:
        answer = await get(f"{gw.url}/sse/topic/{topic}", headers={"Accept": "application/json"})
        assert answer.status == 404
        assert topic in answer.json["text"]
        assert "[[topic]]" in answer.json["hint"]
        answer = await request("POST", f"{gw.url}/publish/topic/{topic}", data="1")
        assert (answer.status, answer.json["code"]) == (404, "not_found")
        answer = await request("POST", f"{gw.url}/publish/queue/{topic}", data="1")
        assert answer.json["code"] == "unroutable"
        await asyncio.to_thread(create, strict, 1, topic)
        answer = await request("POST", f"{gw.url}/publish/topic/{topic}", data="1")
        assert answer.status == 200


async def test_configured_topics_are_created(strict: KafkaServer) -> None:
    one, two = unique("made"), unique("made")
    topics = (TopicSpec(one, 3, 1, {"retention.ms": "60000"}), TopicSpec(two))
    for _ in range(2):  # there already, the second time
        async with started(strict.url, topics=topics) as broker:
            sink = FeedList()
            await broker.open_feed(D(f"/topic/{one}"), sink)
            assert len(sink.start or ()) == 3
    with pytest.raises(Conflict) as caught:
        async with started(strict.url, topics=[TopicSpec(one, 4)]):
            pass
    assert "3 partitions" in caught.value.text
    assert "4" in caught.value.text
    for bad in (
        TopicSpec(unique("made"), 1, 9),
        TopicSpec(unique("made"), 1, 1, {"nonsense": "1"}),
    ):
        with pytest.raises(ConfigError) as wrong:
            async with started(strict.url, topics=[bad]):
                pass
        assert bad.name in wrong.value.text


async def test_a_gateway_starts_without_kafka_and_goes_on_when_it_is_there(
    kafka_own: KafkaServer,
) -> None:
    topic = await asyncio.to_thread(create, kafka_own)
    await asyncio.to_thread(kafka_own.kill)
    async with gateway(broker={"url": kafka_own.url}) as gw:
        answer = await get(f"{gw.url}/readyz")
        assert answer.status == 503
        assert "refused" in answer.text
        assert (await get(f"{gw.url}/healthz")).status == 200
        answer = await request("POST", f"{gw.url}/publish/topic/{topic}", data="1")
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        await asyncio.to_thread(kafka_own.start)
        await eventually(lambda: gw.gateway.broker.ready, "ready", 60)
        answer = await request("POST", f"{gw.url}/publish/topic/{topic}", data="1")
        assert answer.status == 200
    await asyncio.to_thread(read_all, kafka_own, topic, 1)


async def test_a_broker_that_stops_answering_is_noticed(kafka: Kafka) -> None:
    host, _, port = kafka.bootstrap.rpartition(":")
    async with TcpProxy(host, int(port)) as proxy:
        control = Control(Address.parse(f"kafka://127.0.0.1:{proxy.port}"), answer=0.5)
        proxy.stall()
        with pytest.raises(Unavailable) as caught:
            await control.start()
        assert "no answer" in str(caught.value)
        await control.close()


def test_a_missing_library_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from queuecast.brokers import factory

    monkeypatch.setattr(factory, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        factory.make_broker("kafka://h")
    assert "pip install 'queuecast[kafka]'" in caught.value.hint


def test_a_cafile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        KafkaBroker("kafkas://h", files=Files(cafile=str(tmp_path / "missing.pem")))
