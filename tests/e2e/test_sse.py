"""Server-Sent Events from outside: what an EventSource gets, and from where it goes on."""

import asyncio
import base64
import json
from collections.abc import Callable

import pytest

from queuecast.testing import RunningGateway
from tests.e2e.clients import gateway, get, publish, request, sse

Name = Callable[[], str]


async def test_head_position_and_messages(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with sse(f"{gw.url}/sse{topic}") as stream:
        headers = stream.response.headers
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert headers["Vary"] == "Origin"
        first = await stream.any()
        assert (first.type, first.data) == ("position", "")
        assert first.id
        assert stream.retry == 1234
        await publish(gw, topic, "one\r\ntwo\rthree\nfour")
        await publish(gw, topic, " leading space, 你好")
        await publish(gw, topic, "")
        events = [await stream.next() for _ in range(3)]
        assert [event.data for event in events] == [
            "one\ntwo\nthree\nfour",
            " leading space, 你好",
            "",
        ]
        ids = [first.id, *(event.id for event in events)]
        assert len(set(ids)) == 4


@pytest.mark.parametrize("way", ["header", "since", "both"])
async def test_resume_exactly_once(gw: RunningGateway, name: Name, way: str) -> None:
    topic = f"/topic/{name()}"
    async with sse(f"{gw.url}/sse{topic}") as stream:
        for n in range(3):
            await publish(gw, topic, f"m{n}")
        seen = [await stream.next() for _ in range(2)]
    await publish(gw, topic, "m3")
    last = seen[-1].id
    query = f"?since={last}" if way == "since" else "?since=first" if way == "both" else ""
    headers = {} if way == "since" else {"Last-Event-ID": last}
    async with sse(f"{gw.url}/sse{topic}{query}", headers) as stream:
        await publish(gw, topic, "m4")
        assert await stream.data(3) == ["m2", "m3", "m4"]


async def test_resume_from_the_position_before_any_message(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    async with sse(f"{gw.url}/sse{topic}") as stream:
        position = (await stream.any()).id
    await publish(gw, topic, "missed")
    async with sse(f"{gw.url}/sse{topic}", {"Last-Event-ID": position}) as stream:
        assert await stream.data(1) == ["missed"]


async def test_last_replays_and_goes_on_live(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    for n in range(5):
        await publish(gw, topic, f"m{n}")
    async with sse(f"{gw.url}/sse{topic}?last=2") as stream:
        assert await stream.data(2) == ["m3", "m4"]
        await publish(gw, topic, "live")
        assert await stream.data(1) == ["live"]
    async with sse(f"{gw.url}/sse{topic}?since=first") as stream:
        assert await stream.data(6) == ["m0", "m1", "m2", "m3", "m4", "live"]


async def test_a_position_of_another_numbering_begins_with_a_gap(
    gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    await publish(gw, topic, "there")
    async with sse(f"{gw.url}/sse{topic}?since=ffff00001111-7") as stream:
        gap = await stream.next("gap")
        assert gap.json["reason"] == "epoch"
        assert gap.json["last"] == "ffff00001111-7"
        assert gap.id == gap.json["first"]
        await publish(gw, topic, "live")
        while (await stream.next()).data != "live":
            pass


async def test_several_destinations_resume_with_one_id(gw: RunningGateway, name: Name) -> None:
    one, two = f"/topic/{name()}", f"/exchange/events/{name()}"
    url = f"{gw.url}/sse?destination={one}&destination={two}&envelope=json"
    async with sse(url) as stream:
        for n in range(4):
            await publish(gw, (one, two)[n % 2], f"m{n}")
        events = [await stream.next() for _ in range(4)]
        assert [event.json["body"] for event in events] == ["m0", "m1", "m2", "m3"]
        assert [event.json["destination"] for event in events] == [one, two, one, two]
    await publish(gw, two, "m4")
    await publish(gw, one, "m5")
    # What an envelope says of its place is its own destination's, for any transport.
    async with sse(f"{gw.url}/sse{one}?since={events[0].json['position']}") as stream:
        assert await stream.data(2) == ["m2", "m5"]
    async with sse(f"{gw.url}/sse{two}?since={events[1].json['position']}") as stream:
        assert await stream.data(2) == ["m3", "m4"]
    # Wherever it was cut off, everything after it comes, and nothing before it.
    for cut in range(4):
        async with sse(url, {"Last-Event-ID": events[cut].id}) as stream:
            rest = [(await stream.next()).json["body"] for _ in range(5 - cut)]
            assert rest == [f"m{n}" for n in range(cut + 1, 6)]


async def test_history_of_several_destinations_comes_in_the_order_of_publishing(
    gw: RunningGateway, name: Name
) -> None:
    one, two = f"/topic/{name()}", f"/exchange/amq.topic/{name()}"
    for n in range(6):
        await publish(gw, (one, two)[n % 2], f"m{n}")
    # Opened one after the other, before they are joined.
    for topic in (one, two):
        async with sse(f"{gw.url}/sse{topic}") as stream:
            await stream.any()
    async with sse(f"{gw.url}/sse?destination={one}&destination={two}&since=first") as stream:
        assert await stream.data(6) == [f"m{n}" for n in range(6)]


async def test_many_resumes_lose_and_repeat_nothing(gw: RunningGateway, name: Name) -> None:
    topics = [f"/topic/{name()}" for _ in range(3)]
    url = f"{gw.url}/sse?" + "&".join(f"destination={topic}" for topic in topics)
    total = 300

    async def produce() -> None:
        for n in range(total):
            await gw_publish(topics[n % 3], str(n))

    async def gw_publish(topic: str, body: str) -> None:
        answer = await request("POST", f"{gw.url}/publish{topic}", data=body)
        assert answer.status == 200

    got: list[str] = []
    last = ""
    async with sse(url) as stream:
        last = (await stream.any()).id
    producer = asyncio.create_task(produce())
    while len(got) < total:
        async with sse(url, {"Last-Event-ID": last}) as stream:
            for _ in range(min(17, total - len(got))):
                event = await stream.next()
                got.append(event.data)
                last = event.id
    await producer
    assert got == [str(n) for n in range(total)]


async def test_envelope(gw: RunningGateway, name: Name) -> None:
    destination = "/exchange/事件/键.一"
    path = "/exchange/%E4%BA%8B%E4%BB%B6/%E9%94%AE.%E4%B8%80"
    async with sse(f"{gw.url}/sse{path}?envelope=json") as stream:
        answer = await request(
            "POST",
            f"{gw.url}/publish{path}?correlation-id=c7&header.trace=7",
            data="正文".encode(),
            headers={"Content-Type": "text/plain"},
        )
        assert answer.status == 200, answer.text
        event = await stream.next()
    envelope = event.json
    assert envelope["body"] == "正文"
    assert envelope["destination"] == destination
    assert envelope["position"] == event.id
    assert envelope["headers"]["content-type"] == "text/plain"
    assert envelope["headers"]["correlation-id"] == "c7"
    assert envelope["headers"]["trace"] == "7"


async def test_binary_body(gw: RunningGateway, name: Name) -> None:
    topic = f"/topic/{name()}"
    body = bytes(range(256))
    async with (
        sse(f"{gw.url}/sse{topic}") as bare,
        sse(f"{gw.url}/sse{topic}?envelope=json") as enveloped,
    ):
        await publish(gw, topic, body)
        event = await bare.next("binary")
        assert base64.b64decode(event.data) == body
        assert event.id
        envelope = (await enveloped.next()).json
        assert base64.b64decode(envelope["base64"]) == body
        assert "body" not in envelope


async def test_queue_messages_are_acked_when_written(gw: RunningGateway, name: Name) -> None:
    queue = name()
    for n in range(3):
        await publish(gw, f"/queue/{queue}", f"job{n}")
    async with sse(f"{gw.url}/sse/queue/{queue}") as stream:
        assert await stream.data(3) == ["job0", "job1", "job2"]
    async with sse(f"{gw.url}/sse/queue/{queue}?envelope=json") as stream:
        await publish(gw, f"/queue/{queue}", "job3")
        envelope = (await stream.next()).json
        assert envelope["body"] == "job3"
        assert "redelivered" not in envelope


async def test_queue_and_topic_on_one_connection(gw: RunningGateway, name: Name) -> None:
    topic, queue = f"/topic/{name()}", f"/queue/{name()}"
    async with sse(f"{gw.url}/sse?destination={topic}&destination={queue}&envelope=json") as stream:
        await publish(gw, queue, "job")
        first = (await stream.next()).json
        await publish(gw, topic, "news")
        second = (await stream.next()).json
    assert (first["subscription"], first["body"]) == (queue, "job")
    assert (second["subscription"], second["body"]) == (topic, "news")
    assert "position" not in first


async def test_heartbeats_carry_the_position(name: Name) -> None:
    topic = f"/topic/{name()}"
    async with gateway(server={"heartbeat": "50ms", "grace": "1s"}) as gw:
        async with sse(f"{gw.url}/sse{topic}") as stream:
            first = await stream.any()
            # A busy neighbour moves the broker's offset on; the quiet feed's position follows.
            await publish(gw, f"/topic/{name()}", "elsewhere")
            moved = await stream.any()
            while moved.id == first.id:
                moved = await stream.any()
            assert moved.type == "position"
            assert stream.comments >= 1
        await publish(gw, topic, "missed")
        async with sse(f"{gw.url}/sse{topic}", {"Last-Event-ID": moved.id}) as stream:
            assert await stream.data(1) == ["missed"]


async def test_cors_echoes_the_origin(gw: RunningGateway, name: Name) -> None:
    origin = "http://localhost:5173"
    async with sse(f"{gw.url}/sse/topic/{name()}", {"Origin": origin}) as stream:
        headers = stream.response.headers
        assert headers["Access-Control-Allow-Origin"] == origin
        assert headers["Access-Control-Allow-Credentials"] == "true"
        assert headers["Vary"] == "Origin"
    refusal = await get(f"{gw.url}/sse/nowhere/x", headers={"Origin": origin})
    assert refusal.status == 400
    assert refusal.headers["Access-Control-Allow-Origin"] == origin


async def test_verdict_without_a_stream(gw: RunningGateway, name: Name) -> None:
    topic, queue = f"/topic/{name()}", f"/queue/{name()}"
    accept = {"Accept": "application/json"}
    granted = await get(f"{gw.url}/sse{topic}", headers=accept)
    assert (granted.status, granted.json["code"]) == (200, "ok")
    await publish(gw, topic, "after")
    async with sse(f"{gw.url}/sse{topic}?since={granted.json['position']}") as stream:
        assert await stream.data(1) == ["after"]
    await publish(gw, queue, "kept")
    assert (await get(f"{gw.url}/sse{queue}", headers=accept)).status == 200
    async with sse(f"{gw.url}/sse{queue}") as stream:
        assert await stream.data(1) == ["kept"]
    refused = await get(f"{gw.url}/sse/topic/a%ff", headers=accept)
    assert (refused.status, refused.json["code"]) == (400, "bad_destination")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/sse/nowhere/x", 400, "bad_destination"),
        ("/sse/topic/a%zz", 400, "bad_destination"),
        ("/sse/topic/%ff", 400, "bad_destination"),
        ("/sse/topic/job.", 400, "bad_destination"),
        ("/sse/topic/", 400, "bad_destination"),
        ("/sse", 400, "bad_request"),
        ("/sse/exchange/missing/x", 404, "not_found"),
        ("/sse/topic/x?since=what", 400, "bad_position"),
        ("/sse/topic/x?since=ab-1,cd-2", 400, "bad_position"),
        ("/sse/topic/x?last=many", 400, "bad_position"),
        ("/sse/topic/x?envelope=xml", 400, "bad_request"),
        ("/sse/queue/x?ack=client", 400, "bad_request"),
        ("/sse/topic/x?last=1&last=2", 400, "bad_request"),
        ("/sse/topic/x?prefetch=0", 400, "bad_request"),
        ("/sse?destination=/topic/a&destination=/topic/a", 400, "bad_request"),
    ],
)
async def test_refusals_can_be_read(gw: RunningGateway, path: str, status: int, code: str) -> None:
    answer = await get(f"{gw.url}{path}")
    assert answer.headers["Content-Type"].startswith("application/json")
    assert (answer.status, answer.json["code"]) == (status, code), answer.text
    assert set(answer.json) == {"code", "text", "hint", "retry"}
    assert answer.json["text"]


async def test_wrong_method(gw: RunningGateway) -> None:
    answer = await request("POST", f"{gw.url}/sse/topic/x", data=b"x")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")


async def test_disconnect_event_on_shutdown(name: Name) -> None:
    async with gateway(server={"grace": "2s"}) as gw:
        stopping = sse(f"{gw.url}/sse/topic/{name()}")
        stream = await stopping.__aenter__()
        await stream.any()
    notice = await stream.next("disconnect")
    assert notice.json["code"] == "shutdown"
    assert notice.json["retry"] is True
    with pytest.raises(StopAsyncIteration):
        await stream.any()
    await stopping.__aexit__(None, None, None)


async def test_a_second_request_on_a_kept_connection_becomes_a_stream(
    gw: RunningGateway, name: Name
) -> None:
    topic = f"/topic/{name()}"
    reader, writer = await asyncio.open_connection(*gw.url.removeprefix("http://").split(":"))
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(await reader.readline()) == {"status": "ok"}
    writer.write(f"GET /sse{topic} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert b"text/event-stream" in head
    await asyncio.wait_for(reader.readuntil(b"data: \n\n"), 10)
    await publish(gw, topic, "hello")
    assert (await asyncio.wait_for(reader.readuntil(b"\n\n"), 10)).endswith(b"data: hello\n\n")
    writer.close()
