"""The chaos test's verdict: it finds what it is there to find, and its schedule comes again."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.clients import Client, Delivery, Missed, Seen, Worker
from tests.chaos.diary import MENDED, Diary, Event, covered
from tests.chaos.kafka import UNMARKED
from tests.chaos.kafka import make_sources as make_kafka_sources
from tests.chaos.schedule import ANYWHERE, CALM, GROUPS, KINDS, choose_kinds, make_schedule
from tests.chaos.sources import KEPT, LIVE, WORK, Source
from tests.chaos.transports import sse, websocket_work
from tests.chaos.verdict import (
    LIVE_AGAIN,
    Verdict,
    judge_delay,
    judge_gaps,
    judge_kept,
    judge_live,
    judge_publishing,
    judge_refusals,
    judge_same,
    judge_work,
)

GAP = Missed("lost", 50.0, "one", fresh=False, slept=False)
ELSEWHERE = Missed("epoch", 50.0, "two", fresh=True, slept=False)

PEACE = Diary()


def faults(*happened: tuple[float, str], harms: str = "", past: bool = False) -> Diary:
    """A diary of faults of no length; harms: a source's key."""
    keys = frozenset({harms} if harms else ())
    return Diary(Event(kind, at, at, harms=keys, past=past) for at, kind in happened)


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
    judge_kept(client(KEPT, record), sources(KEPT, 3, {2: 2}), PEACE, verdict)
    assert any(word in failure for failure in verdict.failures) if word else not verdict.failures


def test_a_position_comes_once() -> None:
    twice = client(KEPT, [1])
    twice.record.append(twice.record[0])
    verdict = Verdict()
    judge_kept(twice, sources(KEPT, 1, {1: 2}), PEACE, verdict)
    assert "came twice" in verdict.failures[0]


def test_all_see_the_same() -> None:
    verdict = Verdict()
    known = sources(KEPT, 2, {1: 2})
    judge_same([client(KEPT, [1, 2]), client(KEPT, [1, 2])], known, PEACE, verdict)
    assert not verdict.failures
    judge_same([client(KEPT, [1, 2]), client(KEPT, [1, 1, 2])], known, PEACE, verdict)
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
    judge_gaps(client(LIVE, [1, gap, 2]), sources(LIVE, 2), faults(fault), verdict)
    assert not verdict.failures if due else "not due" in verdict.failures[0]


@pytest.mark.parametrize("gap", [GAP, ELSEWHERE, Missed("x", 50.0, "one", False, slept=True)])
def test_no_gap_is_due_where_everything_is_kept(gap: Missed) -> None:
    verdict = Verdict()
    killed = faults((40.0, "kill broker"))
    judge_gaps(client(LIVE, [1, gap, 2]), sources(LIVE, 2), killed, verdict, never=True)
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
    judge_kept(page, known, PEACE, verdict)
    assert not verdict.failures
    page.record.pop()
    judge_kept(page, known, PEACE, verdict)
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
    judge_work([worker], known, faults((10.0, "kill broker")), verdict)
    assert word in verdict.failures[0] if word else not verdict.failures
    if len(got) == 2 and word.startswith("came"):
        crashed = Verdict()
        judge_work([worker], known, faults((0.5, "kill broker")), crashed, {"kill broker"})
        assert not crashed.failures
        judge_work([worker], known, faults((0.5, "kill node")), crashed)
        assert len(crashed.failures) == 1
        judge_work([worker], known, faults((0.5, "kill node")), crashed, UNMARKED)
        assert len(crashed.failures) == 1


HOLE: list[int | Missed] = [1, 2, 5, 6]
TOLD: list[int | Missed] = [1, 2, GAP, 5, 6]


def published(kind: str, confirmed: int) -> dict[str, Source]:
    """A source whose number n was confirmed at 40 + n."""
    known = sources(kind, confirmed)
    for source in known.values():
        source.confirmed_at = {number: 40.0 + number for number in range(1, confirmed + 1)}
    return known


@pytest.mark.parametrize(
    ("record", "at", "past", "word"),
    [
        (TOLD, 42.5, False, ""),
        (HOLE, 42.5, False, "3..4 are missing"),
        # What was published before the exchange went is in the stream.
        (TOLD, 43.5, False, "3..3 are missing"),
        (TOLD, 44.5, True, ""),
        # Long after it everything has to be there.
        (TOLD, 43.0 - MENDED - 1, True, "3..4 are missing"),
        (TOLD, 60.0, True, "a gap in what is retained"),
        ([1, 2, 3, 4, GAP, 5, 6], 42.5, False, ""),
    ],
)
def test_what_an_operator_destroyed_is_told(
    record: list[int | Missed], at: float, past: bool, word: str
) -> None:
    verdict = Verdict()
    diary = faults((at, "unbind"), harms="kept.a", past=past)
    judge_kept(client(KEPT, record), published(KEPT, 6), diary, verdict)
    assert any(word in failure for failure in verdict.failures) if word else not verdict.failures


