"""The whole gateway on Kafka: what others publish there reaches every kind of client."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp
import psutil
import pytest
import stomp

from queuecast.brokers.kafka import KafkaBroker
from queuecast.destination import Destination
from queuecast.testing import RunningGateway
from tests.e2e.clients import gateway, get, publish, request, sse, until
from tests.support.confluent import Publisher, create, produce, read_all
from tests.support.kafka import Kafka, KafkaServer
from tests.support.servers import unique
from tests.support.sinks import FeedList, eventually
from tests.support.streams import Enveloped, aiohttp_socket, audience

# A busy machine takes a minute to start Kafka.
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(400)]


@pytest.fixture
async def gw(kafka: Kafka) -> AsyncIterator[RunningGateway]:
    async with gateway(broker={"url": kafka.url}, server={"stomp_tcp": "127.0.0.1:0"}) as made:
        yield made


async def test_another_programs_records_reach_every_kind_of_client(
    gw: RunningGateway, kafka: Kafka
) -> None:
    topic = await asyncio.to_thread(create, kafka, 3)
    async with audience(gw.url, f"/topic/{topic}", 12) as streams:
        await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(300)])
        for stream in streams:
            await eventually(lambda: len(stream.bodies) >= 300, stream.name)  # noqa: B023
            assert sorted(stream.numbers) == list(range(300))
        assert {stream.ended for stream in streams} == {None}


async def test_what_clients_publish_is_read_by_another_program(
    gw: RunningGateway, kafka: Kafka
) -> None:
    topic = await asyncio.to_thread(create, kafka)
    url = f"{gw.url}/publish"
    headers = {"Content-Type": "application/json"}
    answer = await request("POST", f"{url}/topic/{topic}", data='{"a": 1}', headers=headers)
    assert answer.status == 200
    query = "?correlation-id=c1&header.shop=%E5%BA%97&priority=3&type=order"
    answer = await request("POST", f"{url}/exchange/{topic}/user.7{query}", data="你好")
    assert answer.status == 200
    batch = {"messages": [{"destination": f"/queue/{topic}", "body": str(n)} for n in range(3)]}
    answer = await request("POST", url, json=batch)
    assert answer.status == 200

    first, second, *rest = await asyncio.to_thread(read_all, kafka, topic, 5)
    assert (first.key(), first.value()) == (None, b'{"a": 1}')
    assert dict(first.headers()) == {"content-type": b"application/json"}
    assert (second.key(), second.value()) == (b"user.7", "你好".encode())
    found = dict(second.headers())
    assert found["correlation-id"] == b"c1"
    assert found["shop"] == "店".encode()
    assert (found["priority"], found["type"]) == (b"3", b"order")
    assert [record.value() for record in rest] == [b"0", b"1", b"2"]


async def test_headers_key_and_timestamp_of_another_program(
    gw: RunningGateway, kafka: Kafka
) -> None:
    topic = await asyncio.to_thread(create, kafka)
    socket = await Enveloped.open(gw.url, f"/topic/{topic}?envelope=json")
    publisher = Publisher(kafka)
    publisher.send(
        topic,
        b"1",
        "a.b",
        headers={"content-type": b"text/plain", "trace": b"t1", "raw": b"\xff", "none": None},
        timestamp=1_700_000_000_123,
    )
    publisher.send(topic, b"2", b"\xff\x00")
    publisher.send(topic, None, "gone")
    publisher.send(topic, b"\xff\xfe")
    await asyncio.to_thread(publisher.flush)
    await socket.until(4)
    one, two, three, four = socket.deliveries
    assert one["destination"] == f"/exchange/{topic}/a.b"
    assert one["headers"]["content-type"] == "text/plain"
    assert one["headers"]["timestamp"] == 1_700_000_000
    assert one["headers"]["trace"] == "t1"
    assert two["destination"] == f"/topic/{topic}"
    assert (three["body"], three["headers"]["kafka-tombstone"]) == ("", True)
    assert "base64" in four
    await socket.close()


async def test_keys_are_filtered(gw: RunningGateway, kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 3)
    async with aiohttp.ClientSession() as session:
        stream = await aiohttp_socket(session, gw.url, f"/exchange/{topic}/user.*")
        other = await aiohttp_socket(session, gw.url, f"/exchange/{topic}/#")
        publisher = Publisher(kafka)
        for number in range(100):
            key = ("user.1", "user.2", "user.2.x", "other", "")[number % 5]
            publisher.send(topic, b"%d" % number, key or None)
        await asyncio.to_thread(publisher.flush)
        await eventually(lambda: len(other.bodies) == 100, "all")
        await eventually(lambda: len(stream.bodies) == 40, "those of users")
        assert sorted(stream.numbers) == [n for n in range(100) if n % 5 < 2]
        await stream.close()
        await other.close()


async def test_many_feeds_share_few_connections(kafka: Kafka) -> None:
    topics = [await asyncio.to_thread(create, kafka, 3) for _ in range(5)]
    port = int(kafka.bootstrap.rpartition(":")[2])
    broker = KafkaBroker(kafka.url)
    await broker.start()
    own = psutil.Process()

    def connections() -> int:
        # Those that end meanwhile are of the clients that made the topics.
        found = [each for each in own.net_connections("tcp") if each.status == "ESTABLISHED"]
        return sum(bool(each.raddr) and each.raddr.port == port for each in found)

    before = connections()
    sinks = {}
    for topic in topics:
        for user in range(400):
            destination = Destination.parse(f"/exchange/{topic}/user.{user}")
            sinks[topic, user] = FeedList()
            await broker.open_feed(destination, sinks[topic, user])
    for topic in topics:
        await broker.publish(Destination.parse(f"/exchange/{topic}/user.7"), topic.encode())
        assert await sinks[topic, 7].got(1) == [topic.encode()]
    assert sum(len(sink.messages) for sink in sinks.values()) == len(topics)
    # All feeds' reader, history's, and the producer.
    assert connections() - before <= 3
    await broker.close()


async def test_a_position_is_valid_on_another_node_and_after_a_restart(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 3)
    url = f"/topic/{topic}"
    got: list[str] = []
    position = ""
    async with gateway(broker={"url": kafka.url}) as one, sse(f"{one.url}/sse{url}") as stream:
        await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(60)])
        got += await stream.data(41)
        position = stream.last_event_id
    # Nobody is there while these come.
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(60, 120)])
    async with (
        gateway(broker={"url": kafka.url}) as two,
        sse(f"{two.url}/sse{url}", {"Last-Event-ID": position}) as stream,
    ):
        await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(120, 130)])
        got += await stream.data(130 - 41)
    assert sorted(map(int, got)) == list(range(130))
    assert len(position) < 60


async def test_two_nodes_pass_a_client_to_and_fro_while_it_rains(kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 3)
    publisher = Publisher(kafka)
    got: list[int] = []
    async with (
        gateway(broker={"url": kafka.url}) as one,
        gateway(broker={"url": kafka.url}) as two,
    ):
        position = ""
        for turn in range(10):
            node = (one, two)[turn % 2]
            headers = {"Last-Event-ID": position} if position else {}
            async with sse(f"{node.url}/sse/topic/{topic}", headers) as stream:
                for number in range(turn * 50, turn * 50 + 50):
                    publisher.send(topic, b"%d" % number)
                got += [int(each) for each in await stream.data(30)]
                position = stream.last_event_id
        await asyncio.to_thread(publisher.flush)
        async with sse(f"{one.url}/sse/topic/{topic}", {"Last-Event-ID": position}) as stream:
            got += [int(each) for each in await stream.data(500 - len(got))]
    assert sorted(got) == list(range(500))


async def test_first_last_and_times(gw: RunningGateway, kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 3)
    publisher = Publisher(kafka)
    base = int(time.time()) - 10_000
    for number in range(90):
        key = f"k.{number % 9}"
        publisher.send(topic, b"%d" % number, key, timestamp=(base + number * 10) * 1000)
    await asyncio.to_thread(publisher.flush)

    async def polled(path: str) -> list[str]:
        answer = await get(f"{gw.url}/poll{path}")
        assert answer.status == 200, answer.text
        return [message["body"] for message in answer.json["messages"]]

    async def streamed(path: str, count: int) -> list[str]:
        async with sse(f"{gw.url}/sse{path}") as stream:
            return await stream.data(count)

    everything = [str(n) for n in range(90)]
    # Merged by the records' own times, whatever partition they are in.
    assert await streamed(f"/topic/{topic}?since=first", 90) == everything
    assert await streamed(f"/topic/{topic}?last=7", 7) == everything[-7:]
    assert await polled(f"/topic/{topic}?last=1") == ["89"]
    assert await streamed(f"/exchange/{topic}/k.4?last=2", 2) == ["76", "85"]
    assert await polled(f"/exchange/{topic}/k.4?last=1") == ["85"]
    assert await streamed(f"/exchange/{topic}/k.4?since=first", 10) == everything[4::9]
    assert await streamed(f"/topic/{topic}?since={base + 600}", 30) == everything[60:]
    text = quote(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(base + 600)))
    assert await streamed(f"/topic/{topic}?since={text}", 30) == everything[60:]


async def test_a_chain_of_polls(gw: RunningGateway, kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 3)
    await asyncio.to_thread(produce, kafka, topic, [b"first"])
    answer = (await get(f"{gw.url}/poll/topic/{topic}?since=first")).json
    publisher = Publisher(kafka)
    for number in range(200):
        publisher.send(topic, b"%d" % number)
    got: list[str] = []
    while len(got) < 200:
        answer = (await get(f"{gw.url}/poll/topic/{topic}?since={answer['next']}")).json
        got += [message["body"] for message in answer["messages"]]
    assert sorted(map(int, got)) == list(range(200))


class _Listener(stomp.ConnectionListener):  # type: ignore[misc]
    def __init__(self) -> None:
        self.messages: list[tuple[dict[str, str], str]] = []
        self.receipts: list[str] = []
        self.errors: list[str] = []

    def on_message(self, frame: Any) -> None:
        self.messages.append((frame.headers, frame.body))

    def on_receipt(self, frame: Any) -> None:
        self.receipts.append(frame.headers["receipt-id"])

    def on_error(self, frame: Any) -> None:
        self.errors.append(str(frame.headers) + frame.body)


@pytest.mark.parametrize("kind", ["tcp", "ws"])
async def test_stomp_py(gw: RunningGateway, kafka: Kafka, kind: str) -> None:
    topic = await asyncio.to_thread(create, kafka)
    if kind == "tcp":
        host, _, port = gw.gateway.stomp_url.removeprefix("tcp://").rpartition(":")
        client = stomp.Connection12([(host, int(port))])
    else:
        client = stomp.WSConnection([("127.0.0.1", int(gw.url.rpartition(":")[2]))], ws_path="/ws")
    listener = _Listener()
    client.set_listener("", listener)
    await asyncio.to_thread(client.connect, "guest", "guest", wait=True)
    client.subscribe(f"/exchange/{topic}/user.*", id="feed", headers={"receipt": "1"})
    await until(lambda: "1" in listener.receipts, "the subscription")
    client.send(f"/exchange/{topic}/user.7", "你好", headers={"receipt": "2", "custom": "a:b"})
    await until(lambda: listener.messages and "2" in listener.receipts, "the message")
    headers, body = listener.messages.pop()
    assert body == "你好"
    assert headers["destination"] == f"/exchange/{topic}/user.7"
    assert headers["custom"] == "a:b"
    assert headers["persistent"] == "true"

    client.subscribe(
        f"/queue/{topic}", id="work", ack="client-individual", headers={"prefetch-count": "1"}
    )
    await until(lambda: listener.messages, "the first delivery")
    headers, body = listener.messages.pop()
    assert (body, headers["redelivered"]) == ("你好", "false")
    client.nack(headers["ack"])
    await until(lambda: listener.messages, "the delivery again")
    headers, body = listener.messages.pop()
    assert (body, headers["redelivered"]) == ("你好", "true")
    client.ack(headers["ack"])

    client.subscribe("/topic/a.*", id="no", headers={"receipt": "3"})
    await until(lambda: listener.errors, "the refusal")
    assert "Kafka has no topic patterns" in listener.errors[0]
    await asyncio.to_thread(client.disconnect)


async def test_a_websocket_works_through_a_queue(gw: RunningGateway, kafka: Kafka) -> None:
    topic = await asyncio.to_thread(create, kafka, 2)
    query = f"/queue/{topic}?ack=client&prefetch=5&envelope=json"
    one, two = await Enveloped.open(gw.url, query), await Enveloped.open(gw.url, query)
    await asyncio.to_thread(produce, kafka, topic, [b"%d" % n for n in range(10)])
    await one.until(5)
    await two.until(5)
    assert sorted(map(int, one.bodies + two.bodies)) == list(range(10))
    await two.close()  # what it held goes to the other, one acked at a time
    for delivery in list(one.deliveries):
        await one.say(ack=delivery["ack"])
    await one.until(10)
    assert sorted(map(int, one.bodies)) == list(range(10))
    assert [each.get("redelivered") for each in one.deliveries[5:]] == [True] * 5
    await one.close()


async def test_refusals_over_http(gw: RunningGateway) -> None:
    json_only = {"Accept": "application/json"}
    answer = await get(f"{gw.url}/sse/topic/a.%23", headers=json_only)
    assert answer.status == 501
    assert "/exchange/TOPIC/PATTERN" in answer.json["hint"]
    answer = await get(f"{gw.url}/sse/topic/a%20b", headers=json_only)
    assert answer.status == 400
    assert "letters, digits" in answer.json["hint"]
    answer = await request("POST", f"{gw.url}/publish/temp-queue/x", data="1")
    assert answer.status in (400, 501), answer.text


async def test_a_record_that_is_too_large_is_its_publishers_own(
    gw: RunningGateway, kafka: Kafka
) -> None:
    topic = await asyncio.to_thread(create, kafka, max_message_bytes=20_000)
    url = f"{gw.url}/publish/topic/{topic}"
    bodies = ["1", "x" * 50_000, "2"]
    answers = await asyncio.gather(*(request("POST", url, data=body) for body in bodies))
    assert [answer.status for answer in answers] == [200, 413, 200]
    assert answers[1].json["code"] == "too_large"
    assert "max.message.bytes" in answers[1].json["hint"]
    found = await asyncio.to_thread(read_all, kafka, topic, 2)
    assert {record.value() for record in found} == {b"1", b"2"}


async def test_a_timestamp_that_kafka_refuses_is_its_publishers_own(
    gw: RunningGateway, kafka: Kafka
) -> None:
    topic = await asyncio.to_thread(create, kafka, message_timestamp_before_max_ms=3_600_000)
    await publish(gw, f"/topic/{topic}", "0")
    messages = [
        {"destination": f"/topic/{topic}", "body": str(n), "headers": {"timestamp": 1_000_000}}
        if n == 5
        else {"destination": f"/topic/{topic}", "body": str(n)}
        for n in range(10)
    ]
    answer = await request("POST", f"{gw.url}/publish", data=json.dumps({"messages": messages}))
    assert answer.status != 200
    assert "timestamp" in answer.text
    found = await asyncio.to_thread(read_all, kafka, topic, 10)
    bodies = {record.value() for record in found}
    assert bodies == {b"%d" % n for n in range(10) if n != 5}


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_records_are_read(
    gw: RunningGateway, kafka: Kafka, compression: str
) -> None:
    topic = await asyncio.to_thread(create, kafka)
    publisher = Publisher(kafka, **{"compression.type": compression, "linger.ms": 20})
    async with sse(f"{gw.url}/sse/topic/{topic}") as stream:
        for number in range(50):
            publisher.send(topic, b"%d " % number + b"x" * 500)
        await asyncio.to_thread(publisher.flush)
        live = await stream.data(50)
    async with sse(f"{gw.url}/sse/topic/{topic}?since=first") as stream:
        assert await stream.data(50) == live
    assert [int(each.split()[0]) for each in live] == list(range(50))


async def test_kafkas_own_console_and_producer(kafka_own: KafkaServer) -> None:
    topic = await asyncio.to_thread(create, kafka_own)
    async with (
        gateway(broker={"url": kafka_own.url}) as gw,
        sse(f"{gw.url}/sse/topic/{topic}") as stream,
    ):
        await asyncio.to_thread(
            kafka_own.tool,
            "org.apache.kafka.tools.VerifiableProducer",
            *("--bootstrap-server", kafka_own.bootstrap, "--topic", topic),
            *("--max-messages", "20"),
        )
        assert await stream.data(20) == [str(n) for n in range(20)]
        await publish(gw, f"/exchange/{topic}/user.7", "from a browser")
        shown = await asyncio.to_thread(
            kafka_own.tool,
            "org.apache.kafka.tools.consumer.ConsoleConsumer",
            *("--bootstrap-server", kafka_own.bootstrap, "--topic", topic),
            *("--from-beginning", "--max-messages", "21"),
            *("--formatter-property", "print.key=true"),
        )
        assert shown.splitlines()[-1].split("\t") == ["user.7", "from a browser"]


async def test_a_page_may_be_opened_before_its_topic_is_there(
    gw: RunningGateway, kafka: Kafka
) -> None:
    # The cluster creates topics on demand, as Kafka does unless it is told otherwise.
    topic = unique("later")
    async with sse(f"{gw.url}/sse/topic/{topic}") as stream:
        await asyncio.to_thread(produce, kafka, topic, [b"1"])
        assert await stream.data(1) == ["1"]
