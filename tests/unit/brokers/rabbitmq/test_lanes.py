"""Lanes of waiting messages: order, also for those that must be sent again."""

from __future__ import annotations

import asyncio

import pika.spec

from queuecast.brokers.rabbitmq.confirms import Outgoing
from queuecast.brokers.rabbitmq.lanes import MAX_WAITING, Lane, Lanes
from queuecast.errors import Unavailable

LANE: Lane = ("events", "")


def outgoing(body: bytes) -> Outgoing:
    done = asyncio.get_running_loop().create_future()
    return Outgoing("events", "", body, pika.spec.BasicProperties(), False, None, done, 0.0)


class Sending:
    """Sends when there is room, as the publisher does."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.sent: list[bytes] = []
        self.lanes = Lanes(self._send, lambda: None)

    async def _send(self, lane: Lane, item: Outgoing) -> bool:
        await self.room.wait()
        if not self.lanes.is_first(lane, item):
            return False
        self.sent.append(item.body)
        item.done.set_result(None)
        return True


async def test_what_is_sent_again_goes_before_what_waits() -> None:
    sending = Sending()
    waiting = [outgoing(b"%d" % number) for number in range(2, 5)]
    for item in waiting:
        sending.lanes.add(LANE, item)
    await asyncio.sleep(0)  # the first of them waits for room
    again = [outgoing(b"0"), outgoing(b"1")]
    for item in reversed(again):
        sending.lanes.add_first(LANE, item)
    sending.room.set()
    await asyncio.gather(*(item.done for item in [*again, *waiting]))
    assert sending.sent == [b"0", b"1", b"2", b"3", b"4"]
    await asyncio.sleep(0)
    assert sending.lanes.waiting == 0
    assert LANE not in sending.lanes


async def test_an_error_concerns_its_message_alone() -> None:
    lanes: Lanes

    async def send(_lane: Lane, item: Outgoing) -> bool:
        await asyncio.sleep(0)
        if item.body == b"bad":
            raise Unavailable("away")
        item.done.set_result(None)
        return True

    lanes = Lanes(send, lambda: None)
    items = [outgoing(body) for body in (b"1", b"bad", b"2")]
    for item in items:
        lanes.add(LANE, item)
    results = await asyncio.gather(*(item.done for item in items), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), Unavailable, type(None)]


async def test_what_waits_is_bounded() -> None:
    sending = Sending()
    for number in range(MAX_WAITING):
        item = outgoing(b"")
        assert sending.lanes.has_room(item)
        sending.lanes.add((str(number % 7), ""), item)
    assert not sending.lanes.has_room(outgoing(b""))
    sending.room.set()
    for _ in range(MAX_WAITING):
        if not sending.lanes.waiting:
            break
        await asyncio.sleep(0)
    assert sending.lanes.has_room(outgoing(b""))
