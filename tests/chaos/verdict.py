"""The verdict: what clients recorded against what publishers know."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from tests.chaos.clients import Client, Delivery, Missed, Seen, Visitor, Worker
from tests.chaos.diary import MENDED, Diary, covered
from tests.chaos.sources import WORK, Source

# Seconds after a fault at the broker within which a gateway may still tell of it.
_AFTERMATH = 90.0

# Seconds after which a client is live again where a majority of the broker's nodes lives.
LIVE_AGAIN = 15.0

# Faults for which a gap of what is not retained is due.
_GAPS = frozenset(
    {
        *("kill node", "kill broker"),
        *("kill member", "freeze member", "hold member", "restart members", "kill both"),
    }
)

# Faults that make everybody wait for as long as they last, whatever a gateway does.
_STALLS = frozenset({"stall clients", "stall broker", "kill node"})


@dataclass
class Verdict:
    """failures: one line each, at most so many of a client. counts: what is worth printing."""

    failures: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def judge_kept(client: Client, sources: dict[str, Source], diary: Diary, verdict: Verdict) -> None:
    """A retained destination: 1..N in order, once, and no gap but for what operators destroyed."""
    keys = _keys(client, sources)
    seen: defaultdict[str, list[int]] = defaultdict(list)
    # Before which of a source's messages a gap was told.
    told: defaultdict[str, set[int]] = defaultdict(set)
    positions: set[str] = set()
    for each in client.record:
        if isinstance(each, Missed):
            verdict.counts["gaps of retained"] += 1
            if not _destroyed_before(each, keys, sources, diary):
                verdict.failures.append(f"{client.name}: a gap in what is retained: {each}")
            for key in keys:
                told[key].add(len(seen[key]))
            continue
        seen[each.key].append(each.number)
        if each.position in positions:
            verdict.failures.append(f"{client.name}: {each} came twice")
        positions.add(each.position)
    for key in keys:
        _judge_run(client.name, sources[key], seen[key], told[key], diary, verdict)


def _destroyed_before(
    gap: Missed, keys: Iterable[str], sources: dict[str, Source], diary: Diary
) -> bool:
    """Return whether an operator has destroyed something that a gap may tell of."""
    return any(
        gap.at - event.began >= 0 and gap.at - event.ended < _AFTERMATH
        for key in keys
        for event in diary.harming(sources[key])
        if not event.shuffles
    )


def _judge_run(
    name: str,
    source: Source,
    numbers: list[int],
    told: set[int],
    diary: Diary,
    verdict: Verdict,
) -> None:
    missing: set[int] = set()
    expected = 1
    copies: Counter[int] = Counter()
    # A gap is told for a hole if it came after the message before it.
    gap = False
    for index, number in enumerate(numbers):
        gap |= index in told
        copies[number] += 1
        if number >= expected:
            hole = set(range(expected, number))
            if gap:
                destroyed = {each for each in hole if diary.destroyed(source, each)}
                verdict.counts["messages that gaps told of"] += len(destroyed)
                hole -= destroyed
            missing |= hole
            expected, gap = number + 1, False
        elif number in missing and diary.shuffled(source, number):
            missing.discard(number)
        elif copies[number] > source.may_be(number):
            verdict.failures.append(f"{name}: {source.key}:{number} came {copies[number]} times")
        else:
            verdict.counts["second copies of retried numbers"] += 1
    if missing:
        verdict.failures.append(f"{name}: {source.key} {_ranges(missing)} are missing")
    if expected != source.confirmed + 1:
        verdict.failures.append(
            f"{name}: {source.key} ends at {expected - 1} of {source.confirmed}"
        )


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as "2..5, 7..7"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{first}..{last}" for first, last in runs)


def judge_same(
    clients: Iterable[Client], sources: dict[str, Source], diary: Diary, verdict: Verdict
) -> None:
    """All clients of a retained destination saw the same, second copies included; but for what was
    destroyed, which some of them had seen before."""
    runs: defaultdict[str, defaultdict[tuple[int, ...], list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for client in clients:
        for key in _keys(client, sources):
            source = sources[key]
            run = tuple(
                each.number
                for each in client.record
                if isinstance(each, Seen)
                and each.key == key
                and not diary.destroyed(source, each.number)
                and not diary.shuffled(source, each.number)
            )
            runs[key][run].append(client.name)
    for key, found in runs.items():
        if len(found) > 1:
            fewest = min(found.values(), key=len)
            verdict.failures.append(f"{key}: not the same for all, {fewest[:5]} are different")


def judge_live(client: Client, sources: dict[str, Source], verdict: Verdict) -> None:
    """An unretained destination: in order, without repetition, each hole behind a gap."""
    last: dict[str, int] = {}
    copies: Counter[tuple[str, int]] = Counter()
    # The gaps since each source's last new message.
    told: defaultdict[str, list[Missed]] = defaultdict(list)
    for index, each in enumerate(client.record):
        if isinstance(each, Missed):
            verdict.counts["gaps"] += 1
            for key in sources:
                told[key].append(each)
            continue
        key, number = each.key, each.number
        gaps, told[key] = told[key], []
        before = last.get(key)
        copies[key, number] += 1
        if before is None or number == before + 1:
            last[key] = number
        elif number > before:
            verdict.counts["messages that gaps told of"] += number - before - 1
            if not gaps:
                verdict.failures.append(
                    f"{client.name}: {key} {before + 1}..{number - 1} are missing in silence: "
                    f"{_around(client, index)}"
                )
            last[key] = number
        elif copies[key, number] <= sources[key].may_be(number):
            verdict.counts["second copies of retried numbers"] += 1
            # It may have been on its way for long: what was missed may still be behind it.
            told[key] = gaps
        else:
            verdict.failures.append(
                f"{client.name}: {key}:{number} again after {before}: {_around(client, index)}"
            )
    for key in _keys(client, sources):
        if last.get(key, 0) != sources[key].confirmed:
            verdict.failures.append(
                f"{client.name}: {key} ends at {last.get(key)} of {sources[key].confirmed}"
            )


def _around(client: Client, index: int) -> str:
    """Say what came about that place of a client's record, for whoever looks for the cause."""
    return " | ".join(str(each) for each in client.record[max(0, index - 6) : index + 3])


