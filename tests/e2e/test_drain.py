"""Draining: clients go one after the other, nothing is lost, and the gateway says what it does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pika
import pytest

from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, Answer, get, request, sse, until
from tests.support.servers import RabbitMQ, unique
from tests.support.streams import running
from tests.unit.commands.test_serve import first_line, outcome, started

CLIENTS = 500
RETRY = 2000


class Leaver:
    """A client that listens until it is sent away. told: its last words from the gateway."""

    def __init__(self) -> None:
        self.left = 0.0
        self.told = b""


async def sse_leaver(gw: RunningGateway, port: int, done: Leaver, opened: asyncio.Event) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /sse/topic/drain HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"event: position\n")
    opened.set()
    done.told = await reader.read()
    while part := await reader.read():
        done.told += part
    done.left = asyncio.get_running_loop().time()
    writer.close()


async def websocket_leaver(http: aiohttp.ClientSession, url: str, done: Leaver) -> None:
    async with http.ws_connect(url) as ws:
        async for _ in ws:
            pass
        done.told = str(ws.close_code).encode()
        done.left = asyncio.get_running_loop().time()


def drain(gw: RunningGateway) -> asyncio.Future[None]:
    """Begin to drain in the gateway's own loop."""
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(gw.gateway.drain(), gw.loop))


async def test_500_clients_leave_one_after_the_other() -> None:
    async with (
        running(server={"drain": "4s", "retry": RETRY}) as gw,
        aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(None)
        ) as http,
    ):
        port = int(gw.url.rpartition(":")[2])
        leavers = [Leaver() for _ in range(CLIENTS)]
        streams, sockets = leavers[: CLIENTS // 2], leavers[CLIENTS // 2 :]
        opened = [asyncio.Event() for _ in streams]
        tasks = [
            asyncio.create_task(sse_leaver(gw, port, leaver, event))
            for leaver, event in zip(streams, opened, strict=True)
        ]
        tasks += [
            asyncio.create_task(websocket_leaver(http, f"{gw.ws_url}/ws/topic/drain", leaver))
            for leaver in sockets
        ]
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in opened)), 60)
        connections = gw.gateway.server.connections
        await until(lambda: len(connections) == CLIENTS, "all connections")
        draining = drain(gw)
        # At once, while nearly everybody is still there.
        verdict = await get(f"{gw.url}/readyz")
        assert (verdict.status, verdict.json["status"]) == (503, "draining")
        assert (await get(f"{gw.url}/healthz")).status == 200
        with pytest.raises(aiohttp.ClientError):
            async with http.get(f"{gw.url}/sse/topic/drain"):
                pass
        async with http.ws_connect(f"{gw.ws_url}/ws/topic/drain") as late:
            assert (await late.receive()).data == 4453
        refused = await get(f"{gw.url}/poll/topic/drain")
        assert (refused.status, refused.json["retry"]) == (503, True)
        assert "Retry-After" in refused.headers
        published = 0
        while not draining.done():
            answer = await request("POST", f"{gw.url}/publish/topic/drain", data=b"still here")
            assert answer.status == 200
            published += 1
        assert published > 1
        await asyncio.wait_for(asyncio.gather(*tasks), 60)
        assert (await get(f"{gw.url}/readyz")).json["status"] == "drained"
        # Spread: in no quarter of the time nearly all of them, in none nearly nobody.
        times = sorted(leaver.left for leaver in leavers)
        first, last = times[0], times[-1]
        quarters = [0] * 4
        for time in times:
            quarters[min(3, int(4 * (time - first) / (last - first)))] += 1
        assert all(CLIENTS * 0.03 < count < CLIENTS * 0.7 for count in quarters), quarters
        # Each stream has a time of its own to come back after.
        retries = []
        for leaver in streams:
            goodbye = leaver.told.rpartition(b"event: disconnect\n")[2].decode()
            retries.append(int(goodbye.partition("retry: ")[2].partition("\n")[0]))
            assert '"code":"shutdown"' in goodbye
            assert '"retry":true' in goodbye
        assert all(RETRY <= retry <= 2 * RETRY for retry in retries)
        assert len(set(retries)) > len(retries) // 2
        assert {leaver.told for leaver in sockets} == {b"1012"}


