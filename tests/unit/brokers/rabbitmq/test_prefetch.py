"""A consumer's prefetch over its restarts: never more than was asked for, and in the end all of it.

Played against a broker that sends whatever the present consumer may have.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.brokers.rabbitmq.prefetch import PrefetchWindow


class Played:
    """A broker with a full queue, and a client that takes everything."""

    def __init__(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self.window = PrefetchWindow(prefetch)
        self.outstanding: set[int] = set()
        self.present: set[int] = set()
        self.last = 0
        self.allowed = 0
        self.cancelled = False
        self.begin()

    def begin(self) -> None:
        self.cancelled = False
        self.allowed = self.window.begin(self.last, len(self.outstanding))
        self.present = set()
        self.send()

    def send(self) -> None:
        while len(self.present) < self.allowed:
            self.last += 1
            self.present.add(self.last)
            self.outstanding.add(self.last)
            self.window.took(100)
            assert len(self.outstanding) <= self.prefetch
        assert self.window.is_used_up

    def settle(self, tag: int) -> None:
        self.outstanding.discard(tag)
        self.window.settled(tag)
        self.present.discard(tag)
        if not self.cancelled:
            self.send()
            if len(self.outstanding) < self.prefetch:
                self.begin()

    def pause(self) -> None:
        self.cancelled = True

    def resume(self) -> None:
        if self.cancelled and len(self.outstanding) < self.prefetch:
            self.begin()


STEPS = st.one_of(st.sampled_from(("pause", "resume")), st.integers(0, 30))


@given(st.integers(1, 20), st.lists(STEPS, max_size=60))
def test_the_prefetch_is_kept_and_reached(prefetch: int, steps: list[str | int]) -> None:
    played = Played(prefetch)
    for step in [*steps, "resume"]:
        if step == "pause":
            played.pause()
        elif step == "resume":
            played.resume()
        elif isinstance(step, int) and played.outstanding:
            played.settle(sorted(played.outstanding)[step % len(played.outstanding)])
        assert played.cancelled or len(played.outstanding) == prefetch
    assert len(played.outstanding) == prefetch


def test_what_could_not_be_held_makes_it_smaller_and_it_grows_again() -> None:
    window = PrefetchWindow(1000)
    assert window.begin(0, 0) == 1000
    for _ in range(50):
        window.took(1000)
    window.refused(20_000)
    assert [window.begin(50, 0) for _ in range(7)] == [20, 40, 80, 160, 320, 640, 1000]


@pytest.mark.parametrize("room", [0, 10])
def test_one_is_always_allowed(room: int) -> None:
    window = PrefetchWindow(5)
    window.took(1000)
    window.refused(room)
    assert window.begin(0, 4) == 1