def judge_gaps(
    client: Client,
    sources: dict[str, Source],
    diary: Diary,
    verdict: Verdict,
    *,
    never: bool = False,
) -> None:
    """A gap is due where a gateway or the broker died, where an operator destroyed something, for
    another gateway's position, or for who slept; cut connections alone owe nobody one. never: the
    broker keeps everything that operators leave it."""
    keys = _keys(client, sources)
    for each in client.record:
        if not isinstance(each, Missed) or ((each.fresh or each.slept) and not never):
            continue
        due = not never and any(
            event.kind in _GAPS
            and each.at - event.began >= 0
            and each.at - event.ended < _AFTERMATH
            for event in diary.events
        )
        if not due and not _destroyed_before(each, keys, sources, diary):
            verdict.failures.append(f"{client.name}: a gap that was not due: {each}")


def judge_delay(
    client: Client, sources: dict[str, Source], diary: Diary, verdict: Verdict, *, fail: bool
) -> None:
    """A client that is there gets what was published, or what came after it, within LIVE_AGAIN;
    fail: else it is a failure. The time that faults make everybody wait is not counted."""
    last: defaultdict[str, int] = defaultdict(int)
    keys = set(_keys(client, sources))
    worst: tuple[float, Seen | None] = (0.0, None)
    for each in client.record:
        if isinstance(each, Missed) or each.key not in keys or each.number <= last[each.key]:
            continue
        first = last[each.key] + 1
        last[each.key] = each.number
        began = sources[each.key].confirmed_at.get(first)
        if began is None or first == 1:  # A client may begin late.
            continue
        away = [(start - 1, end + 1) for start, end in client.absences]
        away += [(e.began, e.ended) for e in diary.events if e.kind in _STALLS]
        waited = each.at - began - covered(away, began, each.at)
        if waited > worst[0]:
            worst = waited, each
    longest = "longest wait of a client, ms"
    verdict.counts[longest] = max(verdict.counts[longest], int(worst[0] * 1000))
    if fail and worst[0] > LIVE_AGAIN:
        verdict.failures.append(f"{client.name}: {worst[1]} came {worst[0]:.1f} s late")


