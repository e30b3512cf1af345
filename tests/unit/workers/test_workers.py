"""Workers without a broker: their ports, what they are told, and what is seen of those who died."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from queuecast.admin.api import Admin
from queuecast.admin.view import Readiness, Row
from queuecast.config import from_tables
from queuecast.metrics import Family, gauge
from queuecast.server.listener import Listener
from queuecast.server.siblings import Place
from queuecast.workers.reservation import Reservation
from queuecast.workers.view import WorkersView
from queuecast.workers.words import Failed, Hello, Report, Said
from queuecast.workers.worker import how


def test_the_configuration_arrives_as_it_was() -> None:
    config = from_tables(
        {
            "server": {"workers": 2, "node": "a", "origins": ["https://a.example"], "drain": "3s"},
            "broker": {"url": "amqp://user:p%40ss@host/vhost"},
            "limits": {"message": "2MB", "frame": "4MB"},
            "exchange": [{"name": "e", "type": "fanout", "arguments": {"alternate-exchange": "x"}}],
            "queue": [{"name": "q", "bindings": [{"exchange": "e", "arguments": {"n": 1}}]}],
            "bridge": [{"from": "/queue/q", "to": "/topic/t"}],
            "aliases": {"/events/{id}": "/exchange/events/{id}"},
            "retain": [{"destination": "/topic/job.#", "age": "1h", "bytes": "64MB"}],
            "slow": [{"destination": "/topic/p.#", "policy": "conflate"}],
            "allow": [{"subscribe": ["/topic/#"], "publish": ["/topic/a"]}],
        }
    )
    hello = Hello(config, "debug", 1, 2, "a", "/somewhere", (3,), (4, 5), True)
    assert msgspec.json.decode(msgspec.json.encode(hello), type=Hello) == hello
    for said in (Report("http://h:1", "", "amqp://h", 10), Failed("why", 2)):
        assert msgspec.json.decode(msgspec.json.encode(said), type=Said) == said


def test_how_processes_end() -> None:
    assert how(-signal.SIGKILL) == "was killed by SIGKILL"
    assert how(3) == "ended with exit code 3"
    assert how(-200) == "was killed by signal 200"


@pytest.mark.parametrize("shared", [True, False])
async def test_a_port_is_held_without_taking_connections(shared: bool) -> None:
    port = Reservation(shared=shared)
    await port.take("127.0.0.1", 0)
    assert len(port.descriptors) == int(shared)
    inherited = [socket.socket(fileno=socket.dup(each)) for each in port.descriptors]

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.WriteTransport)
            transport.write(b"served")
            transport.close()

    worker = Listener(Greeter, "127.0.0.1", port.port, reuse=True, inherited=inherited)
    await worker.start()
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        assert await asyncio.wait_for(reader.read(), 10) == b"served"
        writer.close()
    # Another gateway's workers do not get into the midst of ours.
    with pytest.raises(OSError, match="in use"):
        await Reservation(shared=shared).take("127.0.0.1", port.port)
    worker.close()
    port.close()


class FakeView:
    """What a worker shows."""

    def __init__(self, readiness: Readiness, lags: list[int]) -> None:
        self._readiness = readiness
        self._lags = lags

    async def metrics(self) -> list[Family]:
        return [gauge("queuecast_feeds", "Feeds.", len(self._lags))]

    async def connections(self, count: int) -> list[Row]:
        return [{"id": f"{lag}", "lag": lag, "unsent": 0} for lag in self._lags[:count]]

    async def readiness(self) -> Readiness:
        return self._readiness

    async def alive(self) -> bool:
        return True


@asynccontextmanager
async def seen(*workers: FakeView | None) -> AsyncIterator[WorkersView]:
    """Show workers; None is one that has died and left its socket behind."""
    with TemporaryDirectory(prefix="queuecast-") as directory:
        place = Place(0, len(workers), "n", Path(directory))
        admins = []
        for number, worker in enumerate(workers):
            admin = Admin(worker or FakeView(Readiness(True, ""), []))
            await admin.listen_unix(place.admin(number))
            if worker is None:
                await admin.close()
                with socket.socket(socket.AF_UNIX) as left:
                    place.admin(number).unlink(missing_ok=True)
                    left.bind(str(place.admin(number)))
            else:
                admins.append(admin)
        view = WorkersView(place, lambda: range(len(workers)), [0] * len(workers))
        try:
            yield view
        finally:
            await view.close()
            for admin in admins:
                await admin.close()


READY = Readiness(True, "connected")


async def test_the_worst_of_all_come_first() -> None:
    async with seen(FakeView(READY, [50, 3, 2]), FakeView(READY, [40, 30, 1]), None) as view:
        rows = await view.connections(4)
        assert [(row["worker"], row["lag"]) for row in rows] == [(0, 50), (1, 40), (1, 30), (0, 3)]
        found = {family.name: family for family in await view.metrics()}
        feeds = {
            dict(each.labels)["worker"]: each.value for each in found["queuecast_feeds"].samples
        }
        assert feeds == {"0": 3, "1": 3}
        up = found["queuecast_worker_up"].samples
        assert [(dict(each.labels)["worker"], each.value) for each in up] == [
            ("0", 1),
            ("1", 1),
            ("2", 0),
        ]


async def test_readiness_is_that_of_all() -> None:
    away = FakeView(Readiness(False, "connecting: refused"), [])
    ready = FakeView(READY, [])
    async with seen(ready, ready) as view:
        assert await view.readiness() == READY
    async with seen(ready, away, None) as view:
        assert await view.readiness() == Readiness(True, "worker 1: connecting: refused")
        assert await view.alive()
    async with seen(away, away) as view:
        assert not (await view.readiness()).ready
    async with seen(None, None) as view:
        assert await view.readiness() == Readiness(False, "no worker answers")
        assert not await view.alive()
    drained = FakeView(Readiness(False, "drained"), [])
    async with seen(drained, FakeView(Readiness(False, "draining"), [])) as view:
        assert await view.readiness() == Readiness(False, "draining")
    async with seen(drained, ready) as view:
        assert await view.readiness() == Readiness(False, "draining")
    async with seen(drained, drained) as view:
        assert await view.readiness() == Readiness(False, "drained")
