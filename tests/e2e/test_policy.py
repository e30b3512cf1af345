"""Who may do what from outside: rules, Origin, Host and Sec-Fetch-Site on every route."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import queuecast.testing
from queuecast.testing import RunningGateway
from tests.e2e.clients import PATIENCE, gateway, get, publish, request, sse
from tests.e2e.test_websocket import closed

Name = Callable[[], str]

ROUTES = ["/sse/topic/public.a", "/poll/topic/public.a?last=1", "/ws/topic/public.a"]


@pytest.fixture(scope="module")
def ruled() -> Iterator[RunningGateway]:
    with queuecast.testing.gateway(
        server={"grace": "1s", "origins": ["https://app.example"]},
        allow=[
            {
                "who": "anonymous",
                "subscribe": ["/topic/public.#", "/queue/jobs"],
                "publish": ["/topic/chat.*", "/topic/public.a", "/queue/jobs"],
            }
        ],
        aliases={"/open/{id}": "/topic/public.{id}", "/secret/{id}": "/topic/secret.{id}"},
    ) as running:
        yield running


@pytest.mark.parametrize(
    "destination", ["/topic/secret.a", "/topic/%23", "/topic/*.a", "/queue/other", "/secret/a"]
)
async def test_what_may_not_be_read(ruled: RunningGateway, destination: str) -> None:
    for verb in ("sse", "poll"):
        for path in (f"/{verb}{destination}", f"/{verb}?destination={destination}"):
            if destination == "/topic/%23" and "?" in path:
                path = f"/{verb}?destination=/topic/%2523"
            answer = await get(ruled.url + path)
            assert (answer.status, answer.json["code"]) == (403, "refused"), (path, answer.text)
    for path in (f"/ws{destination}", f"/ws{destination}?envelope=json"):
        async with connect(ruled.ws_url + path) as ws:
            code, reason = await closed(ws)
        assert code == 4403
        assert "refused" in reason or "anonymous may not" in reason


async def test_an_alias_hides_the_broker_s_names(ruled: RunningGateway) -> None:
    hidden = ("secret.", "public.", "/topic/", "[[allow]]")
    answers: list[str | bytes] = [
        (await get(f"{ruled.url}/secret/a")).text,
        (await get(f"{ruled.url}/poll/secret/a")).text,
        (await request("POST", f"{ruled.url}/publish/secret/a", data=b"x")).text,
        (await request("POST", f"{ruled.url}/publish/open/a", data=b"x")).text,
    ]
    async with connect(f"{ruled.ws_url}/ws/secret/a") as ws:
        answers.append((await closed(ws))[1])
    async with connect(f"{ruled.ws_url}/ws/open/a?envelope=json") as ws:
        answers.append(await ws.recv())
        await ws.send(json.dumps({"subscribe": "/secret/a"}))
        answers.append(await ws.recv())
        await publish(ruled, "/topic/public.a", "seen")
        answers.append(await ws.recv())
    for text in map(str, answers):
        assert "/secret/a" in text or "/open/a" in text
        assert not any(name in text for name in hidden), text


async def test_one_of_several_destinations_is_enough_to_refuse(ruled: RunningGateway) -> None:
    query = "?destination=/topic/public.a&destination=/topic/secret.a"
    assert (await get(f"{ruled.url}/sse{query}")).status == 403
    assert (await get(f"{ruled.url}/poll{query}")).status == 403
    async with connect(f"{ruled.ws_url}/ws{query}") as ws:
        assert (await closed(ws))[0] == 4403


async def test_what_may_be_read(ruled: RunningGateway) -> None:
    async with sse(f"{ruled.url}/open/a") as stream, sse(f"{ruled.url}/sse/topic/public.%23"):
        await publish(ruled, "/topic/public.a", "hello")
        assert await stream.data(1) == ["hello"]


async def test_publishing(ruled: RunningGateway) -> None:
    for destination in ("/topic/secret.a", "/topic/public.b", "/open/b", "/queue/other"):
        answer = await request("POST", f"{ruled.url}/publish{destination}", data=b"x")
        assert (answer.status, answer.json["code"]) == (403, "refused"), destination
        batch = {
            "messages": [
                {"destination": "/topic/chat.a", "body": "good"},
                {"destination": destination, "body": "bad"},
            ]
        }
        answer = await request("POST", f"{ruled.url}/publish", json=batch)
        assert answer.status == 403
        assert "messages[1]" in answer.json["text"]
    assert (await request("POST", f"{ruled.url}/publish/topic/chat.a", data=b"x")).status == 200


async def test_frames_are_asked_about_too(ruled: RunningGateway) -> None:
    async def ask(ws: Any, **command: Any) -> Any:
        await ws.send(json.dumps(command))
        return json.loads(await asyncio.wait_for(ws.recv(), PATIENCE))

    async with connect(f"{ruled.ws_url}/ws/topic/public.x?envelope=json") as ws:
        await ws.recv()
        assert (await ask(ws, publish="/topic/secret.a", body=""))["error"]["code"] == "refused"
        assert (await ask(ws, subscribe="/topic/secret.a"))["error"]["code"] == "refused"
        assert (await ask(ws, subscribe="/secret/a"))["error"]["code"] == "refused"
        assert (await ask(ws, subscribe="/topic/#"))["error"]["code"] == "refused"
        assert (await ask(ws, publish="/topic/chat.a", body="")) == {"published": 2}
    async with connect(f"{ruled.ws_url}/ws/topic/public.x") as ws:
        await ws.send("read only")
        assert (await closed(ws))[0] == 4403


async def refused_socket(url: str, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as info:
        await connect(url, **options)
    return info.value.response.status_code


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://app.example", "https://app.example.evil.net"]
)
async def test_foreign_origins(ruled: RunningGateway, origin: str) -> None:
    headers = {"Origin": origin}
    for path in ROUTES[:2]:
        answer = await get(ruled.url + path, headers=headers)
        assert (answer.status, answer.json["code"]) == (403, "refused"), path
        assert "Access-Control-Allow-Origin" not in answer.headers
    for path in (ROUTES[2], "/ws", "/ws?destination=/topic/public.a"):
        assert await refused_socket(ruled.ws_url + path, origin=origin) == 403
    for path in ("/publish/topic/chat.a", "/publish"):
        answer = await request("POST", ruled.url + path, headers=headers, data=b"{}")
        assert answer.status == 403, path
        preflight = await request("OPTIONS", ruled.url + path, headers=headers)
        assert preflight.status == 403
        assert "Access-Control-Allow-Origin" not in preflight.headers


@pytest.mark.parametrize("origin", ["https://app.example", "http://localhost:5173"])
async def test_configured_and_local_origins(ruled: RunningGateway, origin: str) -> None:
    async with sse(f"{ruled.url}/sse/topic/public.a", {"Origin": origin}) as stream:
        assert stream.response.headers["Access-Control-Allow-Origin"] == origin
    async with connect(f"{ruled.ws_url}/ws/topic/public.a", origin=origin):  # type: ignore[arg-type]
        pass
    answer = await request(
        "POST", f"{ruled.url}/publish/topic/chat.a", headers={"Origin": origin}, data=b"x"
    )
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert answer.headers["Vary"] == "Origin"


async def test_a_name_that_points_at_loopback(ruled: RunningGateway) -> None:
    """DNS rebinding: the attacker's page is of the same origin as the request's Host."""
    headers = {"Host": "evil.example:80", "Origin": "http://evil.example:80"}
    for path in (*ROUTES[:2], "/", "/healthz"):
        answer = await get(ruled.url + path, headers=headers)
        assert answer.status == 403, path
    answer = await request("POST", f"{ruled.url}/publish/topic/chat.a", headers=headers, data=b"x")
    assert answer.status == 403
    host, port = ruled.url.removeprefix("http://").split(":")
    status = await refused_socket(f"ws://evil.example{ROUTES[2]}", host=host, port=int(port))
    assert status == 403


@pytest.mark.parametrize(("site", "status"), [("cross-site", 403), ("same-origin", 200)])
async def test_a_page_that_sends_no_origin(ruled: RunningGateway, site: str, status: int) -> None:
    headers = {"Sec-Fetch-Site": site}
    answer = await get(
        f"{ruled.url}/sse/topic/public.a", headers=headers | {"Accept": "application/json"}
    )
    assert answer.status == status
    answer = await request("POST", f"{ruled.url}/publish/topic/chat.a", headers=headers, data=b"x")
    assert answer.status == status


async def test_a_refusal_is_logged_with_the_line_to_add(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with gateway(server={"grace": "1s"}) as gw:
        answer = await get(f"{gw.url}/sse/topic/a", headers={"Origin": "https://other.example"})
    assert answer.status == 403
    assert '[server] origins = ["https://other.example"]' in caplog.text
