"""SockJS by hand: clients that go without a word, brokers that restart, compressed messages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from queuecast.testing import RunningGateway
from tests.conftest import Node
from tests.e2e.clients import PATIENCE, gateway, request
from tests.e2e.test_sockjs import client
from tests.e2e.test_stomp import Behind, behind
from tests.support.servers import NginxServer, RabbitServer, unique

__all__ = ["behind"]  # the fixture

LOGIN = "CONNECT\naccept-version:1.2\nlogin:guest\npasscode:guest\n\n\0"


class Polls:
    """A client of one session that polls when it is told to."""

    def __init__(self, running: RunningGateway) -> None:
        self.base = f"{running.url}/stomp/000/{unique('s')}"
        self.frames: list[str] = []

    async def send(self, *frames: str) -> None:
        answer = await request("POST", self.base + "/xhr_send", data=json.dumps(frames))
        assert answer.status == 204, answer.text

    async def poll(self) -> str:
        answer = await request("POST", self.base + "/xhr")
        assert answer.status == 200, answer.text
        return answer.text

    async def next(self, command: str) -> str:
        """Return the next STOMP frame, which must be of this command."""
        (frame,) = await self.take(1)
        assert frame.startswith(command + "\n"), frame
        return frame

    async def take(self, count: int) -> list[str]:
        """Return the next STOMP frames."""
        while len(self.frames) < count:
            text = await self.poll()
            assert text[0] in "ha", text
            if text[0] == "a":
                joined = "".join(json.loads(text[1:]))
                self.frames += [part.lstrip("\n") for part in joined.split("\0") if part.strip()]
        taken, self.frames = self.frames[:count], self.frames[count:]
        return taken

    async def subscribe(self, destination: str, ack: str = "auto") -> None:
        await self.poll()
        lines = f"id:0\nack:{ack}\nreceipt:r\ndestination:{destination}"
        await self.send(LOGIN, f"SUBSCRIBE\n{lines}\n\n\0")
        await self.next("CONNECTED")
        await self.next("RECEIPT")


async def test_what_a_client_that_stopped_polling_did_not_ack_comes_again(behind: Behind) -> None:
    queue = f"/queue/{unique('q')}"
    first = Polls(behind.gateway)
    await first.subscribe(queue, "client-individual")
    frame = f"SEND\npersistent:true\nreceipt:1\ndestination:{queue}\n\n"
    await first.send(frame + "mine\0", frame + "yours\0")
    got = await first.take(4)
    bodies = {each.partition("\n\n")[2]: each for each in got if each.startswith("MESSAGE")}
    assert set(bodies) == {"mine", "yours"}
    (ack,) = [line[4:] for line in bodies["mine"].split("\n") if line.startswith("ack:")]
    await first.send(f"ACK\nid:{ack}\nreceipt:2\n\n\0")
    await first.next("RECEIPT")
    # It never asks again. After five seconds its message is somebody else's.
    second = Polls(behind.gateway)
    await second.subscribe(queue)
    again = await second.next("MESSAGE")
    assert again.endswith("\n\nyours")
    assert "\nredelivered:true\n" in again
    answer = await request("POST", first.base + "/xhr_send", data='["x"]')
    assert answer.status == 404


async def published(running: RunningGateway, destination: str, body: str) -> None:
    """Publish once the gateway can."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = await request("POST", f"{running.url}/publish{destination}", data=body)
            if answer.status == 200:
                return
            await asyncio.sleep(0.1)


