"""The history pass against a stream in memory: who gets what, and by how many sweeps."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pika.exceptions
import pytest

from queuecast.brokers.rabbitmq import stream_pass
from queuecast.brokers.rabbitmq.stream_pass import StreamPass
from queuecast.brokers.rabbitmq.stream_request import Backfill, LastRequest, PageRequest
from queuecast.errors import Unavailable
from queuecast.message import Message, Properties

MARKS = "queuecast.id.test"


@dataclass
class Stream:
    """What the broker has: routing key by offset, with holes; consumers that are open."""

    keys: dict[int, str]
    consumers: int = 0
    most_consumers: int = 0
    attached: list[object] = field(default_factory=list)
    links: int = 0
    channels: list[Channel] = field(default_factory=list)

    async def wait(self) -> Any:
        self.links += 1
        return SimpleNamespace(channel=self.channel)

    async def channel(self) -> Channel:
        channel = Channel(self)
        self.channels.append(channel)
        return channel


class Channel:
    """A channel of pika's adapter, as far as the pass uses it; it delivers within the prefetch."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.is_open = True
        self.on_closed: Callable[[BaseException], None] | None = None
        self.on_cancel: Callable[[str], None] | None = None
        self._prefetch = 0
        self._left: list[int] = []
        self._tag = self._acked = 0
        self._consuming = False

    async def qos(self, prefetch: int) -> None:
        self._prefetch = prefetch

    async def consume(
        self, queue: str, tag: str, on_message: Any, *, arguments: Mapping[str, Any]
    ) -> None:
        await asyncio.sleep(0)
        if not self.is_open:
            raise pika.exceptions.ChannelWrongStateError("closed")
        spec = arguments["x-stream-offset"]
        stream = self._stream
        stream.attached.append(spec)
        stream.consumers += 1
        stream.most_consumers = max(stream.most_consumers, stream.consumers)
        self._consuming = True
        first = 0 if spec == "first" else int(spec)
        self._left = [offset for offset in sorted(stream.keys) if offset >= first]
        self._on_message = on_message
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        while self.is_open and self._left and self._tag - self._acked < self._prefetch:
            offset = self._left.pop(0)
            self._tag += 1
            properties = Properties(headers={"x-stream-offset": offset})
            key = self._stream.keys[offset]
            self._on_message(Message(b"%d" % offset, "amq.topic", key, properties), self._tag)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        assert multiple
        self._acked = tag
        asyncio.get_running_loop().call_soon(self._deliver)

    def abandon(self) -> None:
        if self.is_open:
            self.is_open = False
            self._stream.consumers -= self._consuming

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.abandon()

    def lose(self) -> None:
        """Be closed by the broker."""
        self.abandon()
        if self.on_closed is not None:
            self.on_closed(ConnectionError())


def offsets(request: PageRequest) -> list[int]:
    return [int(message.body) for message in request.messages]


def page(
    pattern: str, want: int, head: int, max_bytes: int = 1 << 30, final: int | None = None
) -> PageRequest:
    return PageRequest(pattern, want, head, max(want - 1, 0), final, max_bytes)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_pass, "_LINGER", 0.01)
    monkeypatch.setattr(stream_pass, "_RETRY", 0.001)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(12))
async def test_everybody_gets_what_follows_their_place_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    # Runs that are cut short, and jumps, as in a stream that is much longer.
    monkeypatch.setattr(stream_pass, "_QUANTUM", rng.choice([100, 500, 5_000]))
    monkeypatch.setattr(stream_pass, "_NEAR", rng.choice([10, 500]))
    keys = {
        offset: rng.choice(["a", "b", "c.d", "c.e"])
        for offset in range(3_000)
        if rng.random() < 0.97
    }
    head = max(keys)
    stream = Stream(keys)
    reading = StreamPass("s", MARKS, stream.wait, window=rng.choice([2_000, 100_000, 8 << 20]))
    matching = {"a": ["a"], "b": ["b"], "c.*": ["c.d", "c.e"], "#": ["a", "b", "c.d", "c.e"]}

    async def reader() -> None:
        pattern = rng.choice(list(matching))
        want = rng.randrange(head)
        place, got = want, []
        while place <= head:
            request = page(pattern, place, head, rng.choice([1, 5_000, 100_000]))
            await reading.ask(request)
            assert request.after > place
            got += offsets(request)
            place = request.after
            if rng.random() < 0.1:
                await asyncio.sleep(0.001)
        assert place == head + 1
        assert got == [each for each in keys if each >= want and keys[each] in matching[pattern]]

    async def trouble() -> None:
        for _ in range(5):
            await asyncio.sleep(rng.random() * 0.02)
            if stream.channels:
                stream.channels[-1].lose()

    work = [reader() for _ in range(40)]
    if seed % 2:
        work.append(trouble())
    await asyncio.gather(*work)
    assert stream.most_consumers == 1
    await asyncio.sleep(0.1)
    assert stream.consumers == 0  # it left when nobody waited any more
    await reading.close()


