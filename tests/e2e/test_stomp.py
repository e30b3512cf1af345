"""STOMP with the clients that people use, on the embedded broker and on RabbitMQ."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import pika
import pytest
import stomp

import queuecast.testing
from queuecast.testing import RunningGateway
from tests.conftest import RABBITS, Node, Rabbits
from tests.support.processes import wait_until
from tests.support.servers import RabbitMQ, unique

PATIENCE = 20.0  # what only a broken test waits for


class Behind:
    """A gateway, and the back end's way to what is behind it."""

    def __init__(self, gateway: RunningGateway, rabbit: RabbitMQ | None) -> None:
        self.gateway = gateway
        self.rabbit = rabbit

    @property
    def tcp(self) -> tuple[str, int]:
        parts = urlsplit(self.gateway.gateway.stomp_url)
        return str(parts.hostname), int(parts.port or 0)

    @property
    def web(self) -> tuple[str, int]:
        return "127.0.0.1", int(self.gateway.url.rpartition(":")[2])

    def publish(self, exchange: str, key: str, body: str) -> None:
        """Publish with pika where there is RabbitMQ, else over HTTP."""
        if self.rabbit is None:
            self.gateway.publish(f"/exchange/{exchange}/{quote(key, safe='')}", body)
            return
        connection = pika.BlockingConnection(pika.URLParameters(self.rabbit.url))
        connection.channel().basic_publish(exchange, key, body.encode())
        connection.close()

    def declare_exchange(self, name: str) -> None:
        if self.rabbit is None:
            return  # configured
        connection = pika.BlockingConnection(pika.URLParameters(self.rabbit.url))
        connection.channel().exchange_declare(name, exchange_type="topic", durable=True)
        connection.close()


@pytest.fixture(
    scope="module",
    params=["embedded", *(pytest.param(name, marks=pytest.mark.rabbitmq) for name in RABBITS)],
)
def behind(request: pytest.FixtureRequest, rabbits: Rabbits) -> Iterator[Behind]:
    tables: dict[str, Any] = {"server": {"stomp_tcp": "127.0.0.1:0", "grace": "2s"}}
    rabbit: RabbitMQ | None = None
    if request.param != "embedded":
        rabbit = rabbits.shared(request.param)
        tables["broker"] = {"url": rabbit.url, "start": "exit"}
    else:
        tables["exchange"] = [{"name": "rabbitmq", "type": "topic"}]
    with queuecast.testing.gateway(**tables) as running:
        made = Behind(running, rabbit)
        made.declare_exchange("rabbitmq")
        yield made


Told = tuple[str, dict[str, str], str]


