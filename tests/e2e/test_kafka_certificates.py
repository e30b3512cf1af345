"""Kafka that asks for client certificates, and passwords in files that are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from queuecast.brokers.files import Files
from queuecast.destination import Destination
from queuecast.errors import ConfigError, QueuecastError, Unavailable
from tests.e2e.clients import gateway, request
from tests.e2e.test_kafka_connection import started
from tests.support.authority import Authority, Certificate
from tests.support.confluent import allow, create, set_password
from tests.support.kafka import Kafka, KafkaServer
from tests.support.processes import free_port
from tests.support.servers import unique
from tests.support.sinks import DeliveryList, FeedList, eventually

# A busy machine takes a minute to start Kafka.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]

D = Destination.parse


class MutualKafka(KafkaServer):
    """A Kafka with a further listener, and a TLS listener, that ask for certificates."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority(directory)
        self.mutual_port = free_port()
        super().__init__()

    def _properties(self, more: Sequence[str]) -> str:
        text = super()._properties(more)
        given = dict(line.split("=", 1) for line in text.splitlines())
        here = f",MUTUAL://127.0.0.1:{self.mutual_port}"
        own = self.authority.issue("server")
        both = own.certfile.with_name("both.pem")
        both.write_bytes(own.keyfile.read_bytes() + own.certfile.read_bytes())
        lines = [
            f"listeners={given['listeners']}{here}",
            f"advertised.listeners={given['advertised.listeners']}{here}",
            f"listener.security.protocol.map={given['listener.security.protocol.map']},MUTUAL:SSL",
        ]
        for name in ("tls", "mutual"):
            lines += [
                f"listener.name.{name}.ssl.client.auth=required",
                f"listener.name.{name}.ssl.keystore.type=PEM",
                f"listener.name.{name}.ssl.keystore.location={both}",
                f"listener.name.{name}.ssl.truststore.type=PEM",
                f"listener.name.{name}.ssl.truststore.location={self.authority.cafile}",
            ]
        return text + "\n".join(lines) + "\n"

    def files(self, certificate: Certificate | None) -> Files:
        files = Files(str(self.authority.cafile))
        if certificate is None:
            return files
        return Files(files.cafile, str(certificate.certfile), str(certificate.keyfile))


@pytest.fixture(scope="module")
def mutual(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MutualKafka]:
    if Kafka.external() is not None:
        pytest.skip("Kafka: KAFKA_BOOTSTRAP names a Kafka that this test must not configure")
    server = MutualKafka(tmp_path_factory.mktemp("authority"))
    try:
        server.start()
        yield server
    finally:
        server.close()


async def test_the_certificate_is_the_login(mutual: MutualKafka) -> None:
    topic = await asyncio.to_thread(create, mutual)
    group = f"queuecast.{topic}"
    await asyncio.to_thread(allow, mutual, "CN=gateway", "topic", topic, "read", "write")
    await asyncio.to_thread(allow, mutual, "CN=gateway", "group", group, "read")
    files = mutual.files(mutual.authority.issue("gateway"))
    async with started(f"kafkas://127.0.0.1:{mutual.mutual_port}", files=files) as broker:
        sink, work = FeedList(), DeliveryList()
        await broker.open_feed(D(f"/topic/{topic}"), sink)
        await broker.publish(D(f"/topic/{topic}"), b"1")
        assert await sink.got(1) == [b"1"]
        work.consumer = await broker.consume(D(f"/queue/{topic}"), work)
        assert await work.got(1) == [b"1"]


@pytest.mark.parametrize("user", ["admin", "scram256", "scram512"])
async def test_a_certificate_and_a_login(mutual: MutualKafka, user: str) -> None:
    topic = await asyncio.to_thread(create, mutual)
    await asyncio.to_thread(allow, mutual, user, "topic", topic, "write", "describe")
    files = mutual.files(mutual.authority.issue("gateway"))
    async with started(mutual.login(user, tls=True), files=files) as broker:
        await broker.publish(D(f"/topic/{topic}"), b"1")


async def test_a_gateway_whose_files_are_settings(mutual: MutualKafka) -> None:
    topic = await asyncio.to_thread(create, mutual)
    files = mutual.files(mutual.authority.issue("gateway"))
    broker = {
        "url": mutual.login("admin", tls=True),
        "cafile": files.cafile,
        "certfile": files.certfile,
        "keyfile": files.keyfile,
    }
    async with gateway(broker=broker) as gw:
        answer = await request("POST", f"{gw.url}/publish/topic/{topic}", data="1")
        assert answer.status == 200


async def test_no_certificate_and_one_of_another_authority(
    mutual: MutualKafka, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path).issue("gateway")
    url = f"kafkas://127.0.0.1:{mutual.mutual_port}"
    for certificate in (None, foreign):
        with pytest.raises(Unavailable) as caught:
            async with started(url, files=mutual.files(certificate)):
                raise AssertionError("Kafka takes only certificates of its own authority")
        assert "ended TLS" in caught.value.text, caught.value
        assert "certfile" in caught.value.hint


async def test_a_secret_is_replaced_while_the_gateway_runs(
    kafka_own: KafkaServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user, file = unique("rotated"), tmp_path / "password"
    topic = await asyncio.to_thread(create, kafka_own)
    await asyncio.to_thread(allow, kafka_own, user, "topic", topic, "read", "write", "describe")
    await asyncio.to_thread(allow, kafka_own, user, "group", f"queuecast.{topic}", "read")

    await asyncio.to_thread(set_password, kafka_own, user, "geheim 1")
    file.write_text("geheim 1\n")
    url = f"kafka://{user}@127.0.0.1:{kafka_own.sasl_port}?mechanism=SCRAM-SHA-512"
    async with started(f"{url}&password_file={file}", ping=0.5) as broker:
        sink, work = FeedList(), DeliveryList()
        await broker.open_feed(D(f"/topic/{topic}"), sink)
        work.consumer = await broker.consume(D(f"/queue/{topic}"), work)
        await broker.publish(D(f"/topic/{topic}"), b"1")
        assert await sink.got(1) == [b"1"]
        assert await work.got(1) == [b"1"]
        producer = broker._publisher._producer
        await asyncio.to_thread(set_password, kafka_own, user, "geheim 2")
        file.unlink()
        await asyncio.to_thread(kafka_own.restart)
        await eventually(lambda: "no such file" in broker.status, "said so", 60)
        file.write_text("geheim 2\n")
        await eventually(lambda: broker.ready, "connected again", 60)
        async with asyncio.timeout(120):
            while True:
                try:
                    await broker.publish(D(f"/topic/{topic}"), b"2")
                    break
                except QueuecastError:
                    await asyncio.sleep(0.2)
        # The clients are those of before, which make their connections by themselves.
        assert broker._publisher._producer is producer
        await eventually(lambda: b"2" in sink.bodies, "the feed", 90)
        await eventually(lambda: b"2" in work.bodies, "the work queue", 90)
    assert "geheim" not in caplog.text + broker.name


async def test_a_missing_password_file_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "missing"
    with pytest.raises(ConfigError, match="no such file"):
        async with gateway(broker={"url": "kafka://u@127.0.0.1:1", "password_file": str(file)}):
            raise AssertionError("the password is not known")
