"""Two workers on one port, before a real RabbitMQ: to a client they are one gateway."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pika
import psutil
import pytest

from queuecast.brokers.rabbitmq.streams import stream_name
from queuecast.cli import _parser
from queuecast.commands.drain import drain
from queuecast.config import from_tables
from queuecast.destination import Destination
from queuecast.retention import RetainRule
from queuecast.workers.supervisor import Supervisor
from tests.conftest import RABBITS, Node, Rabbits
from tests.e2e.clients import PATIENCE, EventStream, get, request, sse, until
from tests.e2e.test_sockjs import client
from tests.e2e.workers_house import WorkersHouse, workers
from tests.support.servers import RabbitMQ, unique

pytestmark = [pytest.mark.rabbitmq]

LOGIN = "CONNECT\naccept-version:1.2\n\n\0"


@pytest.fixture(scope="module")
def newest(rabbits: Rabbits) -> RabbitMQ:
    """One RabbitMQ: what these tests ask of it is the same in all versions."""
    return rabbits.shared(RABBITS[-1])


@pytest.fixture(scope="module")
def house(newest: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkersHouse]:
    """Two workers that several tests share; no test may harm them."""
    with workers(tmp_path_factory.mktemp("workers"), newest.url) as made:
        yield made


def publish(rabbit: RabbitMQ, key: str, *bodies: str) -> None:
    """Publish as a back end does."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as made:
        channel = made.channel()
        channel.confirm_delivery()
        for body in bodies:
            channel.basic_publish("amq.topic", key, body.encode())


async def test_clients_of_all_workers_get_everything_and_metrics_tell_who(
    newest: RabbitMQ, house: WorkersHouse
) -> None:
    key = unique("all")
    before = await house.by_worker("queuecast_deliveries_total")
    async with contextlib.AsyncExitStack() as stack:
        url = f"{house.url}/sse/topic/{key}"
        streams = [await stack.enter_async_context(sse(url)) for _ in range(24)]
        for stream in streams:
            assert (await stream.any()).type == "position"
        bodies = [f"message {number}" for number in range(50)]
        await asyncio.to_thread(publish, newest, key, *bodies)
        for stream in streams:
            assert await stream.data(50) == bodies
        clients = await house.by_worker("queuecast_connections", transport="sse")
        assert sum(clients.values()) == 24
        assert min(clients.values()) > 0, "the system gives each its share"
        after = await house.by_worker("queuecast_deliveries_total")
        for number, count in clients.items():
            assert after[number] - before[number] == 50 * count
        rows = (await get(f"{house.admin}/admin/connections?limit=100")).json["connections"]
        mine = [row for row in rows if row["destination"] == f"/topic/{key}"]
        assert len(mine) == 24
        for number, count in clients.items():
            assert sum(row["worker"] == int(number) for row in mine) == count
        assert len({row["address"] for row in mine}) == 24
    assert (await house.by_worker("queuecast_worker_up")) == {"0": 1, "1": 1}
    for url in (house.url, house.admin):
        assert (await get(f"{url}/healthz")).status == 200
        assert (await get(f"{url}/readyz")).json == {"ready": True, "status": "connected"}


async def test_a_sockjs_session_whose_requests_come_to_any_worker(
    newest: RabbitMQ, house: WorkersHouse
) -> None:
    key = unique("sockjs")
    before = await handed(house)
    where = f"{house.url}/stomp/000/{unique('s')}"

    async def poll() -> str:
        answer = await request("POST", f"{where}/xhr")
        assert answer.status == 200, answer.text
        return answer.text

    async def send(*frames: str) -> None:
        # Each request is a connection of its own, and goes wherever the system likes.
        assert (await request("POST", f"{where}/xhr_send", json=list(frames))).status == 204

    assert await poll() == "o\n"
    await send(LOGIN)
    assert "CONNECTED" in await poll()
    await send(f"SUBSCRIBE\nid:0\ndestination:/topic/{key}\nreceipt:r\n\n\0")
    assert "RECEIPT" in await poll()
    for number in range(12):
        await send(f"SEND\ndestination:/topic/{key}\n\nmessage {number}\0")
        assert f"message {number}" in await poll()
    # Some came to the other worker, but not all of them.
    assert 0 < await handed(house) - before < 28
    [sessions] = [each for each in (await sockjs_sessions(house)).values() if each]
    assert sessions == 1


