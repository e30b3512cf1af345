"""The queue of what a client said: its order, what makes it wait, and how it ends."""

from __future__ import annotations

import pytest

from queuecast.auth.identity import ANONYMOUS
from queuecast.destination import Destination
from queuecast.disconnect import SHUTDOWN, Disconnect
from queuecast.message import Properties
from queuecast.sessions.ordered import CLOSE_WITHIN, OrderedSession
from tests.unit.sessions.stomp_rig import FakeTransport, House

TOPIC = Destination.parse("/topic/a")


class Letters(OrderedSession[str]):
    """Each byte is an event; a capital is a barrier, `b` makes it busy, `p` publishes.

    The parser gives at most three events a call.
    """

    def __init__(self, house: House) -> None:
        super().__init__(house.services, FakeTransport(), ANONYMOUS)
        self.handled = ""
        self.parted = b""
        self._rest = ""

    def parse(self, data: bytes) -> list[str]:
        text = self._rest + data.decode()
        self._rest = text[3:]
        return list(text[:3])

    @property
    def pending(self) -> bool:
        return bool(self._rest)

    def handle(self, event: str) -> None:
        self.handled += event
        match event:
            case "b":
                self.busy = True
            case "p":
                self.publish(TOPIC, b"x", Properties(), lambda error: None)
            case "l":
                self.leave(b"bye")
            case "L":
                self.answer_leave(b"bye too")

    def is_barrier(self, event: str) -> bool:
        return event.isupper()

    def receive_parting(self, data: bytes) -> None:
        self.parted += data

    def ping(self) -> bytes:
        return b"?"

    def disconnect(self, reason: Disconnect) -> None:
        self.leave(reason.text.encode())

    @property
    def fake(self) -> FakeTransport:
        assert isinstance(self.transport, FakeTransport)
        return self.transport


def confirm(house: House, count: int = 1) -> None:
    waiting = [each for each in house.published if not each.confirm.done()]
    for each in waiting[:count]:
        each.confirm.set_result(None)
    house.runtime.settle()


def test_what_a_parser_leaves_is_handled_in_turns_of_its_own() -> None:
    house = House()
    session = Letters(house)
    session.receive_data(b"abcdefg".replace(b"b", b"x"))
    assert session.handled == "axc"
    assert not session.fake.reading
    house.runtime.settle()
    assert session.handled == "axcdefg"
    assert session.fake.reading


def test_nothing_passes_an_event_that_waits() -> None:
    house = House()
    session = Letters(house)
    session.receive_data(b"xb")
    session.receive_data(b"yz")
    assert (session.handled, session.fake.reading) == ("xb", False)
    session.busy = False
    session.process()
    assert (session.handled, session.fake.reading) == ("xbyz", True)


def test_a_barrier_waits_for_every_confirm_and_the_limit_for_one() -> None:
    house = House(publishing=2)
    house.confirm_at_once = False
    session = Letters(house)
    session.receive_data(b"ppx")
    house.runtime.settle()
    assert session.handled == "pp", "two are under way, that is the limit"
    confirm(house)
    assert session.handled == "ppx"
    session.receive_data(b"Xy")
    house.runtime.settle()
    assert (session.handled, session.fake.reading) == ("ppx", False)
    confirm(house)
    assert (session.handled, session.fake.reading) == ("ppxXy", True)


def test_a_client_that_does_not_read_is_not_read_from() -> None:
    session = Letters(House())
    session.pause_writing()
    session.receive_data(b"xyz")
    assert (session.handled, session.fake.reading) == ("", False)
    session.resume_writing()
    assert (session.handled, session.fake.reading) == ("xyz", True)


@pytest.mark.parametrize("confirmed", [True, False])
def test_leaving_waits_for_confirms_but_not_for_ever(confirmed: bool) -> None:
    house = House()
    house.confirm_at_once = False
    session = Letters(house)
    session.receive_data(b"plx")
    house.runtime.settle()
    assert (session.handled, session.closed, session.closing) == ("pl", True, False)
    assert session.fake.written == b""
    if confirmed:
        confirm(house)
    else:
        session.heartbeat(0)
    assert (session.fake.written, session.closing) == (b"bye", True)
    session.receive_data(b"more")
    assert (session.parted, session.handled) == (b"more", "pl")
    assert not session.fake.closed
    house.runtime.advance(CLOSE_WITHIN)
    assert session.fake.closed


def test_the_clients_own_ending_is_answered_and_closed() -> None:
    session = Letters(House())
    session.receive_data(b"Lx")
    assert (session.fake.written, session.fake.closed, session.handled) == (b"bye too", True, "L")


def test_who_does_not_read_is_cut_off_without_a_word() -> None:
    session = Letters(House())
    session.pause_writing()
    session.disconnect(SHUTDOWN)
    assert (session.fake.aborted, session.fake.written) == (True, b"")


def test_a_silent_client_is_pinged_and_then_disconnected() -> None:
    session = Letters(House())
    for _ in range(2):
        session.heartbeat(0)
    assert session.fake.written == b"??"
    session.receive_data(b"x")
    for _ in range(3):
        session.heartbeat(0)
    assert session.fake.written.startswith(b"????")
    assert session.closing
