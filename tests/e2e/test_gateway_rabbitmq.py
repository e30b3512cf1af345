"""The whole gateway on RabbitMQ: from a back end's pika to browsers and clients."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import pika
import pytest
from aiohttp import web

from queuecast.errors import Conflict, Refused, Unavailable
from queuecast.testing import gateway
from tests.support.rabbit import proxied, through
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import eventually
from tests.support.streams import (
    Enveloped,
    aiohttp_socket,
    audience,
    check_complete,
    running,
    settled,
    sse,
    websockets_socket,
)

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = pytest.mark.rabbitmq

# What the articles' readers have: RabbitMQ's topic tutorial, with their names.
EMIT = """
import sys, pika
url, key, body = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.exchange_declare(exchange="rabbitmq", exchange_type="topic", durable=True)
channel.basic_publish(exchange="rabbitmq", routing_key=key, body=body)
connection.close()
"""

PAGES = {
    "/sse.html": """<!doctype html><meta charset="utf-8"><p id="message">loading…</p><script>
      const source = new EventSource("GATEWAY/sse/exchange/rabbitmq/zjj");
      source.onmessage = (event) => {
        document.getElementById("message").textContent = event.data;
      };
      source.addEventListener("position", () => document.body.classList.add("live"));
    </script>""",
    "/ws.html": """<!doctype html><meta charset="utf-8"><p id="message">loading…</p><script>
      const socket = new WebSocket("ws" + "GATEWAY".slice(4) + "/ws/exchange/rabbitmq/zjj");
      socket.onopen = () => document.body.classList.add("live");
      socket.onmessage = (event) => {
        document.getElementById("message").textContent = event.data;
      };
    </script>""",
}


@contextlib.asynccontextmanager
async def site(gateway_url: str) -> AsyncIterator[str]:
    """Serve the pages from an origin of their own, as an application's web server does."""

    async def show(request: web.Request) -> web.Response:
        text = PAGES[request.path].replace("GATEWAY", gateway_url)
        return web.Response(text=text, content_type="text/html")

    app = web.Application()
    app.router.add_get("/{name}", show)
    runner = web.AppRunner(app)
    await runner.setup()
    listening = web.TCPSite(runner, "127.0.0.1", 0)
    await listening.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def emit(rabbit: RabbitMQ, tmp_path: Path, body: str) -> None:
    script = tmp_path / "emit_log_topic.py"
    script.write_text(EMIT)
    command = [sys.executable, str(script), rabbit.url, "zjj", body]
    await asyncio.to_thread(lambda: subprocess.run(command, check=True, timeout=60))


@pytest.fixture
def raw(rabbit: RabbitMQ) -> Iterator[Any]:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as connection:
        yield connection.channel()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


# -- the articles' page -------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("name", ["/sse.html", "/ws.html"])
async def test_a_pika_script_updates_the_articles_page(
    rabbit: RabbitMQ, page: Page, tmp_path: Path, name: str
) -> None:
    exchange = [{"name": "rabbitmq", "type": "topic"}]
    async with (
        running(broker={"url": rabbit.url}, exchange=exchange) as gw,
        site(gw.url) as origin,
    ):
        await page.goto(f"{origin}{name}")
        await page.wait_for_selector("body.live")
        assert await page.inner_text("#message") == "loading…"
        await emit(rabbit, tmp_path, "[disk.info] Hello World!333")
        await page.wait_for_function(
            "document.getElementById('message').textContent === '[disk.info] Hello World!333'"
        )