async def handed(house: WorkersHouse) -> float:
    """Return how many requests one worker has handed to the other."""
    assert (
        sum((await house.by_worker("queuecast_handed_over_total", outcome="failed")).values()) == 0
    )
    return sum((await house.by_worker("queuecast_handed_over_total", outcome="answered")).values())


async def sockjs_sessions(house: WorkersHouse) -> dict[str, float]:
    return await house.by_worker("queuecast_connections", transport="sockjs-poll")


@pytest.mark.node
@pytest.mark.parametrize("transport", ["xhr-polling", "xhr-streaming"])
async def test_sockjs_client_knows_no_workers(
    newest: RabbitMQ, house: WorkersHouse, node: Node, transport: str
) -> None:
    def run() -> None:
        for _ in range(3):
            key = unique("zjj")
            with client(node, "stompjs7", f"{house.url}/stomp", transport, f"/topic/{key}") as page:
                assert page.next("connected")["transport"] == transport
                page.next("receipt")
                for number in range(5):
                    page.say(f"message {number}")
                    assert page.next("message")["body"] == f"message {number}"

    await asyncio.to_thread(run)


async def test_acks_come_to_any_worker(newest: RabbitMQ, house: WorkersHouse) -> None:
    jobs = unique("jobs")
    before = await handed(house)
    posts = [
        request("POST", f"{house.url}/publish/queue/{jobs}", data=f"job {number}")
        for number in range(20)
    ]
    assert {answer.status for answer in await asyncio.gather(*posts)} == {200}
    acked: list[str] = []
    url = f"{house.url}/sse/queue/{jobs}?ack=client&envelope=json&prefetch=5"
    async with sse(url) as stream:
        while len(acked) < 20:
            message = (await stream.next()).json
            answer = await request("POST", f"{house.url}/ack", json={"ack": message["ack"]})
            assert (answer.status, answer.json) == (200, {"settled": 1})
            acked.append(message["body"])
    assert len(set(acked)) == 20
    assert 0 < await handed(house) - before < 20
    # Settled at the broker: nothing comes back now that the consumer has gone.
    await until(lambda: newest.queue(jobs).consumers == 0, "the end of the consumer")  # type: ignore[union-attr]
    queue = newest.queue(jobs)
    assert queue is not None
    assert queue.messages == 0
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(newest.url))) as made:
        made.channel().queue_delete(jobs)


async def test_a_poll_with_acks_comes_to_any_worker(house: WorkersHouse) -> None:
    jobs = unique("jobs")
    url = f"{house.url}/poll/queue/{jobs}?ack=client&wait=1"
    session, seen = "", []
    for number in range(8):
        answer = await request("POST", f"{house.url}/publish/queue/{jobs}", data=f"job {number}")
        assert answer.status == 200
        said: dict[str, Any] = {"messages": []}
        while not said["messages"]:
            found = await get(url + (f"&session={session}" if session else ""))
            assert found.status == 200, found.text
            said = found.json
            session = said["session"]
        [message] = said["messages"]
        seen.append(message["body"])
        assert (
            await request("POST", f"{house.url}/ack", json={"ack": message["ack"]})
        ).status == 200
    assert seen == [f"job {number}" for number in range(8)]


async def test_stomp_over_tcp_reaches_all_workers(newest: RabbitMQ, house: WorkersHouse) -> None:
    key = unique("tcp")
    writers = []
    readers = []
    for _ in range(16):
        reader, writer = await asyncio.open_connection("127.0.0.1", house.stomp)
        writer.write(
            LOGIN.encode() + f"SUBSCRIBE\nid:0\ndestination:/topic/{key}\nreceipt:r\n\n\0".encode()
        )
        await asyncio.wait_for(reader.readuntil(b"receipt-id:r\n"), PATIENCE)
        readers.append(reader)
        writers.append(writer)
    clients = await house.by_worker("queuecast_connections", transport="stomp-tcp")
    assert sum(clients.values()) == 16
    assert min(clients.values()) > 0
    await asyncio.to_thread(publish, newest, key, "to everybody")
    for reader in readers:
        await asyncio.wait_for(reader.readuntil(b"to everybody\0"), PATIENCE)
    for writer in writers:
        writer.close()


