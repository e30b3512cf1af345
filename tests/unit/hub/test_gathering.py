"""After a tick with many writes the next one lets messages gather, within bounds."""

from __future__ import annotations

import pytest

from tests.support.fake_session import FakeOutlet

from .rig import FeedRig, numbered

# Subscribers from which on a tick counts as a long one, and what one of their writes takes.
MANY = 100
WRITE = 0.0001


class SlowOutlet(FakeOutlet):
    """An outlet whose writes take time."""

    def __init__(self, rig: FeedRig) -> None:
        super().__init__()
        self._rig = rig

    def write(self, data: bytes) -> None:
        super().write(data)
        self._rig.runtime.time += WRITE


def crowd(count: int) -> tuple[FeedRig, FakeOutlet]:
    """Return a feed with subscribers that have just had a message, and one of them."""
    rig = FeedRig()
    outlets = [rig.subscribe(outlet=SlowOutlet(rig)) for _ in range(count)]
    rig.send()
    outlets[0].writes.clear()
    return rig, outlets[0]


def test_messages_that_come_one_a_turn_share_a_write() -> None:
    rig, outlet = crowd(MANY)
    for _ in range(50):
        rig.append()
        rig.runtime.turn()
    assert outlet.writes == []
    rig.runtime.time += MANY * WRITE
    rig.runtime.turn()
    assert len(outlet.writes) == 1
    assert outlet.bodies() == numbered(2, 51)


def test_pauses_between_them_do_not_end_it() -> None:
    rig, outlet = crowd(MANY)
    for _ in range(5):
        rig.append()
        for _ in range(5):
            rig.runtime.turn()
    assert outlet.writes == []


def test_a_message_alone_goes_out_after_a_few_quiet_turns() -> None:
    rig, outlet = crowd(MANY)
    rig.append()
    turns = 0
    while not outlet.writes:
        rig.runtime.turn()
        turns += 1
    assert 1 < turns < 20
    assert outlet.bodies() == numbered(2, 2)


def test_it_lasts_no_longer_than_the_writes_took() -> None:
    rig, outlet = crowd(MANY)
    rig.runtime.time += MANY * WRITE
    rig.append()
    rig.runtime.turn()
    assert len(outlet.writes) == 1


def test_a_tick_of_seconds_is_not_waited_for_as_long() -> None:
    rig, outlet = crowd(50 * MANY)  # half a second of writes
    rig.runtime.time += 0.1
    rig.append()
    rig.runtime.turn()
    assert len(outlet.writes) == 1


def test_many_messages_do_not_wait() -> None:
    rig, outlet = crowd(MANY)
    rig.append(1000)
    rig.runtime.turn()
    assert outlet.bodies() == numbered(2, 1001)


@pytest.mark.parametrize("count", [1, MANY - 1])
def test_after_few_writes_every_turn_has_its_tick(count: int) -> None:
    rig, outlet = crowd(count)
    for number in range(1, 6):
        rig.append()
        rig.runtime.turn()
        assert len(outlet.writes) == number


def test_pending_until_the_tick() -> None:
    rig, _ = crowd(MANY)
    assert not rig.ticker.pending
    rig.append()
    rig.runtime.turn()
    assert rig.ticker.pending
    rig.runtime.settle()
    assert not rig.ticker.pending
