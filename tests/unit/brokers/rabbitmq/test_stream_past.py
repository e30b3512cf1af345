"""What of a stream is too old: not by a clock that jumps."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from queuecast.brokers.rabbitmq.stream_holes import Holes
from queuecast.brokers.rabbitmq.stream_pass import StreamPass
from queuecast.brokers.rabbitmq.stream_past import Past
from queuecast.destination import Destination
from queuecast.retention import RetainRule

HOUR = 3600.0
RULE = RetainRule(Destination.parse("/topic/a.#"), HOUR, 1 << 20)


class Rig:
    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 50.0
        self.asked: list[Any] = []
        self.holes = Holes()
        self.past = Past(RULE, cast(StreamPass, self), lambda: self.wall, lambda: self.steady)

    async def probe(self, where: Any) -> int:
        self.asked.append(where)
        return 7

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


@pytest.mark.parametrize("jump", [10 * 365 * 24 * HOUR, 2 * HOUR, 0.0])
async def test_a_jump_ahead_hides_nothing(jump: float) -> None:
    rig = Rig()
    oldest = datetime.fromtimestamp(rig.wall - HOUR, UTC)
    rig.wall += jump
    assert await rig.past.begin() == 7
    assert rig.asked == [oldest]


async def test_a_jump_back_shows_what_is_older_at_most() -> None:
    rig = Rig()
    rig.wall -= 5 * HOUR
    assert await rig.past.begin() == 7
    assert rig.asked == [datetime.fromtimestamp(rig.wall - HOUR, UTC)]


@pytest.mark.parametrize("jump", [1e8, -1e8, 0.0])
async def test_what_was_seen_is_aged_by_time_that_passed(jump: float) -> None:
    rig = Rig()
    rig.past.note(10)
    rig.wall += jump
    rig.pass_time(HOUR / 2)
    rig.past.note(20)
    assert await rig.past.at_time(rig.wall - 60) == 11
    rig.pass_time(HOUR / 2 + 1)
    assert await rig.past.begin() == 11
    rig.pass_time(HOUR)
    assert await rig.past.begin() == 21
    assert not rig.asked