class Follower:
    """An EventSource: comes back with its last id for as long as it takes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[str] = []
        self.others: list[str] = []
        self.cuts = 0
        self.opened = asyncio.Event()

    async def follow(self, last: str) -> None:
        position = ""
        while not self.seen or self.seen[-1] != last:
            headers = {"Last-Event-ID": position} if position else {}
            try:
                async with sse(self.url, headers) as stream:
                    stream.last_event_id = position
                    await self._read(stream, last)
            except (aiohttp.ClientError, StopAsyncIteration):
                self.cuts += 1
                await asyncio.sleep(0.05)
            finally:
                position = stream.last_event_id

    async def _read(self, stream: EventStream, last: str) -> None:
        while not self.seen or self.seen[-1] != last:
            event = await stream.any()
            self.opened.set()
            if event.type == "message":
                self.seen.append(event.data)
            elif event.type != "position":
                self.others.append(f"{event.type}: {event.data}")


async def test_a_killed_worker_loses_nothing_and_comes_again(
    rabbit: RabbitMQ, tmp_path: Path
) -> None:
    key = unique("kept")
    bodies = [f"{number}" for number in range(400)]
    toml = f'[[retain]]\ndestination = "/topic/{key}.#"\nage = "1h"\nbytes = "8MB"\n'
    half = asyncio.Event()

    def publish_slowly(loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as made:
            channel = made.channel()
            channel.confirm_delivery()
            for number, body in enumerate(bodies):
                channel.basic_publish("amq.topic", f"{key}.a", body.encode())
                if number == len(bodies) // 3:
                    loop.call_soon_threadsafe(half.set)
                made.sleep(0.002)

    with workers(tmp_path, rabbit.url, toml=toml) as house:
        followers = [Follower(f"{house.url}/sse/topic/{key}.a") for _ in range(20)]
        tasks = [asyncio.create_task(each.follow(bodies[-1])) for each in followers]
        await asyncio.wait_for(asyncio.gather(*(each.opened.wait() for each in followers)), 30)
        victims = await house.by_worker("queuecast_connections", transport="sse")
        assert min(victims.values()) > 0
        publishing = asyncio.create_task(
            asyncio.to_thread(publish_slowly, asyncio.get_running_loop())
        )
        await asyncio.wait_for(half.wait(), 30)
        victim = house.workers[0]
        victim.send_signal(signal.SIGKILL)
        await asyncio.wait_for(asyncio.gather(publishing, *tasks), 90)
        for follower in followers:
            assert follower.seen == bodies
            assert follower.others == []
        assert sum(each.cuts > 0 for each in followers) in {int(each) for each in victims.values()}
        await house.eventually("queuecast_worker_up", {"0": 1, "1": 1})
        restarts = await house.by_worker("queuecast_worker_restarts_total")
        assert sorted(restarts.values()) == [0, 1]
        assert f"(process {victim.pid}) was killed by SIGKILL; it is started again" in house.log
        assert victim.pid not in {each.pid for each in house.workers}
        # The new one serves as well.
        streams: list[EventStream] = []
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(24):
                url = f"{house.url}/sse/topic/{key}.a?last=1"
                streams.append(await stack.enter_async_context(sse(url)))
            for stream in streams:
                assert await stream.data(1) == [bodies[-1]]
            clients = await house.by_worker("queuecast_connections", transport="sse")
            assert min(clients.values()) > 0
        assert house.stop() == 0
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as made:
        rule = RetainRule(Destination.parse(f"/topic/{key}.#"), 3600)
        made.channel().queue_delete(stream_name(rule))


async def test_a_worker_that_hangs_is_started_again(newest: RabbitMQ) -> None:
    tables = {"server": {"port": 0, "workers": 2}, "broker": {"url": newest.url}}
    parent = Supervisor(from_tables(tables), "error", ask=0.2)
    report = await parent.start()
    try:
        before = parent.processes
        hanging = psutil.Process(before[1])
        hanging.suspend()
        await until(lambda: parent.processes.get(1, before[1]) != before[1], "another worker")
        assert not hanging.is_running()
        assert parent.processes[0] == before[0]
        for _ in range(8):
            assert (await get(f"{report.url}/healthz")).status == 200
    finally:
        assert await parent.stop()


async def test_drain_and_stop_are_passed_on(newest: RabbitMQ, tmp_path: Path) -> None:
    with workers(tmp_path, newest.url, "--pid-file", "pid") as house:
        processes = house.workers
        async with contextlib.AsyncExitStack() as stack:
            url = f"{house.url}/sse/topic/{unique('drain')}"
            streams = [await stack.enter_async_context(sse(url)) for _ in range(12)]
            for stream in streams:
                await stream.any()
            arguments = _parser().parse_args(["drain", "--pid-file", str(tmp_path / "pid")])
            assert await asyncio.to_thread(drain, arguments) == 0
            for stream in streams:
                assert (await stream.next("disconnect")).json["code"] == "shutdown"
        for _ in range(8):
            # Whichever worker answers, it answers for all.
            answer = await get(f"{house.url}/readyz")
            assert (answer.status, answer.json["status"]) == (503, "drained")
        # One that dies now must not take clients when it comes again.
        processes[1].send_signal(signal.SIGKILL)
        await house.eventually("queuecast_worker_up", {"0": 1, "1": 1})
        ready = await asyncio.to_thread(_until_drained, house)
        assert ready
        processes = house.workers
        assert house.stop() == 0
        assert not any(each.is_running() for each in processes)
    assert not (tmp_path / "pid").exists()


def _until_drained(house: WorkersHouse) -> bool:
    arguments = _parser().parse_args(["drain", "--pid", str(house.process.pid), "--url", house.url])
    return drain(arguments) == 0


async def test_workers_end_with_their_parent(newest: RabbitMQ, tmp_path: Path) -> None:
    with workers(tmp_path, newest.url) as house:
        processes = house.workers
        house.process.kill()
        gone, alive = await asyncio.to_thread(psutil.wait_procs, processes, 30)
        assert (len(gone), alive) == (2, [])
        assert "the parent process has ended" in house.log


async def test_a_second_signal_ends_them_at_once(newest: RabbitMQ, tmp_path: Path) -> None:
    with workers(tmp_path, newest.url, "--drain", "60s") as house:
        async with contextlib.AsyncExitStack() as stack:
            url = f"{house.url}/sse/topic/{unique('stop')}"
            for _ in range(6):
                stream = await stack.enter_async_context(sse(url))
                await stream.any()
            processes = house.workers
            house.process.send_signal(signal.SIGINT)
            await until(lambda: "stopping" in house.log, "the first signal")
            house.process.send_signal(signal.SIGINT)
            assert await asyncio.to_thread(house.process.wait, 30) == 128 + signal.SIGINT
            gone, alive = await asyncio.to_thread(psutil.wait_procs, processes, 30)
            assert (len(gone), alive) == (2, [])


async def test_workers_accept_from_one_socket_where_ports_cannot_be_shared(
    newest: RabbitMQ,
) -> None:
    server = {"port": 0, "workers": 2, "stomp_tcp": "127.0.0.1:0", "drain": "0s"}
    config = from_tables({"server": server, "broker": {"url": newest.url}})
    supervisor = Supervisor(config, "warning", shared=True)
    try:
        url = (await supervisor.start()).url
        first, second = supervisor.processes.values()
        for victim in (first, None):
            key = unique("shared")
            async with contextlib.AsyncExitStack() as stack:
                target = f"{url}/sse/topic/{key}"
                streams = [await stack.enter_async_context(sse(target)) for _ in range(8)]
                for stream in streams:
                    await stream.any()
                await asyncio.to_thread(publish, newest, key, "to all")
                for stream in streams:
                    assert await stream.data(1) == ["to all"]
            if victim is not None:
                # The socket is the parent's: the other goes on accepting from it.
                psutil.Process(victim).kill()
        assert second in supervisor.processes.values()
    finally:
        assert await supervisor.stop()


def test_what_is_wrong_is_said_once(newest: RabbitMQ, tmp_path: Path) -> None:
    wrong = newest.url.replace("guest:guest@", "guest:wrong@")
    with pytest.raises(AssertionError) as caught, workers(tmp_path, wrong):
        pass
    lines = str(caught.value).splitlines()
    assert [line for line in lines if line.startswith("queuecast: ")] == lines[-1:]
    assert "Traceback" not in str(caught.value)