def judge_refusals(
    visitor: Visitor, sources: dict[str, Source], diary: Diary, verdict: Verdict
) -> None:
    """Nothing is refused for good, except where an operator has just taken it away."""
    reached = [
        source
        for source in sources.values()
        if (isinstance(visitor, Worker) and source.queue == visitor.queue)
        or (isinstance(visitor, Client) and any(map(source.reaches, visitor.destinations)))
    ]
    for at, text in visitor.refusals:
        if any(_harmed(source, at, diary) for source in reached):
            verdict.counts["refusals of what an operator took away"] += 1
        else:
            verdict.failures.append(f"{visitor.name}: refused at {at:.2f}: {text}")


def judge_publishing(source: Source, diary: Diary, verdict: Verdict, *, acks: bool) -> None:
    """No publish is refused because of us. acks: a queue that only the gateways use never makes
    the broker refuse one, to them or to others."""
    for at, text in source.denied:
        if not _harmed(source, at, diary):
            verdict.failures.append(f"{source.key}: not published at {at:.2f}: {text}")
    verdict.counts["publishes that the broker refused"] += len(source.nacked)
    if acks and source.kind != WORK:
        nacked = [each for each in source.nacked if not _harmed(source, each[0], diary)]
        if nacked:
            at, text = nacked[0]
            verdict.failures.append(
                f"{source.key}: {len(nacked)} refused by the broker, first at {at:.2f}: {text}"
            )


def _harmed(source: Source, at: float, diary: Diary) -> bool:
    return any(event.overlaps(at - MENDED, at) for event in diary.harming(source))


def judge_work(
    workers: Iterable[Worker],
    sources: Iterable[Source],
    diary: Diary,
    verdict: Verdict,
    unmarked: Collection[str] = ("kill broker",),
) -> None:
    """A durable queue: each answered message acked, and by one alone but for redeliveries.

    unmarked: the faults after which the broker may not mark them.
    """
    deliveries: defaultdict[tuple[str, int], list[Delivery]] = defaultdict(list)
    acked: Counter[tuple[str, int]] = Counter()
    for worker in workers:
        acked.update(worker.acked)
        for each in worker.deliveries:
            deliveries[each.key, each.number].append(each)
    kills = [event for event in diary.events if event.kind in unmarked]
    for source in sources:
        if source.kind != WORK:
            continue
        for number in range(1, source.confirmed + 1):
            got = sorted(deliveries[source.key, number], key=lambda each: each.at)
            if not acked[source.key, number] and diary.destroyed(source, number):
                verdict.counts["destroyed in their queue"] += 1
            elif not acked[source.key, number]:
                verdict.failures.append(f"{source.key}:{number} was never acked: {got}")
            new = [each for each in got if not each.redelivered]
            verdict.counts["redeliveries"] += len(got) - len(new)
            if len(new) <= source.may_be(number):
                continue
            # RabbitMQ forgets in a crash what it had delivered, and does not mark it; Kafka knows
            # what was committed.
            if any(kill.overlaps(new[0].at, new[-1].at) for kill in kills):
                verdict.counts["redeliveries after a fault, not marked"] += 1
                continue
            verdict.failures.append(f"{source.key}:{number} came unmarked again: {got}")


def _keys(client: Client, sources: dict[str, Source]) -> list[str]:
    return [
        key
        for key, source in sources.items()
        if any(source.reaches(destination) for destination in client.destinations)
    ]