class Listener(stomp.ConnectionListener):  # type: ignore[misc]
    """What a stomp.py client was told, as (kind, headers, body).

    Receipts and the messages of different subscriptions come in no order that a test may rely
    on: `next` keeps aside what it was not asked for, and later calls find it.
    """

    def __init__(self) -> None:
        self.frames: queue.Queue[Told] = queue.Queue()
        self.ended = threading.Event()
        self._aside: list[Told] = []

    def on_connected(self, frame: Any) -> None:
        self.frames.put(("CONNECTED", frame.headers, frame.body))

    def on_message(self, frame: Any) -> None:
        self.frames.put(("MESSAGE", frame.headers, frame.body))

    def on_receipt(self, frame: Any) -> None:
        self.frames.put(("RECEIPT", frame.headers, frame.body))

    def on_error(self, frame: Any) -> None:
        self.frames.put(("ERROR", frame.headers, frame.body))

    def on_disconnected(self) -> None:
        self.ended.set()

    def next(self, kind: str, subscription: str | None = None) -> tuple[dict[str, str], str]:
        """Return the next frame of a kind (and subscription); an ERROR is never passed over."""

        def wanted(told: Told) -> bool:
            return told[0] == kind and subscription in (None, told[1].get("subscription"))

        for told in self._aside:
            if wanted(told):
                self._aside.remove(told)
                return told[1:]
        while True:
            try:
                told = self.frames.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"no {kind}, but {self._aside}") from None
            if wanted(told):
                return told[1:]
            assert told[0] != "ERROR", told
            self._aside.append(told)

    def has(self, kind: str, subscription: str | None = None) -> bool:
        """Tell whether `next` would find one without waiting."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._aside.append(self.frames.get_nowait())
        return any(
            told[0] == kind and subscription in (None, told[1].get("subscription"))
            for told in self._aside
        )


def _raw(kind: Any) -> Callable[[Behind, tuple[int, int]], Any]:
    return lambda behind, beats: kind([behind.tcp], heartbeats=beats)


# stomp.py's 1.0 client knows no heart-beats.
CLIENTS: dict[str, Callable[[Behind, tuple[int, int]], Any]] = {
    "tcp-1.0": lambda behind, _beats: stomp.Connection10([behind.tcp]),
    "tcp-1.1": _raw(stomp.Connection11),
    "tcp-1.2": _raw(stomp.Connection12),
    "ws-1.2": lambda behind, beats: stomp.WSConnection(
        [behind.web], ws_path="/ws", heartbeats=beats
    ),
}


@contextmanager
def connected(
    behind: Behind,
    kind: str,
    login: tuple[str, str] = ("guest", "guest"),
    beats: tuple[int, int] = (0, 0),
) -> Iterator[tuple[Any, Listener]]:
    client = CLIENTS[kind](behind, beats)
    listener = Listener()
    client.set_listener("", listener)
    client.connect(*login, wait=True)
    listener.next("CONNECTED")
    try:
        yield client, listener
    finally:
        # After an ERROR the server closes the connection, perhaps just now.
        with contextlib.suppress(stomp.exception.NotConnectedException, OSError):
            if client.is_connected():
                client.disconnect()
        assert listener.ended.wait(PATIENCE)


def ack_arguments(kind: str, headers: dict[str, str]) -> tuple[str, ...]:
    if kind.endswith("1.2"):
        return (headers["ack"],)
    return (headers["message-id"],) if kind.endswith("1.0") else (headers["message-id"], "work")


@pytest.mark.parametrize("kind", CLIENTS)
def test_stomp_py(behind: Behind, kind: str) -> None:
    name = unique("stomp")
    with connected(behind, kind) as (client, listener):
        client.subscribe(f"/topic/{name}.*", id="feed", headers={"receipt": "1"})
        listener.next("RECEIPT")
        client.send(f"/topic/{name}.a", "你好: one\n", headers={"receipt": "2", "custom": "a:b"})
        assert listener.next("RECEIPT")[0]["receipt-id"] == "2"
        assert listener.next("MESSAGE")[1] == "你好: one\n"

        client.subscribe(f"/queue/{name}", id="work", ack="client", headers={"receipt": "3"})
        listener.next("RECEIPT")
        for body in ("a", "b", "c"):
            client.send(f"/queue/{name}", body, headers={"persistent": "true"})
        deliveries = [listener.next("MESSAGE") for _ in range(3)]
        assert [body for _, body in deliveries] == ["a", "b", "c"]
        headers = deliveries[0][0]
        assert headers["destination"] == f"/queue/{name}"
        assert headers["subscription"] == "work"
        assert headers["redelivered"] == "false"
        assert headers["persistent"] == "true"
        client.ack(*ack_arguments(kind, deliveries[1][0]), receipt="4")
        listener.next("RECEIPT")

    # What was not acked comes again, to whoever asks next.
    with connected(behind, kind) as (client, listener):
        client.subscribe(f"/queue/{name}", id="work", ack="client-individual")
        headers, body = listener.next("MESSAGE")
        assert (body, headers["redelivered"]) == ("c", "true")
        client.ack(*ack_arguments(kind, headers), receipt="5")
        listener.next("RECEIPT")


@pytest.mark.parametrize("kind", ["tcp-1.1", "tcp-1.2", "ws-1.2"])
def test_heart_beats_keep_an_idle_client(behind: Behind, kind: str) -> None:
    with connected(behind, kind, beats=(1000, 1000)) as (client, listener):
        assert not listener.ended.wait(4.5), "stomp.py ends it when three beats are missing"
        client.send(f"/topic/{unique('t')}", "x", headers={"receipt": "1"})
        listener.next("RECEIPT")


def test_transactions(behind: Behind) -> None:
    name = unique("stomp")
    with connected(behind, "tcp-1.2") as (client, listener):
        client.subscribe(f"/topic/{name}", id="1", headers={"receipt": "s"})
        listener.next("RECEIPT")
        first, second = client.begin(), client.begin()
        client.send(f"/topic/{name}", "no", transaction=first)
        client.send(f"/topic/{name}", "yes", transaction=second)
        client.abort(first)
        client.commit(second)
        assert listener.next("MESSAGE")[1] == "yes"


@pytest.mark.parametrize("kind", ["tcp-1.1", "tcp-1.2", "ws-1.2"])
def test_a_transaction_with_a_refused_member_publishes_nothing(behind: Behind, kind: str) -> None:
    name = unique("stomp")
    with connected(behind, kind) as (client, listener):
        client.subscribe(f"/topic/{name}", id="1", headers={"receipt": "s"})
        listener.next("RECEIPT")
        first = client.begin()
        client.send(f"/topic/{name}", "no", transaction=first)
        client.send(f"/queue/{name}/x", "refused", transaction=first)
        assert listener.next("ERROR")[0]["message"] == "Invalid destination"
        client.send(f"/topic/{name}", "no", transaction=first)
        client.commit(first, headers={"receipt": "c"})
        headers, _ = listener.next("ERROR")
        assert (headers["message"], headers["receipt-id"]) == ("Transaction failed", "c")
        client.begin(first)
        client.send(f"/topic/{name}", "yes", transaction=first)
        client.commit(first)
        assert listener.next("MESSAGE")[1] == "yes"


@pytest.mark.parametrize("kind", ["tcp-1.1", "ws-1.2"])
def test_a_selector_is_refused(behind: Behind, kind: str) -> None:
    name = unique("stomp")
    with connected(behind, kind) as (client, listener):
        headers = {"selector": "size > 1", "receipt": "1"}
        client.subscribe(f"/topic/{name}", id="1", headers=headers)
        headers, body = listener.next("ERROR")
        assert (headers["message"], headers["receipt-id"]) == ("Not supported", "1")
        assert "selector" in body
        client.subscribe(f"/topic/{name}", id="1", headers={"receipt": "2"})
        assert listener.next("RECEIPT")[0]["receipt-id"] == "2"


def test_errors_of_the_broker(behind: Behind) -> None:
    with connected(behind, "tcp-1.2") as (client, listener):
        client.send(f"/queue/{unique('q')}/x", "x", headers={"receipt": "1"})
        headers, _ = listener.next("ERROR")
        assert (headers["message"], headers["receipt-id"]) == ("Invalid destination", "1")
        client.send(f"/amq/queue/{unique('none')}", "x", headers={"receipt": "2"})
        headers, _ = listener.next("ERROR")
        assert (headers["message"], headers["receipt-id"]) == ("not_found", "2")
        client.send(f"/exchange/{unique('none')}/k", "x", headers={"receipt": "3"})
        headers, _ = listener.next("ERROR")
        assert (headers["message"], headers["receipt-id"]) == ("not_found", "3")
        assert listener.ended.wait(PATIENCE), "AMQP's errors end the connection"
    with connected(behind, "tcp-1.2") as (client, listener):
        client.subscribe(f"/amq/queue/{unique('none')}", id="1", headers={"receipt": "4"})
        headers, _ = listener.next("ERROR")
        assert (headers["message"], headers["receipt-id"]) == ("not_found", "4")
        assert listener.ended.wait(PATIENCE)


def converse(address: tuple[str, int], *frames: bytes) -> bytes:
    """Send frames as they are and read what comes until the last one's answer."""
    with socket.create_connection(address, timeout=PATIENCE) as raw:
        data = b""
        for frame in frames:
            raw.sendall(frame)
            before = data.count(b"\0")
            while data.count(b"\0") == before:
                part = raw.recv(65536)
                if not part:
                    return data
                data += part
        return data


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (b"login:guest\npasscode:wrong", b"Access refused for user 'guest'\n"),
        (b"login:nobody\npasscode:guest", b"Access refused for user 'nobody'\n"),
        (
            b"login:guest\npasscode:guest\nhost:no such host",
            b"Virtual host 'no such host' access denied\n",
        ),
        (b"login:guest", b"Missing login or passcode header(s)\n"),
    ],
)
def test_refused_logins(behind: Behind, lines: bytes, text: bytes) -> None:
    again = b"CONNECT\naccept-version:1.2\nlogin:guest\npasscode:guest\nhost:localhost\n\n\0"
    data = converse(behind.tcp, b"CONNECT\naccept-version:1.2\n" + lines + b"\n\n\0", again)
    error, connected_ = data.split(b"\0")[:2]
    assert error.startswith(b"ERROR\n")
    assert b"message:Bad CONNECT\n" in error
    assert error.endswith(b"\n\n" + text)
    assert connected_.lstrip().startswith(b"CONNECTED\n"), "the connection is as good as before"


