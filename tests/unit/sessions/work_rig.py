"""SSE sessions and polls with client acks, over the fake house of the STOMP tests."""

from __future__ import annotations

import json
from typing import Any

from queuecast.auth.identity import ANONYMOUS
from queuecast.errors import QueuecastError
from queuecast.sessions.acks import parse_command, settle_all
from queuecast.sessions.poll_work import poll_with_acks
from queuecast.sessions.request import SubscribeRequest, parse_subscribe
from queuecast.sessions.sse import SseSession
from tests.support.fake_runtime import Task
from tests.unit.sessions.stomp_rig import FakeTransport, House


def asked(house: House, path: str, query: str = "") -> SubscribeRequest:
    """Read a subscription's URL without its verb."""
    return parse_subscribe(path, query, {}, house.services.resolve, limit=10)


class Stream:
    """An EventSource on a queue."""

    def __init__(self, house: House, path: str, query: str = "ack=client&envelope=json") -> None:
        self.house = house
        self.transport = FakeTransport()
        self.session = SseSession(house.services, self.transport, asked(house, path, query))
        self.session.start()
        house.runtime.settle()

    def got(self) -> list[dict[str, Any]]:
        """Return what came since the last time: the data of events, without positions."""
        self.house.runtime.settle()
        data = self.transport.written.decode()
        self.transport.written = b""
        events = [event.splitlines() for event in data.split("\n\n") if event]
        return [
            json.loads(event[-1][6:])
            for event in events
            if event[-1].startswith("data: {") and "event: position" not in event
        ]


def settle(house: House, **said: Any) -> list[str]:
    """Post to /ack; returns the codes of what was refused."""
    services = house.services
    failed = settle_all(services.acks, ANONYMOUS, parse_command(said, services.limits.settle))
    house.runtime.settle()
    return [error.code for _, error in failed]


def poll(house: House, query: str = "", path: str = "/queue/a") -> Task:
    """Begin a poll."""
    request = asked(house, path, f"ack=client&{query}")
    task = house.runtime.start(poll_with_acks(house.services, request))
    house.runtime.settle()
    return task


def answer(task: Task) -> dict[str, Any]:
    """Return a poll's answer."""
    found: dict[str, Any] = json.loads(task.result())
    return found


def refusal(task: Task) -> QueuecastError:
    """Return what a poll was refused with."""
    assert task.done
    assert isinstance(task.error, QueuecastError)
    return task.error
