"""Retained destinations on RabbitMQ from outside: positions on every transport and every node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.request
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pika
import pytest

from queuecast.brokers.rabbitmq.streams import stream_name
from queuecast.destination import Destination
from queuecast.retention import RetainRule
from tests.conftest import Node
from tests.e2e.clients import Event, EventStream, get, request, sse
from tests.support.processes import Directory, Process, free_port
from tests.support.proxy import TcpProxy
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import eventually
from tests.support.streams import numbers, ready, running

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(500)]

# Waits until a client has connected so many times.
Opened = Callable[[int], Awaitable[None]]

RETAIN = {"age": "1h", "bytes": "64MB"}


@pytest.fixture
def key(rabbit: RabbitMQ) -> Iterator[str]:
    """A key of the test's own; a rule holds for it and what is below it."""
    made = unique("retained")
    yield made
    forget(rabbit, f"/topic/{made}.#")


def forget(rabbit: RabbitMQ, destination: str) -> None:
    """Delete a rule's stream."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    connection.channel().queue_delete(stream_of(destination))
    connection.close()


def stream_of(destination: str) -> str:
    """Return the name of a rule's stream."""
    return stream_name(RetainRule(Destination.parse(destination), 1))


def publish(rabbit: RabbitMQ, key: str, *bodies: str, exchange: str = "amq.topic") -> None:
    """Publish as a back end does, each confirmed."""
    connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
    channel = connection.channel()
    channel.confirm_delivery()
    for body in bodies:
        channel.basic_publish(exchange, key, body.encode(), mandatory=True)
    connection.close()


def tables(rabbit: RabbitMQ, key: str, **more: Any) -> dict[str, Any]:
    """Return a gateway's configuration with one rule for a key and what is below it."""
    retain = [{"destination": f"/topic/{key}.#", **RETAIN, **more.pop("retain", {})}]
    return {"broker": {"url": rabbit.url, "start": "exit"}, "retain": retain, **more}


async def events(stream: EventStream, last: str) -> list[Event]:
    """Read messages up to one with this body; a gap would be an error."""
    found = [await stream.next()]
    while found[-1].data != last:
        found.append(await stream.next())
    return found


async def bodies(stream: EventStream, last: str) -> list[str]:
    return [event.data for event in await events(stream, last)]


