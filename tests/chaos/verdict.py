"""The verdict: what clients recorded against what publishers know."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.clients import Client, Delivery, Missed, Seen, Worker
from tests.chaos.sources import WORK, Source

# Seconds after a fault at the broker within which a gateway may still tell of it.
_AFTERMATH = 90.0


@dataclass
class Verdict:
    """failures: one line each, at most so many of a client. counts: what is worth printing."""

    failures: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def judge_kept(client: Client, sources: dict[str, Source], verdict: Verdict) -> None:
    """A retained destination: 1..N in order, once, and never a gap."""
    seen: defaultdict[str, list[int]] = defaultdict(list)
    positions: set[str] = set()
    for each in client.record:
        if isinstance(each, Missed):
            verdict.counts["gaps of retained"] += 1
            verdict.failures.append(f"{client.name}: a gap in what is retained: {each}")
            continue
        seen[each.key].append(each.number)
        if each.position in positions:
            verdict.failures.append(f"{client.name}: {each} came twice")
        positions.add(each.position)
    for key in _keys(client, sources):
        _judge_run(client.name, sources[key], seen[key], verdict)


def _judge_run(name: str, source: Source, numbers: list[int], verdict: Verdict) -> None:
    expected = 1
    copies: Counter[int] = Counter()
    for number in numbers:
        copies[number] += 1
        if number == expected:
            expected += 1
        elif number > expected:
            verdict.failures.append(f"{name}: {source.key} {expected}..{number - 1} are missing")
            expected = number + 1
        elif copies[number] > source.may_be(number):
            verdict.failures.append(f"{name}: {source.key}:{number} came {copies[number]} times")
        else:
            verdict.counts["second copies of retried numbers"] += 1
    if expected != source.confirmed + 1:
        verdict.failures.append(
            f"{name}: {source.key} ends at {expected - 1} of {source.confirmed}"
        )


def judge_same(clients: Iterable[Client], sources: dict[str, Source], verdict: Verdict) -> None:
    """All clients of a retained destination saw the same, second copies included."""
    runs: defaultdict[str, defaultdict[tuple[int, ...], list[str]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for client in clients:
        for key in _keys(client, sources):
            run = tuple(
                each.number for each in client.record if isinstance(each, Seen) and each.key == key
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
    client: Client, faults: Sequence[tuple[float, str]], verdict: Verdict, *, never: bool = False
) -> None:
    """A gap is due where a gateway or the broker died, for another gateway's position, or for who
    slept; cut connections alone owe nobody one. never: the broker keeps everything, for all."""
    for each in client.record:
        if not isinstance(each, Missed) or ((each.fresh or each.slept) and not never):
            continue
        due = not never and any(
            kind in ("kill broker", "kill node") and 0 <= each.at - at < _AFTERMATH
            for at, kind in faults
        )
        if not due:
            verdict.failures.append(f"{client.name}: a gap that was not due: {each}")


def judge_work(
    workers: Iterable[Worker],
    sources: Iterable[Source],
    faults: Sequence[tuple[float, str]],
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
    kills = [at for at, kind in faults if kind in unmarked]
    for source in sources:
        if source.kind != WORK:
            continue
        for number in range(1, source.confirmed + 1):
            got = sorted(deliveries[source.key, number], key=lambda each: each.at)
            if not acked[source.key, number]:
                verdict.failures.append(f"{source.key}:{number} was never acked: {got}")
            new = [each for each in got if not each.redelivered]
            verdict.counts["redeliveries"] += len(got) - len(new)
            if len(new) <= source.may_be(number):
                continue
            # RabbitMQ forgets in a crash what it had delivered, and does not mark it; Kafka knows
            # what was committed.
            if any(new[0].at <= kill <= new[-1].at for kill in kills):
                verdict.counts["redeliveries after a fault, not marked"] += 1
                continue
            verdict.failures.append(f"{source.key}:{number} came unmarked again: {got}")


def _keys(client: Client, sources: dict[str, Source]) -> list[str]:
    return [
        key
        for key, source in sources.items()
        if any(source.reaches(destination) for destination in client.destinations)
    ]