def test_what_an_operator_did_to_another_source_excuses_nothing() -> None:
    verdict = Verdict()
    diary = faults((42.5, "unbind"), harms="kept.b")
    judge_kept(client(KEPT, TOLD), published(KEPT, 6), diary, verdict)
    assert any("a gap in what is retained" in failure for failure in verdict.failures)
    assert any("3..4 are missing" in failure for failure in verdict.failures)


def test_records_that_a_new_partition_moved_have_no_order() -> None:
    moved = Diary([Event("add partitions", 42.0, 42.0, harms=frozenset({"kept.a"}), shuffles=True)])
    for record, word in (((1, 3, 2, 4), ""), ((1, 3, 4), "2..2 are missing")):
        verdict = Verdict()
        judge_kept(client(KEPT, [*record]), published(KEPT, 4), moved, verdict)
        assert word in verdict.failures[0] if word else not verdict.failures


def test_a_gap_is_due_after_what_an_operator_did() -> None:
    for never in (False, True):
        verdict = Verdict()
        diary = faults((45.0, "delete feed queues"), harms="live.a", past=True)
        known = sources(LIVE, 2)
        judge_gaps(client(LIVE, [1, GAP, 2]), known, diary, verdict, never=never)
        assert not verdict.failures


def test_a_queue_that_was_deleted_takes_its_messages_along() -> None:
    known = published(WORK, 1)
    for at, failed in ((41.5, False), (20.0, True)):
        verdict = Verdict()
        diary = faults((at, "recreate queue"), harms="work.a", past=True)
        judge_work([], known.values(), diary, verdict)
        assert bool(verdict.failures) == failed


@pytest.mark.parametrize(
    ("late", "absence", "failed"),
    [
        (1.0, None, False),
        (LIVE_AGAIN + 1, None, True),
        (LIVE_AGAIN + 1, (50.0, 55.0), False),
        (LIVE_AGAIN + 10, (50.0, 52.0), True),
    ],
)
def test_a_client_is_live_again_in_time(
    late: float, absence: tuple[float, float] | None, failed: bool
) -> None:
    page = client(LIVE, [])
    page.record = [Seen("live.a", 1, "1", 41.1), Seen("live.a", 2, "2", 42.0 + late)]
    page.absences = [absence] if absence else []
    for fail in (True, False):
        verdict = Verdict()
        judge_delay(page, published(LIVE, 2), PEACE, verdict, fail=fail)
        assert bool(verdict.failures) == (failed and fail)
        assert verdict.counts["longest wait of a client, ms"] > 0


def test_time_that_lies_in_spans() -> None:
    assert covered([(0, 2), (1, 3), (8, 20), (5, 5)], 1, 10) == 4
    assert covered([], 1, 10) == 0


@pytest.mark.parametrize(
    ("kind", "acks", "harms", "failures"),
    [
        (LIVE, True, "", 2),
        (LIVE, False, "", 1),
        (WORK, True, "", 1),
        (LIVE, True, "live.a", 0),
    ],
)
def test_no_publish_is_refused_because_of_us(
    kind: str, acks: bool, harms: str, failures: int
) -> None:
    source = Source("a", kind, "amqp", 0, nacked=[(50.0, "nack")], denied=[(50.0, "404")])
    verdict = Verdict()
    judge_publishing(source, faults((45.0, "unbind"), harms=harms), verdict, acks=acks)
    assert len(verdict.failures) == failures
    assert verdict.counts["publishes that the broker refused"] == 1


def test_a_subscription_is_refused_only_where_an_operator_was() -> None:
    for page in (
        client(LIVE, []),
        Worker("worker", "", lambda port: "", "1", "chaos-a", websocket_work),
    ):
        kind = LIVE if isinstance(page, Client) else WORK
        page.refusals.append((50.0, "not found"))
        for harms, failed in ((f"{kind}.a", False), ("kept.b", True)):
            verdict = Verdict()
            diary = faults((45.0, "delete exchange"), harms=harms)
            judge_refusals(page, sources(kind, 1), diary, verdict)
            assert bool(verdict.failures) == failed


def test_a_seed_is_a_schedule() -> None:
    kinds = choose_kinds(KINDS, GROUPS)

    def made(seed: int) -> list[str]:
        return [str(fault) for fault in make_schedule(seed, 60.0, nodes=2, kinds=kinds)]

    assert made(7) == made(7) != made(8)
    for seed in range(20):
        schedule = make_schedule(seed, 60.0, nodes=2, kinds=kinds)
        assert {fault.kind for fault in schedule} == set(KINDS), seed
        assert all(CALM <= fault.at < 60 for fault in schedule)
        assert sum(fault.first for fault in schedule) == len(KINDS)


def test_faults_are_chosen_by_their_group() -> None:
    assert set(choose_kinds(ANYWHERE, GROUPS)) == ANYWHERE
    assert choose_kinds(ANYWHERE, ["node"]) == ["kill node"]
    assert not choose_kinds(ANYWHERE, ["operator"])
    assert {KINDS[kind].group for kind in choose_kinds(KINDS, ["operator"])} == {"operator"}