def test_a_loopback_only_user_behind_a_proxy(behind: Behind) -> None:
    """A client that a proxy on this machine lets in is somewhere else."""

    async def ask() -> str:
        import aiohttp

        headers = {"X-Forwarded-For": "192.0.2.7"}
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(behind.gateway.ws_url + "/ws", headers=headers) as ws,
        ):
            await ws.send_str("CONNECT\naccept-version:1.2\nlogin:guest\npasscode:guest\n\n\0")
            return str((await ws.receive(timeout=PATIENCE)).data)

    assert "non-loopback access denied" in asyncio.run(ask())


# -- the browsers' libraries --------------------------------------------------------------


class Page:
    """One run of stomp.mjs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))

    def next(self, kind: str) -> dict[str, Any]:
        got = self._events.get(timeout=PATIENCE)
        assert got["event"] == kind, got
        return got

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()


@contextmanager
def page(node: Node, *arguments: str) -> Iterator[Page]:
    process = subprocess.Popen(
        [node.command, "stomp.mjs", *arguments],
        cwd=node.directory,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    opened = Page(process)
    try:
        yield opened
        opened.say("bye")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.node
@pytest.mark.parametrize(
    ("client", "version", "host"),
    [
        ("stompjs2", "1.1", "/"),
        ("webstomp", "1.0", "/"),
        ("webstomp", "1.1", ""),
        ("webstomp", "1.2", "127.0.0.1"),
        ("stompjs7", "1.0", ""),
        ("stompjs7", "1.1", "/"),
        ("stompjs7", "1.2", "127.0.0.1"),
    ],
)
def test_the_articles_flow(
    behind: Behind, node: Node, client: str, version: str, host: str
) -> None:
    """Subscribe to an exchange and a key, publish from a back end, and from the page itself."""
    key = unique("zjj")
    url = behind.gateway.ws_url + "/ws"
    with page(node, client, url, version, f"/exchange/rabbitmq/{key}", host) as opened:
        opened.next("connected")
        opened.next("receipt")
        behind.publish("rabbitmq", key, "[disk.info] Hello World!333")
        message = opened.next("message")
        assert message["body"] == "[disk.info] Hello World!333"
        assert message["headers"]["destination"] == f"/exchange/rabbitmq/{key}"
        opened.say("你好, from the page")
        assert opened.next("message")["body"] == "你好, from the page"


# -- RabbitMQ's own users -----------------------------------------------------------------


@pytest.mark.rabbitmq
def test_the_clients_own_permissions_hold(rabbit: RabbitMQ) -> None:
    user, allowed = unique("user"), unique("mine")
    rabbit.add_user(
        user, "pass", configure=f"^{allowed}", write=f"^{allowed}|^amq.default$", read=f"^{allowed}"
    )
    try:
        with queuecast.testing.gateway(
            server={"stomp_tcp": "127.0.0.1:0", "grace": "2s"},
            broker={"url": rabbit.url, "start": "exit"},
        ) as running:
            behind = Behind(running, rabbit)
            # Others read the feed; that gives this user no right to it.
            with connected(behind, "tcp-1.2") as (guest, told):
                guest.subscribe("/topic/secret", id="1", headers={"receipt": "1"})
                told.next("RECEIPT")
                for action in ("subscribe", "send", "other queue"):
                    with connected(behind, "tcp-1.2", (user, "pass")) as (client, listener):
                        client.subscribe(f"/queue/{allowed}", id="1", headers={"receipt": "1"})
                        listener.next("RECEIPT")
                        client.send(f"/queue/{allowed}", "mine")
                        assert listener.next("MESSAGE")[1] == "mine"
                        if action == "subscribe":
                            client.subscribe("/topic/secret", id="2", headers={"receipt": "2"})
                        elif action == "send":
                            client.send("/topic/secret", "x", headers={"receipt": "2"})
                        else:
                            other = f"/queue/{unique('other')}"
                            client.subscribe(other, id="2", headers={"receipt": "2"})
                        headers, _ = listener.next("ERROR")
                        assert headers["message"] == "access_refused"
                        assert headers["receipt-id"] == "2"
                        assert listener.ended.wait(PATIENCE)
    finally:
        rabbit.delete_users(user)


@pytest.mark.rabbitmq
def test_many_sessions_of_a_user_are_two_connections_to_the_broker(rabbit: RabbitMQ) -> None:
    user = unique("user")
    rabbit.add_user(user, "pass")
    try:
        with queuecast.testing.gateway(
            server={"stomp_tcp": "127.0.0.1:0", "grace": "2s"},
            broker={"url": rabbit.url, "start": "exit"},
        ) as running:
            behind = Behind(running, rabbit)
            opened = [connected(behind, "tcp-1.2", (user, "pass")) for _ in range(10)]
            clients = [each.__enter__() for each in opened]
            for client, listener in clients:
                client.subscribe("/topic/t", id="1", headers={"receipt": "1"})
                listener.next("RECEIPT")
            mine = [each for each in rabbit.list_connections() if each["user"] == user]
            assert len(mine) == 2
            running.gateway.hub.stats.encodes = 0
            clients[0][0].send("/topic/t", "x")
            for _, listener in clients:
                assert listener.next("MESSAGE")[1] == "x"
            assert running.gateway.hub.stats.encodes == 1
            for each in opened:
                each.__exit__(None, None, None)
        wait_until(
            lambda: not [each for each in rabbit.list_connections() if each["user"] == user],
            what="the account's connections are closed",
        )
    finally:
        rabbit.delete_users(user)
