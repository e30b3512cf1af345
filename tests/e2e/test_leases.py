"""Work queues with client acks over SSE and long poll: on every broker, counted by the broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import pika
import pytest

from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.testing import RunningGateway
from tests.conftest import RABBITS, Rabbits
from tests.e2e.clients import Answer, EventStream, get, publish, request, sse
from tests.support.proxy import TcpProxy
from tests.support.servers import RabbitMQ, unique
from tests.support.streams import running, settled

if TYPE_CHECKING:
    from playwright.async_api import Page

ACKS = "ack=client&envelope=json"


class Counts(NamedTuple):
    """A queue as the broker counts it."""

    ready: int
    unacked: int


@dataclass
class Place:
    """A broker with a gateway before it. counts: of a queue, from the broker; may block."""

    gw: RunningGateway
    counts: Callable[[str], Counts]

    @property
    def port(self) -> int:
        return urlsplit(self.gw.url).port or 0

    async def settled(self, queue: str, ready: int, unacked: int) -> None:
        await settled(lambda: self.counts(queue), Counts(ready, unacked))

    async def fill(self, queue: str, count: int) -> None:
        for number in range(count):
            await publish(self.gw, f"/amq/queue/{queue}", str(number))

    async def ack(self, **said: Any) -> Answer:
        return await request("POST", f"{self.gw.url}/ack", json=said)


class Broker(NamedTuple):
    """A broker without a gateway. open: makes the gateway's configuration and the counts."""

    url: str
    rabbit: RabbitMQ | None


BROKERS: list[Any] = [
    "embedded",
    *(pytest.param(name, marks=pytest.mark.rabbitmq) for name in RABBITS),
]


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Broker:
    if request.param == "embedded":
        return Broker("embedded:", None)
    rabbits: Rabbits = request.getfixturevalue("rabbits")
    rabbit = rabbits.shared(request.param)
    return Broker(rabbit.url, rabbit)


@contextlib.asynccontextmanager
async def at(broker: Broker, *queues: dict[str, Any], **tables: Any) -> AsyncIterator[Place]:
    """Run a gateway whose configuration declares the queues; they are deleted at the end."""
    async with running(broker={"url": broker.url}, queue=list(queues), **tables) as gw:

        def counts(queue: str) -> Counts:
            if broker.rabbit is None:
                embedded = gw.gateway.broker
                assert isinstance(embedded, EmbeddedBroker)
                found = embedded.counts().queues[queue]
                return Counts(found.ready, found.unacked)
            columns = ("name", "messages_ready", "messages_unacknowledged")
            rows = broker.rabbit.rows("list_queues", *columns)
            (row,) = [row for row in rows if row["name"] == queue]
            return Counts(row["messages_ready"], row["messages_unacknowledged"])

        try:
            yield Place(gw, counts)
        finally:
            if broker.rabbit is not None:
                await asyncio.to_thread(delete, broker.rabbit, *(each["name"] for each in queues))


def delete(rabbit: RabbitMQ, *queues: str) -> None:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(rabbit.url))) as made:
        for queue in queues:
            made.channel().queue_delete(queue)


async def messages(stream: EventStream, count: int) -> list[dict[str, Any]]:
    return [json.loads(data) for data in await stream.data(count)]