@pytest.mark.usefixtures("quick")
async def test_a_thousand_places_are_few_sweeps_and_what_nobody_wants_is_jumped_over() -> None:
    stream = Stream({offset: f"k.{offset}" for offset in range(50_000)})
    reading = StreamPass("s", MARKS, stream.wait)
    asked = [page(f"k.{at}", at, 49_999, final=at) for at in range(1_000)]
    far = page("k.49000", 49_000, 49_999, final=49_000)
    await asyncio.gather(*(reading.ask(request) for request in [*reversed(asked), far]))
    assert [offsets(request) for request in asked] == [[at] for at in range(1_000)]
    assert offsets(far) == [49_000]
    assert far.after == 50_000
    assert stream.attached == [0, 48_999]
    await reading.close()


@pytest.mark.usefixtures("quick")
async def test_a_long_scan_yields_to_others_and_goes_on() -> None:
    stream = Stream(dict.fromkeys(range(60000), "common") | {60_000: "rare"})
    reading = StreamPass("s", MARKS, stream.wait, window=1)
    order: list[str] = []

    async def scan() -> None:
        place = 30_000
        while place <= 60_000:
            request = page("rare", place, 60_000)
            await reading.ask(request)
            place = request.after
        assert offsets(request) == [60_000]
        order.append("scan")

    async def low() -> None:
        # One after the other, so that there is always somebody below.
        for at in range(0, 2_000, 100):
            request = page("common", at, 60_000, max_bytes=1)
            await reading.ask(request)
            assert offsets(request) == [at]
        order.append("low")

    scanning = asyncio.create_task(scan())
    await asyncio.sleep(0.02)
    await asyncio.gather(scanning, low())
    assert sorted(order) == ["low", "scan"]
    await reading.close()


@pytest.mark.usefixtures("quick")
async def test_what_was_deleted_is_told_to_those_who_wanted_it() -> None:
    stream = Stream(dict.fromkeys(range(100, 200), "k"))
    reading = StreamPass("s", MARKS, stream.wait)
    lost, whole, gone = page("k", 50, 199), page("k", 100, 199), page("k", 10, 60)
    border = page("k", 101, 199)
    await asyncio.gather(*(reading.ask(each) for each in (lost, whole, gone, border)))
    assert (lost.gap_at, offsets(lost)) == (100, list(range(100, 200)))
    assert (whole.gap_at, offsets(whole)) == (None, list(range(100, 200)))
    assert (border.gap_at, offsets(border)) == (None, list(range(101, 200)))
    assert gone.gap_at == 100  # … even though nothing up to its head is left
    assert gone.after >= 100
    await reading.close()


@pytest.mark.usefixtures("quick")
async def test_the_index_is_filled_when_nobody_waits() -> None:
    stream = Stream({offset: f"k.{offset % 7}" for offset in range(20_000)})
    reading = StreamPass("s", MARKS, stream.wait)
    backfill = Backfill(0, 9_999)
    reading.when_idle(backfill)
    for _ in range(3):
        await asyncio.sleep(0.01)
        request = page("k.1", 15_000, 19_999, max_bytes=1)
        await reading.ask(request)
        assert offsets(request) == [15_002]
        last = LastRequest("k.3", 0, 19_999, 2)
        await reading.ask(last)
        assert list(last.offsets) == [19_988, 19_995]
    await asyncio.wait_for(backfill.done, 30)
    found = list(backfill.index.of("k.1").offsets)
    assert found == [at for at in range(10_000) if at % 7 == 1][-len(found) :]
    assert len(found) >= 100
    await reading.close()


