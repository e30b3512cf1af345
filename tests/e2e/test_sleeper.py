"""A page that sleeps: clients are stopped with SIGSTOP while messages flow, and woken again.

A few seconds of it; `python -m benchmarks.sleeper` is the minute, and prints its figures.
"""

import asyncio
from pathlib import Path
from urllib.parse import quote

import pytest

from benchmarks.sleeper.__main__ import table
from benchmarks.sleeper.run import Plan, measure, websockets
from benchmarks.sleeper.story import missing
from tests.conftest import Node

SECONDS = 0.6
RATE = 10_000
# Large, so that what a gateway would keep for one who sleeps is more than it may cost.
SIZE = 6000


@pytest.mark.slow
@pytest.mark.node
@pytest.mark.timeout(400)
async def test_clients_that_are_stopped_and_woken(node: Node) -> None:
    def eventsource(url: str, destination: str) -> tuple[list[str], Path]:
        return [str(node.command), "sleeper.mjs", f"{url}/sse{quote(destination)}"], node.directory

    sleepers = [("retained", eventsource), ("outgrown", websockets), ("unretained", eventsource)]
    plan = Plan(SECONDS, RATE, SIZE, others=9, sleepers=sleepers)
    # It checks by itself that everybody else has every message in order and no gap, and that who
    # slept has nothing twice, no hole in silence, and what is published in the end.
    figures = await asyncio.to_thread(measure, plan, print)
    print(table(figures))
    retained, outgrown, unretained = figures.slept
    for each in figures.slept:
        assert each.behind > 0.9 * SECONDS * RATE, "it did not sleep"
    assert (retained.gaps, retained.told) == ([], 0)
    for each in (outgrown, unretained):
        # Awake it may fall behind once more: it is at the end of a crowd on a small machine.
        assert set(each.gaps) == {"evicted"}
        assert each.told > 0
    # A backlog kept for one of them alone would be more.
    assert figures.backlog > figures.allowed
    assert figures.cost < figures.allowed


@pytest.mark.parametrize(
    ("story", "told"),
    [
        ([], 0),
        ([[0, 9]], 0),
        ([[5, 9], "evicted", [20, 30]], 10),
        ([[5, 9], "evicted", "evicted", [10, 30]], 0),
    ],
)
def test_a_story_that_is_right(story: list[list[int] | str], told: int) -> None:
    assert missing(story) == told


@pytest.mark.parametrize(
    ("story", "said"),
    [
        ([[0, 9], [11, 12]], "10..10 are missing in silence"),
        ([[0, 9], [9, 12]], "9 again"),
        ([[0, 9], "evicted", [3, 12]], "3 again"),
        (["evicted", [0, 9], [20, 21]], "10..19 are missing in silence"),
    ],
)
def test_a_story_that_is_wrong(story: list[list[int] | str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        missing(story)