@contextlib.asynccontextmanager
async def victim(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A client of its own process, that reads and never acks."""
    script = "import sys, urllib.request as u\nfor line in u.urlopen(sys.argv[1]): pass"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, url)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_acks_by_post_while_prefetch_holds(broker: Broker) -> None:
    queue = unique("jobs")
    async with at(broker, {"name": queue}) as place:
        await place.fill(queue, 10)
        url = f"{place.gw.url}/sse/amq/queue/{queue}?{ACKS}&prefetch=3"
        async with sse(url) as stream:
            one, two, three = await messages(stream, 3)
            assert [each["body"] for each in (one, two, three)] == ["0", "1", "2"]
            await place.settled(queue, 7, 3)
            answer = await place.ack(ack=one["ack"])
            assert (answer.status, answer.json) == (200, {"settled": 1})
            assert [each["body"] for each in await messages(stream, 1)] == ["3"]
            # The same again, what is none, and what is another node's: the one that was right
            # is settled all the same.
            foreign = ".".join(("elsewhere", *two["ack"].split(".")[1:]))
            answer = await place.ack(ack=[one["ack"], two["ack"], foreign, "what"])
            assert (answer.status, answer.json["code"], answer.json["settled"]) == (
                409,
                "settled",
                1,
            )
            assert [each["code"] for each in answer.json["failed"]] == [
                "settled",
                "elsewhere",
                "bad_request",
            ]
            assert "'elsewhere'" in answer.json["failed"][1]["text"]
            await messages(stream, 1)
            assert (await place.ack(nack=three["ack"], requeue=False)).status == 200
            await messages(stream, 1)
            await place.settled(queue, 4, 3)
        await place.settled(queue, 7, 0)
        late = await place.ack(ack=three["ack"])
        assert (late.status, late.json["code"]) == (404, "not_found")


async def test_a_client_that_is_killed_gives_everything_back(broker: Broker) -> None:
    queue = unique("jobs")
    async with at(broker, {"name": queue}) as place:
        await place.fill(queue, 10)
        async with victim(f"{place.gw.url}/sse/amq/queue/{queue}?{ACKS}&prefetch=4") as process:
            await place.settled(queue, 6, 4)
            process.kill()
            await place.settled(queue, 10, 0)


async def test_a_cut_gives_everything_back(broker: Broker) -> None:
    """Even with poll_idle at an hour: a poll that is broken off ends its session."""
    queue = unique("jobs")
    async with (
        at(broker, {"name": queue}, limits={"poll_idle": "1h"}) as place,
        TcpProxy("127.0.0.1", place.port) as proxy,
    ):
        await place.fill(queue, 10)
        through = f"http://127.0.0.1:{proxy.port}"
        async with sse(f"{through}/sse/amq/queue/{queue}?{ACKS}&prefetch=4") as stream:
            await messages(stream, 4)
            await place.settled(queue, 6, 4)
            proxy.cut()
            await place.settled(queue, 10, 0)
        url = f"{through}/poll/amq/queue/{queue}?ack=client&prefetch=4"
        first = (await get(url)).json
        await place.settled(queue, 6, 4)
        ids = [each["ack"] for each in first["messages"]]
        # By hand: aiohttp's client would say it again, by itself, on another connection.
        _, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        target = url.removeprefix(through)
        head = f"GET {target}&session={first['session']} HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(head.encode())
        # It waits for what the prefetch does not let through.
        assert len(ids) == 4
        polls = place.gw.gateway.services.polls
        await settled(lambda: [each.paused for each in polls], [False])
        proxy.cut()
        await place.settled(queue, 10, 0)
        writer.close()
        assert (await place.ack(ack=ids[0])).status == 404


async def test_polls_with_acks(broker: Broker) -> None:
    queue = unique("jobs")
    async with at(broker, {"name": queue}, limits={"poll_idle": "2s"}) as place:
        await place.fill(queue, 20)
        url = f"{place.gw.url}/poll/amq/queue/{queue}?ack=client&prefetch=2"
        got: list[str] = []
        session = ""
        while len(got) < 6:
            answer = (await get(f"{url}&session={session}" if session else url)).json
            session = answer["session"]
            got += [each["body"] for each in answer["messages"]]
            ids = [each["ack"] for each in answer["messages"]]
            assert len(ids) <= 2
            assert (await place.ack(ack=ids)).json == {"settled": len(ids)}
        await get(f"{url}&session={session}")
        assert got == [str(number) for number in range(len(got))]
        # Who does not come back: after two seconds what was not acked goes back.
        await place.settled(queue, 20 - len(got), 0)


async def test_a_lease_and_its_late_ack(broker: Broker) -> None:
    queue = unique("jobs")
    async with at(broker, {"name": queue}) as place:
        await place.fill(queue, 6)
        url = f"{place.gw.url}/sse/amq/queue/{queue}?{ACKS}&prefetch=2"
        async with sse(f"{url}&lease=500ms") as sleeper:
            taken = await messages(sleeper, 2)
            # Both leases end; it sleeps, and takes none of the others in turn.
            await place.settled(queue, 6, 0)
            async with sse(f"{url}&prefetch=10".replace("prefetch=2&", "")) as other:
                back = await messages(other, 6)
                assert sorted(each["body"] for each in back) == list("012345")
                assert {each["body"] for each in back if each.get("redelivered")} >= {"0", "1"}
                late = await place.ack(ack=taken[0]["ack"])
                assert (late.status, late.json["code"]) == (409, "returned")
                await place.ack(ack=[each["ack"] for each in back])
                await place.settled(queue, 0, 0)
            # The late ack was a sign of life: it is served again.
            await place.fill(queue, 1)
            (again,) = await messages(sleeper, 1)
            assert (await place.ack(ack=again["ack"])).status == 200
            await place.settled(queue, 0, 0)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_a_poison_message_goes_to_the_dead_letter_exchange(broker: Broker, kind: str) -> None:
    queue, dead = unique("jobs"), unique("dead")
    arguments = {
        "x-queue-type": kind,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead,
    }
    poisoned = {"name": queue, "arguments": arguments, "max_redeliveries": 2}
    async with at(broker, poisoned, {"name": dead}) as place:
        await place.fill(queue, 2)
        url = f"{place.gw.url}/sse/amq/queue/{queue}?{ACKS}&prefetch=1"
        async with sse(url) as stream:
            seen: list[str] = []
            while seen.count("1") < 1:
                (got,) = await messages(stream, 1)
                seen.append(got["body"])
                said = {"nack": got["ack"]} if got["body"] == "0" else {"ack": got["ack"]}
                assert (await place.ack(**said)).status == 200
            # Once, and twice again; in between the other may have had its turn.
            while seen.count("0") < 3:
                (got,) = await messages(stream, 1)
                seen.append(got["body"])
                assert (await place.ack(nack=got["ack"])).status == 200
            await place.settled(queue, 0, 0)
            await place.settled(dead, 1, 0)
            assert sorted(seen) == ["0", "0", "0", "1"]
        async with sse(f"{place.gw.url}/sse/amq/queue/{dead}?{ACKS}") as letters:
            (letter,) = await messages(letters, 1)
            assert letter["body"] == "0"
            assert letter["headers"]["x-first-death-queue"] == queue
            assert letter["headers"]["x-first-death-reason"] == "rejected"


async def test_refusals(gw: RunningGateway, name: Callable[[], str]) -> None:
    url = f"{gw.url}/ack"
    for body in ("", "[]", "{}", '{"ack": 1}', '{"ack": []}', '{"nack": "x", "requeue": 1}', "["):
        answer = await request("POST", url, data=body)
        assert (answer.status, answer.json["code"]) == (400, "bad_request"), body
    many = json.dumps({"ack": ["x"] * 1001})
    assert (await request("POST", url, data=many)).status == 400
    assert (await request("POST", url, data="x" * 200_000)).status == 413
    assert (await get(url)).status == 405
    foreign = {"Origin": "https://elsewhere.example"}
    assert (await request("POST", url, data="{}", headers=foreign)).status == 403
    near = {"Origin": "http://localhost:3000"}
    preflight = await request("OPTIONS", url, headers=near)
    assert preflight.status == 204
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    queue = name()
    for query in ("ack=client", f"{ACKS}&lease=1d", f"{ACKS}&lease=0.01s", "lease=3s"):
        assert (await get(f"{gw.url}/sse/queue/{queue}?{query}")).status == 400, query
    mixed = f"{gw.url}/sse?destination=/queue/{queue}&destination=/topic/{queue}&{ACKS}"
    assert (await get(mixed)).status == 400
    assert (await get(f"{gw.url}/ws/queue/{queue}?lease=1s")).status in (400, 426)


PAGE = """
window.got = []; window.answers = [];
const source = new EventSource(`/sse/queue/${QUEUE}?ack=client&envelope=json&prefetch=1`);
source.onmessage = async ({ data }) => {
  const { ack, body } = JSON.parse(data);
  window.got.push(body);
  const answer = await fetch("/ack", { method: "POST", body: JSON.stringify({ ack }),
    headers: { "Content-Type": "application/json" } });
  window.answers.push(answer.status);
};
"""


@pytest.mark.browser
async def test_a_page_acks_over_sse(
    page: Page, gw: RunningGateway, name: Callable[[], str]
) -> None:
    queue = name()
    for number in range(20):
        await publish(gw, f"/queue/{queue}", str(number))
    await page.goto(f"{gw.url}/")
    await page.add_script_tag(content=PAGE.replace("${QUEUE}", queue))
    await page.wait_for_function("window.answers.length === 20")
    assert await page.evaluate("window.got") == [str(number) for number in range(20)]
    assert set(await page.evaluate("window.answers")) == {200}
    broker = gw.gateway.broker
    assert isinstance(broker, EmbeddedBroker)
    found = broker.counts().queues[queue]
    assert (found.ready, found.unacked) == (0, 0)