@contextlib.asynccontextmanager
async def websocket(url: str, query: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws{query}") as socket:
        yield socket


async def envelopes(socket: aiohttp.ClientWebSocketResponse, last: str) -> list[dict[str, Any]]:
    """Read enveloped messages up to one with this body."""
    found: list[dict[str, Any]] = []
    while not found or found[-1]["body"] != last:
        notice = json.loads(await socket.receive_str(timeout=30))
        assert "gap" not in notice, notice
        if "body" in notice:
            found.append(notice)
    return found


async def test_a_page_that_opens_after_the_job_asks_for_its_result(
    rabbit: RabbitMQ, key: str
) -> None:
    async with running(**tables(rabbit, key)) as gw:
        await asyncio.to_thread(publish, rabbit, f"{key}.7", "10 %", "90 %", "done")
        await asyncio.to_thread(publish, rabbit, f"{key}.8", "other")
        async with sse(f"{gw.url}/sse/topic/{key}.8?since=first") as stream:
            assert await bodies(stream, "other") == ["other"]
        url = f"{gw.url}/sse/topic/{key}.7"
        async with sse(f"{url}?last=1") as stream:
            assert await bodies(stream, "done") == ["done"]
            await asyncio.to_thread(publish, rabbit, f"{key}.7", "later")
            assert await bodies(stream, "later") == ["later"]
        async with sse(f"{url}?since=first") as stream:
            assert await bodies(stream, "later") == ["10 %", "90 %", "done", "later"]
        async with sse(f"{url}?since={int(time.time()) - 600}") as stream:
            assert await bodies(stream, "later") == ["10 %", "90 %", "done", "later"]
        async with sse(f"{gw.url}/sse/topic/{key}.%23?last=2") as stream:
            assert await bodies(stream, "later") == ["other", "later"]


async def test_a_position_is_valid_on_every_transport_and_on_another_node(
    rabbit: RabbitMQ, key: str
) -> None:
    topic = f"/topic/{key}.a"
    sent = [str(number) for number in range(20)]
    async with running(**tables(rabbit, key)) as a, running(**tables(rabbit, key)) as b:
        async with sse(f"{a.url}/sse{topic}") as stream:
            await asyncio.to_thread(publish, rabbit, f"{key}.a", *sent)
            found = await events(stream, "19")
            assert [event.data for event in found] == sent
        for node in (b, a):
            headers = {"Last-Event-ID": found[3].id}
            async with sse(f"{node.url}/sse{topic}", headers) as stream:
                again = await events(stream, "19")
                assert again == found[4:]
        async with websocket(b.url, f"{topic}?envelope=json&since={found[7].id}") as socket:
            notices = await envelopes(socket, "19")
            assert [each["body"] for each in notices] == sent[8:]
            assert [each["position"] for each in notices] == [event.id for event in found[8:]]
        answer = (await get(f"{b.url}/poll{topic}?since={notices[1]['position']}")).json
        assert [each["body"] for each in answer["messages"]] == sent[10:]
        await asyncio.to_thread(publish, rabbit, f"{key}.a", "live")
        answer = (await get(f"{a.url}/poll{topic}?since={answer['next']}")).json
        assert [each["body"] for each in answer["messages"]] == ["live"]


async def test_two_destinations_on_one_connection_resume_together(
    rabbit: RabbitMQ, key: str
) -> None:
    query = f"?destination=/topic/{key}.a&destination=/topic/{key}.b"
    async with running(**tables(rabbit, key)) as a, running(**tables(rabbit, key)) as b:
        async with sse(f"{a.url}/sse{query}") as stream:
            for number in range(6):
                await asyncio.to_thread(publish, rabbit, f"{key}.{'ab'[number % 2]}", str(number))
            found = await events(stream, "5")
        await asyncio.to_thread(publish, rabbit, f"{key}.a", "6")
        async with sse(f"{b.url}/sse{query}", {"Last-Event-ID": found[1].id}) as stream:
            # Of each in order, among the two in none.
            resumed = [await stream.next() for _ in range(5)]
            assert sorted(event.data for event in resumed) == ["2", "3", "4", "5", "6"]


async def test_what_is_published_after_the_answer_is_seen(rabbit: RabbitMQ, key: str) -> None:
    async with running(**tables(rabbit, key)) as gw:
        for number in range(20):
            async with sse(f"{gw.url}/sse/topic/{key}.{number}") as stream:
                answer = await request(
                    "POST", f"{gw.url}/publish/topic/{key}.{number}", data=str(number)
                )
                assert answer.status == 200, answer.text
                assert await bodies(stream, str(number)) == [str(number)]


async def test_a_publish_that_does_not_reach_the_stream_is_refused_for_now(
    rabbit: RabbitMQ, key: str
) -> None:
    async with running(**tables(rabbit, key)) as gw:
        url = f"{gw.url}/publish/topic/{key}.a"
        connection = pika.BlockingConnection(pika.URLParameters(rabbit.url))
        connection.channel().queue_unbind(
            stream_of(f"/topic/{key}.#"), "amq.topic", f"{key}.#", {"x-queuecast": "retain"}
        )
        connection.close()
        answer = await request("POST", url, data="1")
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        assert answer.json["retry"]
        assert f"retains /topic/{key}.a takes no messages" in answer.json["text"]
        async with asyncio.timeout(60):
            while (await request("POST", url, data="2")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        async with sse(f"{gw.url}/sse/topic/{key}.a?since=first") as stream:
            assert await bodies(stream, "2") == ["2"]


async def test_a_replaced_stream_is_a_gap_for_a_browser_that_resumes(
    rabbit: RabbitMQ, key: str
) -> None:
    topic = f"/topic/{key}.a"
    async with running(**tables(rabbit, key)) as gw:
        async with sse(f"{gw.url}/sse{topic}") as stream:
            await asyncio.to_thread(publish, rabbit, f"{key}.a", "1", "2", "3")
            found = await events(stream, "3")
            await asyncio.to_thread(forget, rabbit, f"/topic/{key}.#")
            await stream.next("gap")
            await ready(gw)
            await asyncio.to_thread(publish, rabbit, f"{key}.a", "1", "2", "3")
            assert await bodies(stream, "3") == ["1", "2", "3"]
        # This gateway's log still has what came before the gap.
        async with sse(f"{gw.url}/sse{topic}", {"Last-Event-ID": found[0].id}) as stream:
            assert await stream.data(2) == ["2", "3"]
            await stream.next("gap")
            assert await bodies(stream, "3") == ["1", "2", "3"]
    async with (
        running(**tables(rabbit, key)) as gw,
        sse(f"{gw.url}/sse{topic}", {"Last-Event-ID": found[0].id}) as stream,
    ):
        gap = await stream.next("gap")
        assert gap.json["reason"] == "epoch"
        assert gap.json["last"] == found[0].id
        assert gap.json["first"].partition("-")[0] != found[0].id.partition("-")[0]
        assert await bodies(stream, "3") == ["1", "2", "3"]


async def test_a_sleeper_whose_segments_were_deleted_is_told(rabbit: RabbitMQ, key: str) -> None:
    topic = f"/topic/{key}.a"
    small = tables(rabbit, key, retain={"bytes": "1MB"}, log={"bytes": "64KB", "messages": 100})
    async with running(**small) as gw:
        async with sse(f"{gw.url}/sse{topic}") as stream:
            await asyncio.to_thread(publish, rabbit, f"{key}.a", "0", "1")
            found = await events(stream, "1")
        many = [f"{number:06}{'x' * 2000}" for number in range(2500)]
        await asyncio.to_thread(publish, rabbit, f"{key}.a", *many, "last")
        # Until the gateway has read them all: then there is nothing live in what follows.
        async with sse(f"{gw.url}/sse{topic}?last=1") as stream:
            await bodies(stream, "last")
        async with sse(f"{gw.url}/sse{topic}", {"Last-Event-ID": found[0].id}) as stream:
            gap = await stream.next("gap")
            assert gap.json["reason"] == "evicted"
            assert gap.json["last"] == found[0].id
            *rest, _ = await bodies(stream, "last")
            kept = [int(body[:6]) for body in rest]
            assert kept[0] > 0
            assert kept == list(range(kept[0], 2500))


async def test_without_a_rule_the_log_names_the_one_to_add(
    rabbit: RabbitMQ, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        running(**tables(rabbit, key)) as gw,
        sse(f"{gw.url}/sse/topic/not-{key}?last=1") as stream,
    ):
        assert (await stream.next("gap")).json["reason"] == "unretained"
    assert "[[retain]]" in caplog.text


async def test_a_browser_goes_from_node_to_node_exactly_once(
    rabbit: RabbitMQ, key: str, page: Page
) -> None:
    """Chromium's own EventSource, through FIN and RST, a restart and a switch of the node."""
    async with _journey(rabbit, key) as (proxy, travel):
        await page.goto(f"http://127.0.0.1:{proxy.port}/healthz")
        await page.evaluate(
            f"""() => {{
              window.got = []; window.gaps = 0; window.opened = 0;
              const source = new EventSource("/sse/topic/{key}.a?since=first");
              source.onopen = () => window.opened++;
              source.onmessage = (event) => window.got.push(Number(event.data));
              source.addEventListener("gap", () => window.gaps++);
            }}"""
        )

        async def opened(count: int) -> None:
            await page.wait_for_function(f"window.opened >= {count}", timeout=60_000)

        confirmed = await travel(opened)
        await page.wait_for_function(f"window.got.at(-1) === {confirmed[-1]}", timeout=60_000)
        assert await page.evaluate("window.gaps") == 0
        assert await page.evaluate("window.got") == confirmed


@pytest.mark.node
async def test_npms_eventsource_goes_from_node_to_node_exactly_once(
    rabbit: RabbitMQ, key: str, node: Node
) -> None:
    """The same journey with Node's EventSource."""
    async with _journey(rabbit, key) as (proxy, travel):
        url = f"http://127.0.0.1:{proxy.port}/sse/topic/{key}.a?since=first"
        process = await asyncio.create_subprocess_exec(
            str(node.command), "follow.mjs", url, cwd=node.directory, stdout=PIPE
        )
        told: list[dict[str, Any]] = []

        async def read() -> None:
            assert process.stdout is not None
            while line := await process.stdout.readline():
                told.append(json.loads(line))

        reading = asyncio.create_task(read())

        def got() -> list[int]:
            return [int(each["data"]) for each in told if each["type"] == "message"]

        async def opened(count: int) -> None:
            def enough() -> bool:
                return [each["type"] for each in told].count("open") >= count

            await eventually(enough, f"connection {count}", 60)

        try:
            confirmed = await travel(opened)
            await eventually(lambda: got()[-1:] == confirmed[-1:], "the last number", 60)
        finally:
            process.kill()
            await process.wait()
            await reading
        assert [each for each in told if each["type"] in ("gap", "disconnect")] == []
        assert got() == confirmed


@contextlib.asynccontextmanager
async def _journey(
    rabbit: RabbitMQ, key: str
) -> AsyncIterator[tuple[TcpProxy, Callable[[Opened], Awaitable[list[int]]]]]:
    """Run two nodes behind a proxy; yields it, and what takes a client through all of it.

    That is given what waits for the client's connections; it returns the numbers confirmed.
    """
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_directory())
        nodes = []
        for name in ("a", "b"):
            nodes.append(_node(rabbit, key, log / name))
            stack.callback(nodes[-1].kill)
        a, b = nodes

        async def travel(opened: Opened) -> list[int]:
            async with numbers(rabbit.url, "amq.topic", f"{key}.a", mandatory=True) as publishing:

                async def again(count: int) -> None:
                    await opened(count)
                    await publishing.more(100)

                await again(1)
                proxy.cut()
                await again(2)
                proxy.redirect(b.port)
                proxy.fin()
                await again(3)
                await asyncio.to_thread(b.kill)
                await publishing.more(50)
                await asyncio.to_thread(b.start)
                await again(4)
                proxy.redirect(a.port)
                await asyncio.to_thread(a.kill)
                await asyncio.to_thread(a.start)
                proxy.cut()
                await again(5)
                await publishing.stop()
                return publishing.confirmed

        async with TcpProxy("127.0.0.1", a.port) as proxy:
            yield proxy, travel


async def test_clients_of_two_nodes_while_the_broker_is_killed(rabbit_fresh: RabbitServer) -> None:
    key = unique("killed")
    topic = f"/topic/{key}.a"
    async with (
        running(**tables(rabbit_fresh, key)) as a,
        running(**tables(rabbit_fresh, key)) as b,
        numbers(rabbit_fresh.url, "amq.topic", f"{key}.a", mandatory=True) as publishing,
    ):
        async with sse(f"{a.url}/sse{topic}?since=first") as stream:
            await publishing.more(200)
            await asyncio.to_thread(rabbit_fresh.flush)
            await asyncio.to_thread(rabbit_fresh.kill)
            await eventually(lambda: not a.gateway.broker.ready, "noticed")
            await asyncio.to_thread(rabbit_fresh.start)
            await ready(a)
            await ready(b)
            await publishing.more(200)
            last = await publishing.stop()
            found = await events(stream, str(last))
        got = [int(event.data) for event in found]
        assert got == sorted(set(got))
        # What was never confirmed may be there or not; what was confirmed is.
        assert not set(publishing.confirmed).difference(got)
        middle = found[len(found) // 3]
        async with sse(f"{b.url}/sse{topic}", {"Last-Event-ID": middle.id}) as stream:
            assert await events(stream, str(last)) == found[len(found) // 3 + 1 :]
    forget(rabbit_fresh, f"/topic/{key}.#")


# -- nodes that are killed ----------------------------------------------------------------


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    made = Directory("nodes")
    try:
        yield made.path
    finally:
        made.remove()


class _Gateway:
    """`queuecast serve` in a process of its own, always on the same port."""

    def __init__(self, config: Path, log: Path) -> None:
        self.port = free_port()
        self._config = config
        self._log = log
        self._process: Process | None = None
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "queuecast", "serve", "--config", str(self._config)]
        self._process = Process(
            [*command, "--port", str(self.port)], log=self._log, env=dict(os.environ)
        )
        self._process.wait_until(self._is_ready, what="the gateway's start")

    def _is_ready(self) -> bool:
        return _answers(self.port)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process = None


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _node(rabbit: RabbitMQ, key: str, directory: Path) -> _Gateway:
    directory.mkdir()
    config = directory / "queuecast.toml"
    config.write_text(
        f"""
[server]
retry = 300
[broker]
url = "{rabbit.url}"
[[retain]]
destination = "/topic/{key}.#"
age = "1h"
"""
    )
    return _Gateway(config, directory / "log")