@pytest.mark.usefixtures("quick")
async def test_without_a_connection_those_who_wait_are_told() -> None:
    async def away() -> Any:
        raise Unavailable("RabbitMQ is away")

    reading = StreamPass("s", MARKS, away)
    with pytest.raises(Unavailable, match="away"):
        await reading.ask(page("k", 0, 10))
    with pytest.raises(Unavailable, match="away"):
        await reading.probe("first")
    await reading.close()
    with pytest.raises(Unavailable):
        await reading.ask(page("k", 0, 10))


@pytest.mark.usefixtures("quick")
async def test_a_reader_that_gives_up_leaves_nothing_behind() -> None:
    stream = Stream(dict.fromkeys(range(5000), "k"))
    reading = StreamPass("s", MARKS, stream.wait)
    tasks = [asyncio.create_task(reading.ask(page("k", at, 4_999))) for at in range(50)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    request = page("k", 4_990, 4_999)
    await reading.ask(request)
    assert len(request.messages) == 10
    assert not reading._active._groups
    await reading.close()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("seed", range(20))
async def test_nobody_waits_for_ever_whatever_happens(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that give up and come again, probes that have the consumer jump to the beginning,
    an index in the background, lost consumers, a link that is away, and a pass that is reset."""
    rng = random.Random(seed)
    monkeypatch.setattr(stream_pass, "_QUANTUM", rng.choice([50, 500, 5_000]))
    near = rng.choice([10, 500])
    monkeypatch.setattr(stream_pass, "_NEAR", near)
    monkeypatch.setattr(stream_pass, "_AHEAD", 2 * near)
    keys = {at: rng.choice(["a", "b", "c.d"]) for at in range(1_500) if rng.random() < 0.9}
    head = max(keys)
    stream = Stream(keys)
    away = False

    async def link() -> Any:
        if away:
            await asyncio.sleep(0.002)
            raise Unavailable("RabbitMQ is away")
        return await stream.wait()

    reading = StreamPass("s", MARKS, link, window=rng.choice([2_000, 8 << 20]))
    matching = {"a": ["a"], "c.*": ["c.d"], "#": ["a", "b", "c.d"]}

    async def reader(number: int) -> None:
        chance = random.Random(f"{seed}-{number}")
        pattern = chance.choice(list(matching))
        want = chance.randrange(head)
        place, got = want, []
        while place <= head:
            request = page(pattern, place, head, chance.choice([1, 5_000, 100_000]))
            asking = asyncio.create_task(reading.ask(request))
            if chance.random() < 0.2:
                await asyncio.sleep(chance.random() * 0.004)
                asking.cancel()
            [error] = await asyncio.gather(asking, return_exceptions=True)
            if error is not None:
                assert isinstance(error, Unavailable | asyncio.CancelledError)
                await asyncio.sleep(0.001)
                continue
            assert request.after > place
            got += offsets(request)
            place = request.after
        assert got == [each for each in keys if each >= want and keys[each] in matching[pattern]]

    async def prober() -> None:
        for _ in range(20):
            await asyncio.sleep(rng.random() * 0.01)
            try:
                assert await reading.probe("first") == min(keys)
            except Unavailable:
                continue

    async def trouble() -> None:
        nonlocal away
        for _ in range(15):
            await asyncio.sleep(rng.random() * 0.01)
            match rng.randrange(4):
                case 0 if stream.channels:
                    stream.channels[-1].lose()
                case 1:
                    reading.reset(Unavailable("the stream was made anew"))
                case 2:
                    away = True
                    await asyncio.sleep(0.005)
                    away = False
                case 3:
                    reading.when_idle(Backfill(0, head // 2))

    async with asyncio.timeout(60):
        await asyncio.gather(*(reader(number) for number in range(25)), prober(), trouble())
    assert stream.most_consumers == 1
    assert not reading._waiting
    assert not reading._active._groups
    await reading.close()


def test_who_is_read_on_to_takes_part() -> None:
    assert stream_pass._NEAR <= stream_pass._AHEAD