@pytest.mark.browser
async def test_a_page_opened_while_the_broker_is_away_gets_messages_once_it_is_there(
    rabbit: RabbitMQ, page: Page, tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    exchange = [{"name": "rabbitmq", "type": "topic"}]
    async with proxied(rabbit) as proxy:
        await proxy.refuse()
        async with (
            running(
                broker={"url": through(proxy, rabbit.url), "start": "retry"},
                server={"retry": 200},
                exchange=exchange,
            ) as gw,
            site(gw.url) as origin,
        ):
            async with session.get(f"{gw.url}/readyz") as answer:
                assert answer.status == 503
                readiness = await answer.json()
            assert readiness["ready"] is False
            assert "refused" in readiness["status"]
            async with session.get(f"{gw.url}/healthz") as answer:
                assert answer.status == 200
            # Any status but 200 would stop an EventSource for good.
            async with session.get(f"{gw.url}/sse/exchange/rabbitmq/zjj") as answer:
                assert answer.status == 200
                text = await answer.text()
            assert "event: disconnect" in text
            assert '"retry":true' in text
            await page.goto(f"{origin}/sse.html")
            await proxy.accept()
            await page.wait_for_selector("body.live")
            async with session.get(f"{gw.url}/readyz") as answer:
                assert answer.status == 200
            await emit(rabbit, tmp_path, "up again")
            await page.wait_for_function(
                "document.getElementById('message').textContent === 'up again'"
            )


# -- many clients, many destinations ------------------------------------------------------


@pytest.mark.slow
async def test_200_clients_get_1000_messages_in_order(rabbit: RabbitMQ, raw: Any) -> None:
    key = unique("crowd")
    async with (
        running(broker={"url": rabbit.url}) as gw,
        audience(gw.url, f"/topic/{key}", 200) as streams,
    ):
        for number in range(1000):
            raw.basic_publish("amq.topic", key, b"%d" % number)
            if number % 50 == 0:
                await asyncio.sleep(0)
        for stream in streams:
            await stream.until("999", 90)
        for stream in streams:
            check_complete(stream, range(1000))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_ten_thousand_open_destinations_are_one_queue(rabbit: RabbitMQ, raw: Any) -> None:
    before = await asyncio.to_thread(feed_queues, rabbit)
    job = unique("job")
    async with running(broker={"url": rabbit.url}, log={"linger": 0.1}) as gw:
        clients = await asyncio.gather(
            *(Enveloped.open(gw.url, f"/topic/{job}.{at * 100}?envelope=json") for at in range(100))
        )

        async def subscribe(client: Enveloped, at: int) -> None:
            for step in range(1, 100):
                await client.say(subscribe=f"/topic/{job}.{at * 100 + step}")
            await client.notice("subscribed", 100, 300)

        await asyncio.gather(*(subscribe(client, at) for at, client in enumerate(clients)))

        (queue,) = await asyncio.to_thread(feed_queues, rabbit) - before
        assert await asyncio.to_thread(count_bindings, rabbit, queue) == 10_000
        info = (await asyncio.to_thread(rabbit.list_queues))[queue]
        assert info.consumers == 1

        for number in range(10_000):
            raw.basic_publish("amq.topic", f"{job}.{number}", b"%d" % number)
        for client in clients:
            await client.until(100, 120)
        for at, client in enumerate(clients):
            assert client.bodies == [str(at * 100 + step) for step in range(100)]

        few, rest = clients[:10], clients[10:]
        await asyncio.gather(*(client.close() for client in few))
        await settled(lambda: count_bindings(rabbit, queue), 9000, 120)
        await asyncio.gather(*(client.close() for client in rest))
    assert await asyncio.to_thread(feed_queues, rabbit) == before


async def test_the_last_page_that_closes_takes_the_queue_along(
    rabbit: RabbitMQ, session: aiohttp.ClientSession
) -> None:
    before = await asyncio.to_thread(feed_queues, rabbit)
    key = unique("last")
    async with running(broker={"url": rabbit.url}, log={"linger": 0.1}) as gw:
        # Half a minute outside of tests, so that the next page finds the queue still there.
        gw.gateway.broker._feeds._linger = 0.1  # type: ignore[attr-defined]
        streams = [await sse(session, gw.url, f"/topic/{key}.{at}") for at in range(3)]
        (queue,) = await asyncio.to_thread(feed_queues, rabbit) - before
        assert await asyncio.to_thread(count_bindings, rabbit, queue) == 3
        await streams.pop().close()
        await settled(lambda: count_bindings(rabbit, queue), 2)
        for stream in streams:
            await stream.close()
        await settled(lambda: feed_queues(rabbit), before)


def feed_queues(rabbit: RabbitMQ) -> set[str]:
    """Return the names of the queues that gateways read their feeds from."""
    return {
        name
        for name in rabbit.list_queues()
        if name.startswith("queuecast.") and ".canary." not in name and ".letters." not in name
    }


def count_bindings(rabbit: RabbitMQ, queue: str) -> int:
    """Return a queue's bindings, without that to the default exchange."""
    rows = rabbit.list_bindings()
    return sum(row["destination_name"] == queue and row["source_name"] != "" for row in rows)


# -- what is refused ----------------------------------------------------------------------


async def test_a_missing_exchange_is_one_client_s_error(
    rabbit: RabbitMQ, raw: Any, session: aiohttp.ClientSession
) -> None:
    key, missing = unique("calm"), unique("missing")
    async with running(broker={"url": rabbit.url}) as gw:
        other = await sse(session, gw.url, f"/topic/{key}")
        raw.basic_publish("amq.topic", key, b"0")
        await other.until("0")
        before = await asyncio.to_thread(connections, rabbit)
        async with session.get(f"{gw.url}/sse/exchange/{missing}/a") as answer:
            assert answer.status == 404
            error = await answer.json()
        assert f'[[exchange]] name = "{missing}"' in error["hint"]
        socket = await websockets_socket(session, gw.url, f"/exchange/{missing}/a")
        await eventually(lambda: socket.ended is not None, "closed")
        assert "4404" in str(socket.ended)
        assert "[[exchange]]" in str(socket.ended)
        client = await Enveloped.open(gw.url, f"/topic/{key}?envelope=json")
        await client.say(subscribe=f"/exchange/{missing}/b")
        refused = await client.notice("error")
        assert refused["subscribe"] == f"/exchange/{missing}/b"
        assert "[[exchange]]" in refused["error"]["hint"]
        raw.basic_publish("amq.topic", key, b"1")
        await other.until("1")
        await client.until(1)
        check_complete(other, range(2))
        assert await asyncio.to_thread(connections, rabbit) == before
        await client.close()
        await other.close()


async def test_what_the_broker_refuses_is_one_client_s_error(
    rabbit: RabbitMQ, raw: Any, session: aiohttp.ClientSession
) -> None:
    user, password = unique("limited"), unique("password")
    mine, secret = unique("open"), unique("secret")
    url = await asyncio.to_thread(
        rabbit.add_user,
        user,
        password,
        r"^queuecast\..*",
        rf"^(queuecast\..*|amq\.default|{mine})$",
        rf"^(queuecast\..*|{mine})$",
    )
    for exchange in (mine, secret):
        raw.exchange_declare(exchange, "topic", auto_delete=False)
    try:
        async with running(broker={"url": url}) as gw:
            other = await sse(session, gw.url, f"/exchange/{mine}/a")
            raw.basic_publish(mine, "a", b"0")
            await other.until("0")
            before = await asyncio.to_thread(connections, rabbit, user)
            async with session.get(f"{gw.url}/sse/exchange/{secret}/a") as answer:
                assert answer.status == 403
                assert secret in (await answer.json())["text"]
            socket = await aiohttp_socket(session, gw.url, f"/exchange/{secret}/a")
            await eventually(lambda: socket.ended is not None, "closed")
            assert socket.ended == "closed with 4403"
            async with session.post(f"{gw.url}/publish/exchange/{secret}/a", data=b"x") as answer:
                assert answer.status == 403
            async with session.post(f"{gw.url}/publish/exchange/{mine}/a", data=b"1") as answer:
                assert answer.status == 200
            await other.until("1")
            check_complete(other, range(2))
            assert await asyncio.to_thread(connections, rabbit, user) == before
            await other.close()
    finally:
        for exchange in (mine, secret):
            raw.exchange_delete(exchange)
        await asyncio.to_thread(rabbit.delete_users, user)


def connections(rabbit: RabbitMQ, user: str | None = None) -> set[str]:
    """Return the broker's connections by name (the client's port is in it)."""
    rows = rabbit.list_connections()
    return {row["name"] for row in rows if user is None or row["user"] == user}


# -- publishing ---------------------------------------------------------------------------


async def test_publishing_over_http_says_what_the_broker_said(
    rabbit: RabbitMQ, raw: Any, session: aiohttp.ClientSession
) -> None:
    queue, missing = unique("orders"), unique("missing")
    async with (
        proxied(rabbit) as proxy,
        running(broker={"url": through(proxy, rabbit.url)}, queue=[{"name": queue}]) as gw,
    ):

        async def publish(destination: str) -> tuple[int, dict[str, Any]]:
            async with session.post(f"{gw.url}/publish{destination}", data=b"x") as answer:
                return answer.status, await answer.json()

        assert (await publish(f"/amq/queue/{queue}"))[0] == 200
        # Confirmed is there: no waiting.
        _, properties, body = raw.basic_get(queue, auto_ack=True)
        assert (body, properties.delivery_mode) == (b"x", 2)
        status, answer = await publish(f"/amq/queue/{missing}")
        assert (status, answer["code"], answer["retry"]) == (404, "unroutable", False)
        assert (await publish(f"/topic/{missing}"))[0] == 200
        status, answer = await publish(f"/exchange/{missing}/a")
        assert (status, answer["code"]) == (404, "not_found")
        assert f'[[exchange]] name = "{missing}"' in answer["hint"]
        await proxy.refuse()
        proxy.cut()
        await eventually(lambda: not gw.gateway.broker.ready, "noticed")
        status, answer = await publish(f"/topic/{missing}")
        assert (status, answer["code"], answer["retry"]) == (503, "unavailable", True)
        await proxy.accept()
        await eventually(lambda: gw.gateway.broker.ready, "reconnected")
        assert (await publish(f"/amq/queue/{queue}"))[0] == 200
    raw.queue_delete(queue)


async def test_chinese_keys_and_bodies_both_ways(
    rabbit: RabbitMQ, raw: Any, session: aiohttp.ClientSession
) -> None:
    exchange, key, body = unique("新闻"), "体育.足球", "你好，世界！🐇"
    bound = raw.queue_declare("", exclusive=True).method.queue
    async with running(
        broker={"url": rabbit.url}, exchange=[{"name": exchange, "type": "topic"}]
    ) as gw:
        raw.queue_bind(bound, exchange, "体育.*")
        streams = [
            await open_(session, gw.url, f"/exchange/{exchange}/{pattern}")
            for open_ in (sse, aiohttp_socket, websockets_socket)
            for pattern in (key, "体育.*")
        ]
        enveloped = await Enveloped.open(
            gw.url, f"?envelope=json&destination=/exchange/{exchange}/体育.%23"
        )
        await enveloped.notice("subscribed")
        raw.basic_publish(exchange, key, body.encode())
        for stream in streams:
            await stream.until(body)
        await enveloped.until(1)
        assert enveloped.deliveries[0]["destination"] == f"/exchange/{exchange}/{key}"
        assert enveloped.bodies == [body]
        assert taken(raw, bound) == (key, body)

        await enveloped.say(publish=f"/exchange/{exchange}/体育.篮球", body="回答", id="一")
        assert (await enveloped.notice("published"))["published"] == "一"
        assert taken(raw, bound) == ("体育.篮球", "回答")
        async with session.post(
            f"{gw.url}/publish/exchange/{exchange}/体育.网球", data="第三".encode()
        ) as answer:
            assert answer.status == 200
            assert (await answer.json())["published"] == f"/exchange/{exchange}/体育.网球"
        assert taken(raw, bound) == ("体育.网球", "第三")
        for stream in streams:
            await stream.close()
        await enveloped.close()
    raw.exchange_delete(exchange)


def taken(raw: Any, queue: str) -> tuple[str, str]:
    """Take the next message; it is there already, because its publish was confirmed."""
    method, _, body = raw.basic_get(queue, auto_ack=True)
    assert method is not None, "the queue is empty"
    return method.routing_key, body.decode()


# -- the start ----------------------------------------------------------------------------


async def test_with_exit_a_broker_that_is_away_ends_the_start(rabbit: RabbitMQ) -> None:
    async with proxied(rabbit) as proxy:
        await proxy.refuse()
        url = through(proxy, rabbit.url)
        with pytest.raises(Unavailable, match="refused"):
            async with running(broker={"url": url, "start": "exit", "start_timeout": 0.1}):
                pass


@pytest.mark.parametrize("start", ["retry", "exit"])
async def test_a_bad_login_ends_the_start_and_the_password_is_nowhere(
    rabbit: RabbitMQ, caplog: pytest.LogCaptureFixture, start: str
) -> None:
    caplog.set_level(logging.DEBUG)
    parts = urlsplit(rabbit.url)
    address = parts.netloc.rpartition("@")[2]
    url = parts._replace(netloc=f"guest:s3cr%40et@{address}").geturl()
    with pytest.raises(Refused) as caught:
        async with running(broker={"url": url, "start": start}):
            pass
    assert "login" in str(caught.value)
    for secret in ("s3cr%40et", "s3cr@et"):
        assert secret not in str(caught.value)
        assert secret not in caplog.text


async def test_the_password_is_in_no_log_and_no_answer(
    rabbit: RabbitMQ, caplog: pytest.LogCaptureFixture, session: aiohttp.ClientSession
) -> None:
    caplog.set_level(logging.DEBUG)
    user, password = unique("masked"), unique("hush")
    known = await asyncio.to_thread(rabbit.add_user, user, password)
    try:
        async with proxied(rabbit) as proxy:
            await proxy.refuse()
            url = through(proxy, known)
            async with running(broker={"url": url}) as gw:
                shown = [gw.gateway.broker.name]
                async with session.get(f"{gw.url}/readyz") as answer:
                    shown.append(await answer.text())
                await proxy.accept()
                await eventually(lambda: gw.gateway.broker.ready, "connected")
                proxy.cut()
                await eventually(lambda: not gw.gateway.broker.ready, "noticed")
                async with session.get(f"{gw.url}/readyz") as answer:
                    shown.append(await answer.text())
                await eventually(lambda: gw.gateway.broker.ready, "reconnected")
        assert user in caplog.text
        assert "***" in caplog.text
        assert password not in caplog.text
        assert not [text for text in shown if password in text]
    finally:
        await asyncio.to_thread(rabbit.delete_users, user)


async def test_an_exchange_of_another_type_ends_the_start(rabbit: RabbitMQ, raw: Any) -> None:
    name = unique("kind")
    raw.exchange_declare(name, "fanout")
    try:
        made = gateway(broker={"url": rabbit.url}, exchange=[{"name": name, "type": "topic"}])
        with pytest.raises(Conflict, match=name), made:
            pass
    finally:
        raw.exchange_delete(name)
