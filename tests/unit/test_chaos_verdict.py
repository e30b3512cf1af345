"""The chaos test's verdict: it finds what it is there to find, and its schedule comes again."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.clients import Client, Delivery, Missed, Seen, Worker
from tests.chaos.kafka import UNMARKED
from tests.chaos.kafka import make_sources as make_kafka_sources
from tests.chaos.schedule import APART, CALM, KINDS, make_schedule
from tests.chaos.sources import KEPT, LIVE, WORK, Source
from tests.chaos.transports import sse, websocket_work
from tests.chaos.verdict import (
    Verdict,
    judge_gaps,
    judge_kept,
    judge_live,
    judge_same,
    judge_work,
)

GAP = Missed("lost", 50.0, "one", fresh=False, slept=False)
ELSEWHERE = Missed("epoch", 50.0, "two", fresh=True, slept=False)


def client(kind: str, record: list[int | Missed], name: str = "page") -> Client:
    made = Client(name, "", lambda port: "", "1", kind, [f"/topic/{kind}.a"], [sse])
    for place, each in enumerate(record):
        seen = each if isinstance(each, Missed) else Seen(f"{kind}.a", each, str(place))
        made.record.append(seen)
    return made


def sources(kind: str, confirmed: int, copies: dict[int, int] | None = None) -> dict[str, Source]:
    source = Source("a", kind, "http", 0, confirmed, Counter(copies or {}))
    return {source.key: source}


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ([1, 2, 3], ""),
        ([1, 2, 3, 2], ""),  # 2 was retried
        ([1, 2, 2, 2, 3], "came 3 times"),
        ([1, 3], "2..2 are missing"),
        ([2, 3], "1..1 are missing"),
        ([1, 2], "ends at 2 of 3"),
        ([], "ends at 0 of 3"),
        ([1, 2, 3, 3], "came 2 times"),
        ([1, 2, GAP, 3], "a gap in what is retained"),
    ],
)
def test_retained(record: list[int | Missed], word: str) -> None:
    verdict = Verdict()
    judge_kept(client(KEPT, record), sources(KEPT, 3, {2: 2}), verdict)
    assert any(word in failure for failure in verdict.failures) if word else not verdict.failures


def test_a_position_comes_once() -> None:
    twice = client(KEPT, [1])
    twice.record.append(twice.record[0])
    verdict = Verdict()
    judge_kept(twice, sources(KEPT, 1, {1: 2}), verdict)
    assert "came twice" in verdict.failures[0]


def test_all_see_the_same() -> None:
    verdict = Verdict()
    known = sources(KEPT, 2, {1: 2})
    judge_same([client(KEPT, [1, 2]), client(KEPT, [1, 2])], known, verdict)
    assert not verdict.failures
    judge_same([client(KEPT, [1, 2]), client(KEPT, [1, 1, 2])], known, verdict)
    assert "not the same" in verdict.failures[0]


@pytest.mark.parametrize(
    ("record", "word"),
    [
        ([1, 2, 3, 4, 5], ""),
        ([3, 4, 5], ""),  # It came late.
        ([1, 2, GAP, 4, 5], ""),
        ([1, 2, 3, 2, 4, 5], ""),
        # A retried number comes again, on its way for longer than others: the gap stays open.
        ([1, 2, GAP, 2, 4, 5], ""),
        ([1, 2, 3, ELSEWHERE, 2, 4, 5], ""),
        # Another gateway does not say again what the one before has said.
        ([1, 2, 3, 4, ELSEWHERE, 3, 4, 5], "live.a:3 again after 4"),
        ([1, 2, 2, 3, ELSEWHERE, 2, 4, 5], "live.a:2 again after 3"),
        ([1, 2, 2, 4, 5], "3..3 are missing in silence"),
        ([1, 2, 4, 5], "3..3 are missing in silence"),
        ([1, GAP, 2, 4, 5], "3..3 are missing in silence"),
        ([1, 2, 3, 3, 4, 5], "live.a:3 again after 3"),
        ([1, 2, 3, 4, GAP, 3, 4, 5], "live.a:3 again after 4"),
        ([1, 2, 3, ELSEWHERE, 4], "ends at 4 of 5"),
    ],
)
def test_unretained(record: list[int | Missed], word: str) -> None:
    verdict = Verdict()
    judge_live(client(LIVE, record), sources(LIVE, 5, {2: 2}), verdict)
    assert any(word in failure for failure in verdict.failures) if word else not verdict.failures


@pytest.mark.parametrize(
    ("gap", "fault", "due"),
    [
        (GAP, (40.0, "kill broker"), True),
        (GAP, (40.0, "kill node"), True),
        (GAP, (60.0, "kill node"), False),
        (GAP, (40.0, "cut broker"), False),
        (GAP, (40.0, "cut clients"), False),
        (ELSEWHERE, (40.0, "cut clients"), True),
    ],
)
def test_gaps_that_are_due(gap: Missed, fault: tuple[float, str], due: bool) -> None:
    verdict = Verdict()
    judge_gaps(client(LIVE, [1, gap, 2]), [fault], verdict)
    assert not verdict.failures if due else "not due" in verdict.failures[0]


@pytest.mark.parametrize("gap", [GAP, ELSEWHERE, Missed("x", 50.0, "one", False, slept=True)])
def test_no_gap_is_due_where_everything_is_kept(gap: Missed) -> None:
    verdict = Verdict()
    judge_gaps(client(LIVE, [1, gap, 2]), [(40.0, "kill broker")], verdict, never=True)
    assert "not due" in verdict.failures[0]


@pytest.mark.parametrize("wide", ["/topic/kept.keyed", "/exchange/kept.keyed/#"])
def test_a_destination_of_several_sources(wide: str) -> None:
    known = {source.key: source for source in make_kafka_sources()}
    keyed = [source for source in known.values() if source.reaches(wide)]
    assert len(keyed) == 4
    for source in known.values():
        source.confirmed = 1
    page = Client("page", "", lambda port: "", "1", KEPT, [wide], [sse])
    page.record += [Seen(source.key, 1, source.key) for source in keyed]
    verdict = Verdict()
    judge_kept(page, known, verdict)
    assert not verdict.failures
    page.record.pop()
    judge_kept(page, known, verdict)
    assert verdict.failures == [f"page: {keyed[-1].key} ends at 0 of 1"]


@pytest.mark.parametrize(
    ("got", "acked", "word"),
    [
        ([False], 1, ""),
        ([False, True], 2, ""),
        ([False, True], 0, "never acked"),
        ([], 0, "never acked"),
        ([False, False], 2, "came unmarked again"),
    ],
)
def test_work(got: list[bool], acked: int, word: str) -> None:
    worker = Worker("worker", "", lambda port: "", "1", "chaos-a", websocket_work)
    for at, redelivered in enumerate(got):
        worker.deliveries.append(Delivery("worker", "work.a", 1, redelivered, float(at)))
    worker.acked["work.a", 1] = acked
    known = sources(WORK, 1).values()
    verdict = Verdict()
    judge_work([worker], known, [(10.0, "kill broker")], verdict)
    assert word in verdict.failures[0] if word else not verdict.failures
    if len(got) == 2 and word.startswith("came"):
        crashed = Verdict()
        judge_work([worker], known, [(0.5, "kill broker")], crashed)
        assert not crashed.failures
        judge_work([worker], known, [(0.5, "kill node")], crashed)
        assert len(crashed.failures) == 1
        judge_work([worker], known, [(0.5, "kill node")], crashed, UNMARKED)
        assert len(crashed.failures) == 1


def test_a_seed_is_a_schedule() -> None:
    def made(seed: int, apart: bool = True) -> list[str]:
        return [str(fault) for fault in make_schedule(seed, 30.0, nodes=2, apart=apart)]

    assert made(7) == made(7) != made(8)
    for seed in range(20):
        schedule = make_schedule(seed, 30.0, nodes=2, apart=True)
        assert {fault.kind for fault in schedule} == set(KINDS), seed
        assert all(CALM <= fault.at < 30 for fault in schedule)
        alone = make_schedule(seed, 30.0, nodes=1, apart=False)
        assert {fault.kind for fault in alone} == set(KINDS) - APART
