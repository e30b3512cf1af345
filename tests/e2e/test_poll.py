"""Long poll from outside: batches, and nothing lost or twice from one poll to the next."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from queuecast.testing import RunningGateway
from tests.e2e.clients import gateway, get, publish, request, until

Name = Callable[[], str]


async def test_a_chain_of_polls_gets_everything_once(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    total = 400

    async def produce() -> None:
        for n in range(total):
            answer = await request("POST", f"{gw.url}/publish{topic}", data=str(n))
            assert answer.status == 200

    await publish(gw, topic, "start")
    first = (await get(f"{gw.url}/poll{topic}?last=1")).json
    assert [each["body"] for each in first["messages"]] == ["start"]
    producer = asyncio.create_task(produce())
    got: list[str] = []
    since, polls = first["next"], 0
    while len(got) < total:
        answer = (await get(f"{gw.url}/poll{topic}?since={since}")).json
        got += [each["body"] for each in answer["messages"]]
        since = answer["next"]
        polls += 1
    await producer
    assert got == [str(n) for n in range(total)]
    assert polls > 3


async def test_a_poll_waits_for_the_next_message(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    polling = asyncio.create_task(get(f"{gw.url}/poll{topic}"))
    await until(
        lambda: any(str(feed.name) == topic and feed.subscribers for feed in gw.gateway.hub.feeds),
        "the poll's subscription",
    )
    await publish(gw, topic, "你好")
    answer = await polling
    assert answer.headers["Cache-Control"] == "no-store"
    (message,) = answer.json["messages"]
    assert message["body"] == "你好"
    assert message["destination"] == message["subscription"] == topic
    assert answer.json["next"] == message["position"]


async def test_a_poll_that_does_not_wait_gets_what_is_there(gw: RunningGateway, name: Name) -> None:
    topic, queue = f"/topic/{name()}", f"/queue/{name()}"
    assert (await get(f"{gw.url}/poll{topic}?wait=0")).json["messages"] == []
    await publish(gw, topic, "1")
    await publish(gw, topic, "2")
    answer = (await get(f"{gw.url}/poll{topic}?last=2&wait=0")).json
    assert [each["body"] for each in answer["messages"]] == ["1", "2"]
    assert (await get(f"{gw.url}/poll{topic}?since={answer['next']}&wait=0")).json["messages"] == []
    await publish(gw, queue, "3")
    answer = (await get(f"{gw.url}/poll{queue}?wait=0")).json
    assert [each["body"] for each in answer["messages"]] == ["3"]


async def test_several_destinations(gw: RunningGateway, name: Name) -> None:
    one, two = f"/topic/{name()}", f"/topic/{name()}"
    url = f"{gw.url}/poll?destination={one}&destination={two}"
    for n in range(6):
        await publish(gw, (one, two)[n % 2], str(n))
    answer = (await get(f"{url}&since=first")).json
    got = [each["body"] for each in answer["messages"]]
    await publish(gw, one, "6")
    while len(got) < 7:
        answer = (await get(f"{url}&since={answer['next']}")).json
        got += [each["body"] for each in answer["messages"]]
    # Exactly once, in order within each destination; between them history knows no order.
    assert [each for each in got if int(each) % 2] == ["1", "3", "5"]
    assert [each for each in got if int(each) % 2 == 0] == ["0", "2", "4", "6"]


async def test_a_queue_is_emptied_without_loss(gw: RunningGateway, name: Name) -> None:
    queue = f"/queue/{name()}"
    body = "x" * 5000
    for n in range(100):
        await publish(gw, queue, f"{n}:{body}")
    got: list[int] = []
    while len(got) < 100:
        answer = (await get(f"{gw.url}/poll{queue}")).json
        assert answer["next"] is None
        # More than a write's worth went back to the queue, in its place.
        assert len(answer["messages"]) < 20
        got += [int(each["body"].partition(":")[0]) for each in answer["messages"]]
    assert got == list(range(100))


async def test_a_client_that_leaves_takes_nothing_along(gw: RunningGateway, name: Name) -> None:
    queue = name()
    polling = asyncio.create_task(get(f"{gw.url}/poll/queue/{queue}"))
    counts = gw.gateway.broker.counts  # type: ignore[attr-defined]

    def consumers() -> int:
        found = counts().queues.get(queue)
        return found.consumers if found else 0

    await until(lambda: consumers() == 1, "the poll's consumer")
    polling.cancel()
    await until(lambda: consumers() == 0, "its end")
    await publish(gw, f"/queue/{queue}", "for the next")
    answer = (await get(f"{gw.url}/poll/queue/{queue}")).json
    assert [each["body"] for each in answer["messages"]] == ["for the next"]


async def test_a_gap_is_told_first(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    await publish(gw, topic, "there")
    answer = (await get(f"{gw.url}/poll{topic}?since=ffff00001111-7")).json
    gap = answer["messages"][0]
    assert gap["gap"]["reason"] == "epoch"
    assert gap["position"] == gap["gap"]["first"]
    await publish(gw, topic, "next")
    bodies = [each.get("body") for each in answer["messages"][1:]]
    while "next" not in bodies:
        answer = (await get(f"{gw.url}/poll{topic}?since={answer['next']}")).json
        bodies += [each["body"] for each in answer["messages"]]
    assert bodies == ["there", "next"]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/poll/nowhere/x", 400, "bad_destination"),
        ("/poll/topic/x?since=what", 400, "bad_position"),
        ("/poll/topic/x?ack=client", 400, "bad_request"),
        ("/poll/queue/x?ack=client&session=what", 400, "bad_request"),
        ("/poll/queue/x?session=what", 400, "bad_request"),
        ("/poll/queue/x?lease=1s", 400, "bad_request"),
        ("/poll/queue/x?ack=client&lease=1h", 400, "bad_request"),
        ("/poll/queue/x?ack=client&lease=soon", 400, "bad_request"),
        ("/poll/exchange/missing/x", 404, "not_found"),
        ("/poll", 400, "bad_request"),
    ],
)
async def test_refusals(gw: RunningGateway, path: str, status: int, code: str) -> None:
    answer = await get(f"{gw.url}{path}")
    assert (answer.status, answer.json["code"]) == (status, code), answer.text


async def test_a_poll_under_way_is_answered_at_shutdown(name: Name) -> None:
    topic = f"/topic/{name()}"
    async with gateway(server={"grace": "3s"}) as gw:
        polling = asyncio.create_task(get(f"{gw.url}/poll{topic}"))
        await until(
            lambda: any(feed.subscribers for feed in gw.gateway.hub.feeds), "the subscription"
        )
    answer = await polling
    assert answer.status in (200, 503)
    assert answer.json


async def test_since_a_time_before_anyone_listened(gw: RunningGateway, name: Name) -> None:
    """No gap where the broker still has all that came since then; one where it does not."""
    topic = f"/topic/{name()}"
    then = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    quiet = await get(f"{gw.url}/poll/topic/{name()}?since={then}&wait=0")
    assert quiet.json["messages"] == []
    for n in range(90):
        await publish(gw, topic, str(n))
    answer = (await get(f"{gw.url}/poll{topic}?since={then}")).json
    assert [each.get("body") for each in answer["messages"]] == [str(n) for n in range(90)]
    answer = (await get(f"{gw.url}/poll{topic}?since=1")).json
    assert answer["messages"][0]["gap"]["reason"] == "unretained"

    other = f"/topic/{name()}"
    for n in range(110):  # more than the broker keeps of what nobody listens to
        await publish(gw, other, str(n))
    answer = (await get(f"{gw.url}/poll{other}?since={then}")).json
    assert answer["messages"][0]["gap"]["reason"] == "unretained"
    rest = (await get(f"{gw.url}/poll{other}?since={answer['next']}")).json
    assert rest["messages"][-1]["body"] == "109"