async def test_stomp_clients_are_told() -> None:
    async with running(server={"stomp_tcp": "127.0.0.1:0"}) as gw:
        port = int(gw.gateway.stomp_url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"CONNECT\naccept-version:1.2\nhost:/\nlogin:guest\npasscode:guest\n\n\0")
        assert (await asyncio.wait_for(reader.readuntil(b"\0"), PATIENCE)).startswith(b"CONNECTED")
        await drain(gw)
        told = await asyncio.wait_for(reader.read(), PATIENCE)
        assert told.strip().startswith(b"ERROR\nmessage:shutdown\n")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        writer.close()


async def post(url: str, **said: Any) -> Answer | None:
    """Post JSON; None when no answer came: the gateway's socket closes with us in its queue."""
    try:
        return await request("POST", url, json=said)
    except aiohttp.ClientError:
        return None


@pytest.mark.rabbitmq
async def test_nothing_is_lost_or_done_twice(rabbit: RabbitMQ, tmp_path: Path) -> None:
    jobs = unique("jobs")
    answered: set[str] = set()
    acked: set[str] = set()
    unknown: set[str] = set()  # acks without an answer
    numbers = iter(range(1_000_000))

    async def publish_http(url: str) -> None:
        while True:
            body = f"h{next(numbers)}"
            answer = await post(
                f"{url}/publish", messages=[{"destination": f"/queue/{jobs}", "body": body}]
            )
            if answer is None or answer.status == 503:
                return
            assert answer.status == 200, answer.text
            answered.add(body)

    async def publish_websocket(http: aiohttp.ClientSession, url: str) -> None:
        async with http.ws_connect(f"{url}/ws?envelope=json") as ws:
            await ws.receive()
            with contextlib.suppress(ConnectionError):
                for _ in range(100_000):
                    bodies = [f"w{next(numbers)}" for _ in range(10)]
                    for body in bodies:
                        await ws.send_json({"publish": f"/queue/{jobs}", "body": body, "id": body})
                    for _ in bodies:
                        message = await ws.receive()
                        if message.type is not aiohttp.WSMsgType.TEXT:
                            assert ws.close_code == 1012
                            return
                        said = json.loads(message.data)
                        if "published" in said:
                            answered.add(said["published"])
                        else:
                            assert said == {"heartbeat": 25.0} or said["error"]["retry"], said

    async def work(url: str) -> None:
        target = f"{url}/sse/queue/{jobs}?ack=client&envelope=json&prefetch=20"
        async with sse(target) as stream:
            while True:
                try:
                    event = await stream.any()
                except (StopAsyncIteration, aiohttp.ClientError):
                    return
                if event.type == "disconnect":
                    return
                if event.type == "position":
                    continue
                message = event.json
                assert message["body"] not in acked
                answer = await post(f"{url}/ack", ack=message["ack"])
                if answer is None:
                    unknown.add(message["body"])
                    return
                if answer.status == 200:
                    acked.add(message["body"])
                else:
                    # Its turn to go had come.
                    assert answer.json["code"] == "not_found", answer.text

    flags = ("--port", "0", "--broker", rabbit.url, "--drain", "2s")
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)) as http,
        started(tmp_path, "serve", *flags) as process,
    ):
        url = (await first_line(process)).split()[-1]
        clients = [asyncio.create_task(work(url)) for _ in range(20)]
        clients += [asyncio.create_task(publish_http(url)) for _ in range(3)]
        clients += [asyncio.create_task(publish_websocket(http, url)) for _ in range(20)]
        await until(lambda: len(acked) > 200, "some acks")
        process.send_signal(signal.SIGTERM)
        assert (await outcome(process))[0] == 0
        await asyncio.wait_for(asyncio.gather(*clients), PATIENCE)
    assert len(answered) > 200
    left: list[tuple[str, bool]] = []
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as made:
        channel = made.channel()
        while True:
            method, _, body = channel.basic_get(jobs)
            if method is None:
                break
            left.append((body.decode(), method.redelivered))
            channel.basic_ack(method.delivery_tag)
        channel.queue_delete(jobs)
    remaining = [body for body, _ in left]
    assert len(remaining) == len(set(remaining))
    assert not acked & set(remaining)
    assert answered <= acked | unknown | set(remaining)
    assert len(unknown) <= 20