@pytest.mark.node
@pytest.mark.rabbitmq
@pytest.mark.parametrize("transport", ["xhr-polling", "xhr-streaming"])
async def test_sessions_outlive_a_restart_of_the_broker(
    rabbit_own: RabbitServer, node: Node, transport: str
) -> None:
    destination = f"/topic/{unique('t')}"
    async with gateway(
        server={"grace": "2s"}, broker={"url": rabbit_own.url, "start": "exit"}
    ) as running:
        url = running.url + "/stomp"
        with client(node, "stompjs2", url, transport, destination) as opened:
            await asyncio.to_thread(opened.next, "connected")
            await asyncio.to_thread(opened.next, "receipt")
            await asyncio.to_thread(rabbit_own.restart)
            if rabbit_own.version in ("3.10", "4.0"):
                # The feed is there again; what was published meanwhile may be missing.
                message = await asyncio.to_thread(opened.next, "message")
                assert "gap" in message["headers"], message
            # Until the broker is there again sends are refused.
            await published(running, destination, "after")
            assert (await asyncio.to_thread(opened.next, "message"))["body"] == "after"


async def test_sockjs_over_a_compressed_websocket() -> None:
    destination = f"/topic/{unique('t')}"
    text = json.dumps(["磁盘告警"] * 200, ensure_ascii=False)
    async with (
        gateway(server={"compression": True, "grace": "2s"}) as running,
        connect(f"{running.ws_url}/stomp/000/abc/websocket") as packed,
        connect(f"{running.ws_url}/stomp/000/abc/websocket", compression=None) as plain,
    ):
        for ws, extensions in ((packed, 1), (plain, 0)):
            assert len(ws.protocol.extensions) == extensions
            assert await ws.recv() == "o"
            await ws.send(json.dumps([LOGIN]))
            assert json.loads(str(await ws.recv())[1:])[0].startswith("CONNECTED\n")
            subscribe = f"SUBSCRIBE\nid:0\nreceipt:r\ndestination:{destination}\n\n\0"
            await ws.send(json.dumps([subscribe]))
            assert json.loads(str(await ws.recv())[1:])[0].startswith("RECEIPT\n")
        await packed.send(json.dumps([f"SEND\ndestination:{destination}\n\n{text}\0"]))
        for ws in (packed, plain):
            found = str(await ws.recv())
            assert found.startswith("a[")
            assert json.loads(found[1:])[0].partition("\n\n")[2] == text + "\0\n"


@pytest.mark.nginx
@pytest.mark.node
async def test_several_gateways_behind_nginx_as_the_manual_has_it(
    nginx: Callable[..., NginxServer], node: Node
) -> None:
    manual = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    shown = manual.split("## SockJS behind a load balancer")[1].split("```nginx\n")[1]
    async with gateway(server={"grace": "2s"}) as one, gateway(server={"grace": "2s"}) as two:
        http = shown.split("```")[0]
        http = http.replace("10.0.0.1:15674", one.url.removeprefix("http://"))
        http = http.replace("10.0.0.2:15674", two.url.removeprefix("http://"))
        location = """location / {
            proxy_pass http://queuecast;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Connection "";
        }"""
        proxy = nginx(location, http=http)
        gateways = (one, two)
        sessions = [each.gateway.server._sockjs._sessions for each in gateways]
        # Whatever the server in the path is, all of a session's requests reach the same gateway.
        for number in range(40):
            session = unique("s")
            base = f"{proxy.url}/stomp/{number:03}/{session}"
            assert (await request("POST", base + "/xhr")).text == "o\n"
            for _ in range(3):
                send = await request("POST", base + "/xhr_send", data='["X\\n\\n\\u0000"]')
                assert send.status == 204
                assert (await request("POST", base + "/xhr")).text.startswith('a["ERROR')
        assert all(len(each) for each in sessions), "both have work"
        for transport in ("xhr-polling", "xhr-streaming", "eventsource"):
            # The embedded brokers know nothing of each other: this page hears itself.
            destination = f"/topic/{unique('t')}"
            with client(node, "stompjs7", proxy.url + "/stomp", transport, destination) as opened:
                connected = await asyncio.to_thread(opened.next, "connected")
                assert connected["transport"] == transport
                await asyncio.to_thread(opened.next, "receipt")
                for n in range(5):
                    opened.say(f"{n}")
                    assert (await asyncio.to_thread(opened.next, "message"))["body"] == f"{n}"
