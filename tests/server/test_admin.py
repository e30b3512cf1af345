"""The admin listener: what it counts, who is slow, and who may ask."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from queuecast.admin import api
from queuecast.brokers.kafka.broker import KafkaBroker
from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.server.siblings import Place
from queuecast.workers.view import WorkersView
from tests.server.house import House, request, running, upgrade

ADMIN = {"listen": "127.0.0.1:0"}


async def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Return status, content type and text."""
    async with (
        aiohttp.ClientSession() as http,
        http.get(url, headers=headers, timeout=aiohttp.ClientTimeout(10)) as answer,
    ):
        return answer.status, answer.headers["Content-Type"], await answer.text()


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.values: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
        for family in text_string_to_metric_families(text):
            assert family.documentation, family.name
            assert family.type in ("counter", "gauge", "histogram"), family.name
            if family.type == "counter":
                assert all(each.name.endswith("_total") for each in family.samples)
            for sample in family.samples:
                labels = tuple(sorted(sample.labels.items()))
                values = self.values.setdefault(sample.name, {})
                assert labels not in values, (sample.name, labels)
                values[labels] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self.values[name].get(tuple(sorted(labels.items())), 0)


async def scrape(house: House) -> Metrics:
    status, kind, text = await get(f"{house.gateway.admin_url}/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return Metrics(text)


@pytest.mark.both_loops
async def test_what_is_counted_is_what_happened() -> None:
    async with running(admin=ADMIN) as house:
        before = await scrape(house)
        assert before("queuecast_deliveries_total") == 0
        assert before("queuecast_connections", transport="sse") == 0
        streams = [await house.connect(request("GET", "/sse/topic/a")) for _ in range(3)]
        for stream in streams:
            await stream.opened()
        socket = await house.connect(upgrade("/ws/topic/other"))
        await socket.until(b"\r\n\r\n")
        for number in range(10):
            await house.publish("/topic/a", b"m%d" % number)
            for stream in streams:
                await stream.until(b"data: m%d\n" % number)
        after = await scrape(house)
        assert after("queuecast_feed_messages_total") == 10
        assert after("queuecast_deliveries_total") == 30
        # One for each message, not for each client.
        assert after("queuecast_encoded_messages_total") == 10
        assert after("queuecast_encodes_total") == 10
        assert after("queuecast_writes_total") == 30
        assert after("queuecast_publishes_total", outcome="confirmed") == 10
        assert after("queuecast_connections", transport="sse") == 3
        assert after("queuecast_connections", transport="websocket") == 1
        assert after("queuecast_feeds") == 2
        assert after("queuecast_cohorts") == 2
        assert after("queuecast_subscriptions", state="live") == 4
        assert after("queuecast_subscriptions", state="behind") == 0
        assert after("queuecast_sockets_accepted_total") >= 14
        assert after("queuecast_broker_up") == 1
        assert after("queuecast_log_bytes") > 0
        assert after("process_resident_memory_bytes") > 1 << 20
        size = after("queuecast_delivered_bytes_total")
        assert size % 3 == 0
        assert size > 30 * len(b"data: m0\n\n")
        for stream in streams:
            stream.writer.close()
        await house.eventually(lambda: house.server.connections.kinds["sse"] == 0)
        assert (await scrape(house))("queuecast_connections", transport="sse") == 0


async def test_refused_publishes_and_gaps_have_their_reasons() -> None:
    async with running(admin=ADMIN) as house:
        wrong = await house.connect(request("POST", "/publish/exchange/nowhere/key", body=b"lost"))
        assert (await wrong.problem())[1]["code"] == "not_found"
        late = await house.connect(request("GET", "/sse/topic/late?since=0123abcd-7"))
        await late.until(b"event: gap\n")
        found = await scrape(house)
        assert found("queuecast_publishes_total", outcome="not_found") == 1
        assert found("queuecast_publishes_total", outcome="confirmed") == 0
        assert found("queuecast_client_gaps_total", reason="epoch") == 1


async def test_queues_are_counted() -> None:
    queues = [{"name": "jobs"}]
    async with running(admin=ADMIN, queue=queues) as house:
        for body in (b"one", b"two", b"three"):
            await house.publish("/queue/jobs", body)
        found = await scrape(house)
        assert found("queuecast_queue_messages", queue="jobs", state="ready") == 3
        url = "/sse/queue/jobs?ack=client&envelope=json&prefetch=2"
        worker = await house.connect(request("GET", url))
        acks = []
        for _ in range(2):
            line = await worker.until(b"\n")
            while not line.startswith(b'data: {"position"') and b'"ack"' not in line:
                line = await worker.until(b"\n")
            acks.append(json.loads(line.removeprefix(b"data: "))["ack"])
        body = json.dumps({"ack": acks[0]}).encode()
        assert (await (await house.connect(request("POST", "/ack", body=body))).response())[
            0
        ] == 200
        found = await scrape(house)
        assert found("queuecast_consumers") == 1
        assert found("queuecast_queue_settled_total", verdict="acked") == 1
        assert found("queuecast_queue_deliveries_total") >= 2
        rows = await listing(house)
        assert [row["destination"] for row in rows] == ["/queue/jobs"]
        assert rows[0]["unacked"] in (1, 2)


async def test_the_store_is_measured(tmp_path: Path) -> None:
    retain = [{"destination": "/topic/kept.#", "bytes": "1MB"}]
    broker = {"data": str(tmp_path / "data")}
    async with running(admin=ADMIN, broker=broker, retain=retain) as house:
        for number in range(5):
            await house.publish("/queue/kept", b"%d" % number)
            await house.publish("/topic/kept.a", b"%d" % number)
        found = await scrape(house)
        assert found("queuecast_retained_messages", destination="/topic/kept.#") == 5
        assert found("queuecast_retained_bytes", destination="/topic/kept.#") > 5 * 64
        assert found("queuecast_store_up") == 1
        assert found("queuecast_store_commit_seconds_count") >= 5
        assert found("queuecast_store_commit_seconds_bucket", le="+Inf") == found(
            "queuecast_store_commit_seconds_count"
        )
        assert found("queuecast_store_commit_seconds_sum") > 0
        assert found("queuecast_store_file_bytes") + found("queuecast_store_log_bytes") > 4096


async def test_the_table_of_metrics_is_the_metrics(tmp_path: Path) -> None:
    rabbit, kafka = RabbitBroker("amqp://localhost"), KafkaBroker("kafka://localhost:9092")
    place = Place(0, 2, "node", tmp_path)
    async with running(admin=ADMIN, broker={"data": str(tmp_path / "data")}) as house:
        families = await house.gateway.view().metrics()
        families += [*rabbit.families(), *kafka.families()]
        families += await WorkersView(place, list, [0, 0]).metrics()
    kinds = {family.name: family.kind for family in families}
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
    shown: dict[str, str] = {}
    for names, kind in re.findall(r"^\| (`(?:queuecast|process)_.+?`) \| (\w+) \|", text, re.M):
        for name in re.findall(r"`(\w+)(?:\{[\w,]+\})?`", names):
            shown[name] = kind
    assert shown == kinds


async def listing(house: House, query: str = "") -> list[dict[str, Any]]:
    status, _, text = await get(f"{house.gateway.admin_url}/admin/connections{query}")
    assert status == 200, text
    rows = json.loads(text)["connections"]
    assert isinstance(rows, list)
    return rows


async def test_the_slow_client_is_named() -> None:
    async with running(admin=ADMIN) as house:
        quick = await house.connect(request("GET", "/sse/topic/busy"))
        await quick.opened()
        slow = await house.connect(request("GET", "/sse/topic/busy"))
        await slow.opened()
        address = "{}:{}".format(*slow.writer.get_extra_info("sockname"))
        transport = slow.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        transport.pause_reading()
        body = b"x" * 100_000

        async def read() -> None:
            while await quick.reader.read(1 << 20):
                pass

        reading = asyncio.create_task(read())
        # Until the system's buffers are full as well.
        async with asyncio.timeout(60):
            while (await scrape(house))("queuecast_subscriptions", state="behind") == 0:
                for _ in range(20):
                    await house.publish("/topic/busy", body)
        for _ in range(3):
            await house.publish("/topic/busy", body)
        worst, other = await listing(house)
        assert worst["address"] == address
        assert worst["destination"] == "/topic/busy"
        assert worst["state"] == "paused"
        assert worst["user"] == "anonymous"
        assert worst["transport"] == "sse"
        assert worst["lag"] >= 3
        assert worst["lag_bytes"] >= 3 * len(body)
        assert worst["unsent"] > 0
        assert (other["state"], other["lag"]) == ("live", 0)
        assert worst["id"] != other["id"]
        assert await listing(house, "?limit=1") == [worst]
        found = await scrape(house)
        assert found("queuecast_subscription_lag_max_messages") == worst["lag"]
        assert found("queuecast_subscriptions_lagging", over="0") == 1
        assert found("queuecast_subscriptions_lagging", over="100000") == 0
        status, kind, text = await get(f"{house.gateway.admin_url}/admin")
        assert (status, kind) == (200, "text/html; charset=utf-8")
        assert address in text
        reading.cancel()


async def test_health_is_there_too() -> None:
    async with running(admin=ADMIN) as house:
        url = house.gateway.admin_url
        assert (await get(f"{url}/healthz"))[0] == 200
        assert json.loads((await get(f"{url}/readyz"))[2])["ready"] is True
        house.server.stop_accepting()
        status, _, text = await get(f"{url}/readyz")
        assert (status, json.loads(text)["status"]) == (503, "draining")


async def test_strangers_are_refused() -> None:
    async with running(admin=ADMIN) as house:
        url = f"{house.gateway.admin_url}/metrics"
        for headers in (
            {"Host": "rebound.example"},
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
        ):
            status, _, text = await get(url, **headers)
            assert (status, json.loads(text)["code"]) == (403, "refused"), headers
        # Nothing of it on the port of the clients.
        for path in ("/metrics", "/admin", "/admin/connections", "/metrics.json"):
            assert (await get(f"{house.url}{path}"))[0] == 404
        for wrong in ("1001", "005000", "0"):
            status, _, _ = await get(f"{house.gateway.admin_url}/admin/connections?limit={wrong}")
            assert status == 400, wrong
        status, _, text = await get(f"{house.gateway.admin_url}/admin/connections?limit=many")
        assert (status, json.loads(text)["code"]) == (400, "bad_request")
        status, _, text = await get(f"{house.gateway.admin_url}/nothing")
        assert (status, json.loads(text)["code"]) == (404, "not_found")


async def test_a_flood_is_bounded_and_who_is_silent_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api, "_FIRST", 0.2)
    async with running(admin=ADMIN) as house:
        port = int(house.gateway.admin_url.rpartition(":")[2])
        flood = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2 * api.MOST)]
        for reader, writer in flood:
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
        assert (await scrape(house))("queuecast_broker_up") == 1


async def test_a_token_is_asked_for() -> None:
    async with running(admin={**ADMIN, "token": "s3cret-token"}) as house:
        url = f"{house.gateway.admin_url}/metrics"
        for value in ("", "Bearer wrong", "Basic s3cret-token", "Bearer s3cret-tokenn", "s3cret"):
            headers = {"Authorization": value} if value else {}
            status, _, text = await get(url, **headers)
            assert (status, "token" in text) == (401, True), value
        assert (await get(url, Authorization="Bearer s3cret-token"))[0] == 200
