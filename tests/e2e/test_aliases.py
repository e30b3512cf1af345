"""Friendly URLs, bridges and path prefixes from outside."""

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest
from websockets.asyncio.client import connect

import queuecast.testing
from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, gateway, get, publish, request, sse
from tests.support.servers import NginxServer

Name = Callable[[], str]


@pytest.fixture(scope="module")
def aliased() -> Iterator[RunningGateway]:
    with queuecast.testing.gateway(
        exchange=[{"name": "events", "type": "topic"}],
        aliases={"/events/{id}": "/exchange/events/{id}", "/sse": "/topic/news"},
        server={"grace": "1s"},
    ) as running:
        yield running


@pytest.mark.parametrize("path", ["/events/ID", "/sse/events/ID"])
async def test_an_alias_is_an_event_stream(aliased: RunningGateway, name: Name, path: str) -> None:
    ident = f"{name()}.订单"
    quoted = ident.replace("订单", "%E8%AE%A2%E5%8D%95")
    async with sse(aliased.url + path.replace("ID", quoted)) as stream:
        await publish(aliased, f"/exchange/events/{ident}", "progress")
        assert await stream.data(1) == ["progress"]


async def test_an_alias_on_every_transport_hides_the_brokers_names(
    aliased: RunningGateway, name: Name
) -> None:
    alias = f"/events/{name()}"
    async with (
        sse(f"{aliased.url}/sse?destination={alias}&envelope=json") as stream,
        connect(f"{aliased.ws_url}/ws{alias}") as ws,
    ):
        answer = await request("POST", f"{aliased.url}/publish{alias}", data="by alias")
        assert answer.status == 200
        assert await asyncio.wait_for(ws.recv(), PATIENCE) == "by alias"
        event = await stream.next()
        assert event.json["destination"] == alias
        assert "/exchange/" not in event.data
        await ws.send("from the socket")
        assert (await stream.next()).json["body"] == "from the socket"
    polled = await get(f"{aliased.url}/poll{alias}?since=first")
    assert [each["body"] for each in polled.json["messages"]] == ["by alias", "from the socket"]


@pytest.mark.parametrize("path", ["/sse", "/sse/"])
async def test_the_bare_verb_is_an_alias(aliased: RunningGateway, path: str) -> None:
    async with sse(aliased.url + path) as stream:
        await publish(aliased, "/topic/news", "headline")
        assert await stream.data(1) == ["headline"]


@pytest.mark.parametrize("parameter", ["*", "%2A", "%23", "a%2Fb", "a%23"])
async def test_parameters_are_literal(aliased: RunningGateway, parameter: str) -> None:
    for path in (f"/events/{parameter}", f"/sse?destination=/events/{parameter}"):
        answer = await get(aliased.url + path)
        assert (answer.status, answer.json["code"]) == (400, "bad_destination"), path


async def test_what_a_socket_sends_is_queued_and_then_broadcast(name: Name) -> None:
    room = name()
    async with gateway(
        queue=[{"name": room}],
        bridge=[{"from": f"/queue/{room}", "to": f"/topic/{room}"}],
        server={"grace": "1s"},
    ) as gw:
        async with (
            connect(f"{gw.ws_url}/ws?destination=/topic/{room}") as one,
            connect(f"{gw.ws_url}/ws?destination=/topic/{room}") as two,
            sse(f"{gw.url}/sse/topic/{room}") as stream,
        ):
            for ws in (one, two):
                assert json.loads(await asyncio.wait_for(ws.recv(), PATIENCE))["subscribed"]
            for n in range(200):
                await one.send(json.dumps({"publish": f"/queue/{room}", "body": f"第{n}条"}))
            expected = [f"第{n}条" for n in range(200)]
            assert await stream.data(200) == expected
            for ws in (one, two):
                bodies: list[str] = []
                while len(bodies) < 200:
                    heard = json.loads(await asyncio.wait_for(ws.recv(), PATIENCE))
                    bodies += [heard["body"]] if "body" in heard else []
                assert bodies == expected
        counts = gw.gateway.broker.counts()  # type: ignore[attr-defined]
        assert counts.queues[room].ready == 0


@pytest.mark.nginx
@pytest.mark.parametrize("strips", [True, False])
async def test_under_a_path_prefix(
    nginx: Callable[..., NginxServer], name: Name, strips: bool
) -> None:
    topic = f"/topic/{name()}.%E9%94%AE"
    async with gateway(
        server={"grace": "1s", "prefix": "/push"}, aliases={"/now/{id}": "/topic/{id}"}
    ) as gw:
        origin = gw.url.removesuffix("/push")
        proxy = nginx(
            "location /push/ {\n"
            f"  proxy_pass {origin}{'/' if strips else ''};\n"
            "  proxy_http_version 1.1; proxy_buffering off;\n"
            "  proxy_set_header Host $http_host;\n"
            "  proxy_set_header Upgrade $http_upgrade;\n"
            "  proxy_set_header Connection $connection_upgrade;\n"
            "}",
            http='map $http_upgrade $connection_upgrade { default upgrade; "" ""; }',
        )
        base = f"{proxy.url}/push"
        async with (
            sse(f"{base}/sse{topic}") as stream,
            connect(f"ws{base.removeprefix('http')}/ws{topic}") as ws,
            sse(f"{base}/now/{topic.removeprefix('/topic/')}") as alias,
        ):
            answer = await request("POST", f"{base}/publish{topic}", data="经代理")
            assert answer.status == 200
            assert await stream.data(1) == ["经代理"]
            assert await alias.data(1) == ["经代理"]
            assert await asyncio.wait_for(ws.recv(), PATIENCE) == "经代理"
            # A page of the very origin that the proxy shows.
            await ws.send("回")
            assert await stream.data(1) == ["回"]
        polled = await get(f"{base}/poll{topic}?last=2", headers={"Origin": proxy.url})
        assert len(polled.json["messages"]) == 2
        assert (await get(f"{base}/readyz")).json["ready"] is True
