"""Cohorts: one encode for all whose bytes are identical, and the very same object for each."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from queuecast.hub.log import Entry
from queuecast.message import Message
from queuecast.position import Start, Vector
from tests.support.fake_session import FakeOutlet, Lines

from .rig import FeedRig, numbered


class Harmless(Lines):
    """An encoding that takes the message at which Lines raises."""

    def encode(self, entries: Sequence[Entry], vector: Vector) -> bytes:
        safe = Message(b"safe")
        return super().encode(
            [
                Entry(entry.lane, entry.offset, safe, entry.at)
                if entry.message is not None and entry.message.body == b"poison"
                else entry
                for entry in entries
            ],
            vector,
        )


POISON = Message(b"poison")


def test_members_get_the_very_same_object() -> None:
    rig = FeedRig()
    outlets = [rig.subscribe(encoding=Lines()) for _ in range(3)]
    rig.send(5)
    first = outlets[0].writes
    assert len(first) == 1
    assert all(outlet.writes[0] is first[0] for outlet in outlets)


def test_a_thousand_subscribers_cost_one_encode_a_batch() -> None:
    rig = FeedRig()
    outlets = [rig.subscribe() for _ in range(1000)]
    for _ in range(3):
        rig.send(10)
    assert rig.stats.encodes == 3
    assert rig.stats.encoded == 30
    assert rig.stats.deliveries == 30_000
    assert rig.stats.writes == 3000
    assert all(outlet.bodies() == numbered(1, 30) for outlet in outlets)


def test_different_encodings_cost_one_encode_each() -> None:
    rig = FeedRig()
    tags = ["sse", "ws", "stomp"]
    outlets = [(tag, rig.subscribe(encoding=Lines(tag))) for tag in tags * 10]
    rig.send(4)
    assert rig.stats.encodes == 3
    assert all(outlet.bodies(tag) == numbered(1, 4) for tag, outlet in outlets)


def test_those_who_stall_at_one_border_share_what_they_missed() -> None:
    rig = FeedRig(chunk_bytes=2000)
    slow = [rig.subscribe(room=1) for _ in range(1000)]
    fast = rig.subscribe()
    rig.send(40)
    assert fast.bodies() == numbered(1, 40)
    encodes = rig.stats.encodes
    for outlet in slow:
        outlet.resume()
    rig.runtime.settle()
    assert rig.stats.encodes == encodes, "everything they missed was kept"
    assert all(outlet.bodies() == numbered(1, 40) for outlet in slow)
    rig.send(1)
    assert rig.stats.encodes == encodes + 1, "all are members again"


def test_those_who_stall_at_many_borders_share_too() -> None:
    rig = FeedRig(chunk_bytes=2000)
    slow = [rig.subscribe(room=1 + 97 * number) for number in range(100)]
    rig.subscribe()
    for _ in range(20):
        rig.send(3)
    encodes = rig.stats.encodes
    for outlet in slow:
        outlet.resume()
    rig.runtime.settle()
    assert rig.stats.encodes == encodes
    assert all(outlet.bodies() == numbered(1, 60) for outlet in slow)


def test_without_kept_chunks_the_first_one_encodes_for_all() -> None:
    rig = FeedRig()
    slow = [rig.subscribe(room=1) for _ in range(100)]
    rig.send(10)
    rig.send(10)
    for cohort in rig.feed.cohorts.values():
        cohort.forget_chunks()
    encodes = rig.stats.encodes
    for outlet in slow:
        outlet.resume()
    rig.runtime.settle()
    assert rig.stats.encodes == encodes + 1
    assert all(outlet.bodies() == numbered(1, 20) for outlet in slow)


def test_a_thousand_replays_cost_few_encodes() -> None:
    rig = FeedRig(chunk_bytes=10_000, history=True)
    rig.send(100)
    outlets = [rig.subscribe(Start("first")) for _ in range(1000)]
    rig.runtime.settle()
    assert all(outlet.bodies() == numbered(1, 100) for outlet in outlets)
    assert rig.stats.encodes <= 10


def test_one_who_is_many_ticks_behind_catches_up_in_few_writes() -> None:
    rig = FeedRig()
    slow, _ = rig.subscribe(room=1), rig.subscribe()
    for _ in range(500):
        rig.send(1)
    slow.writes.clear()
    slow.resume()
    rig.runtime.settle()
    assert slow.bodies() == numbered(2, 500)
    assert len(slow.writes) == 1


def test_kept_chunks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queuecast.hub.cohort.KEPT_BYTES", 5000)
    rig = FeedRig()
    slow, _ = rig.subscribe(room=1), rig.subscribe()
    for _ in range(100):
        rig.send(1, size=500)
    [cohort] = rig.feed.cohorts.values()
    assert sum(len(chunk.data) for chunk in cohort._chunks.values()) <= 5000
    assert cohort._kept == sum(len(chunk.data) for chunk in cohort._chunks.values())
    slow.resume()
    rig.runtime.settle()
    assert [body.strip() for body in slow.bodies()] == numbered(1, 100)


def test_a_chunk_that_outgrows_the_estimate_is_cut() -> None:
    rig = FeedRig(chunk_bytes=4000)
    outlet = rig.subscribe(encoding=Lines(pad=1500))
    late = FakeOutlet()
    rig.send(20)
    assert outlet.bodies() == numbered(1, 20)
    assert max(map(len, outlet.writes)) <= 4000
    rig.subscribe(Start("last", count=15), Lines(pad=1500), late)
    rig.runtime.settle()
    assert late.bodies() == numbered(6, 20)
    assert max(map(len, late.writes)) <= 4000


def test_a_cohort_goes_with_its_last_subscriber() -> None:
    rig = FeedRig()
    outlets = [rig.subscribe() for _ in range(2)]
    outlets[0].pause()
    outlets[1].subscriptions[0].close()
    assert len(rig.feed.cohorts) == 1
    outlets[0].subscriptions[0].close()
    outlets[0].subscriptions[0].close()
    assert rig.feed.cohorts == {}
    assert rig.feed.subscribers == set()
    again = rig.subscribe()
    rig.send()
    assert again.bodies() == ["m1"]


def test_an_encoder_that_raises_hits_only_its_cohort() -> None:
    rig = FeedRig()

    fine = rig.subscribe(encoding=Harmless("other"))
    broken = [rig.subscribe(encoding=Lines()) for _ in range(2)]
    rig.send()
    rig.feed.append([POISON])
    rig.send()
    assert [len(outlet.failures) for outlet in broken] == [1, 1]
    assert all(outlet.bodies() == ["m1"] for outlet in broken)
    assert fine.failures == []
    assert fine.bodies("other") == ["m1", "safe", "m2"]
    fresh = rig.subscribe(encoding=Lines())
    rig.send()
    assert fresh.bodies() == ["m3"]


def test_an_encoder_that_raises_for_one_who_is_behind() -> None:
    rig = FeedRig()
    slow = rig.subscribe(room=1)
    fine = rig.subscribe(encoding=Harmless("other"))
    rig.send()
    rig.feed.append([POISON])
    rig.send()
    slow.resume()
    rig.runtime.settle()
    assert len(slow.failures) == 1
    assert fine.bodies("other") == ["m1", "safe", "m2"]
    assert fine.failures == []
