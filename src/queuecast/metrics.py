"""Measured values, and how Prometheus wants to read them (text exposition format 0.0.4).

Nothing here counts: hub, sessions, sockets and brokers count in plain integers of their own, and
a scrape makes families of them. So a delivered message costs no more for being measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Kind = Literal["counter", "gauge", "histogram"]
Number = int | float
Labels = tuple[tuple[str, str], ...]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Values of one label that are counted apart; a reason that is free text must not grow memory.
_MOST_VALUES = 32
OTHER = "other"


class Sample(NamedTuple):
    """One value. suffix: what follows the family's name, as in "_bucket"."""

    value: Number
    labels: Labels = ()
    suffix: str = ""


class Family(NamedTuple):
    """All samples of one name."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]


def counter(name: str, help: str, value: Number) -> Family:
    """Return a family of one value that only grows; its name ends in _total."""
    return Family(name, "counter", help, (Sample(value),))


def gauge(name: str, help: str, value: Number) -> Family:
    """Return a family of one value that goes up and down."""
    return Family(name, "gauge", help, (Sample(value),))


def by_label(name: str, kind: Kind, help: str, label: str, values: Mapping[str, Number]) -> Family:
    """Return a family with one sample for each value of a label."""
    samples = [Sample(values[each], ((label, each),)) for each in sorted(values)]
    return Family(name, kind, help, samples)


def histogram(
    name: str, help: str, bounds: Sequence[Number], counts: Sequence[int], total: Number
) -> Family:
    """Return a histogram. counts: not cumulative, with one more for what is beyond all bounds."""
    samples = []
    seen = 0
    for bound, count in zip((*bounds, math.inf), counts, strict=True):
        seen += count
        samples.append(Sample(seen, (("le", _number(bound)),), "_bucket"))
    samples += [Sample(total, (), "_sum"), Sample(seen, (), "_count")]
    return Family(name, "histogram", help, samples)


def count_up(counts: dict[str, int], value: str) -> None:
    """Count one more of a label's value; of too many values the later ones are one."""
    if value not in counts and len(counts) >= _MOST_VALUES:
        value = OTHER
    counts[value] = counts.get(value, 0) + 1


def merged(parts: Mapping[str, Iterable[Family]], label: str) -> list[Family]:
    """Return the families of several processes as one, each sample under its process's label.

    Not sums: a process that begins again begins at 0, and only in a series of its own can
    Prometheus know that from a reset of all of them.
    """
    found: dict[str, Family] = {}
    for part, families in parts.items():
        for family in families:
            samples = [
                sample._replace(labels=((label, part), *sample.labels)) for sample in family.samples
            ]
            known = found.get(family.name)
            if known is not None:
                samples = [*known.samples, *samples]
            found[family.name] = family._replace(samples=samples)
    return list(found.values())


def render(families: Iterable[Family]) -> bytes:
    """Write the text that Prometheus scrapes."""
    lines: list[str] = []
    for name, kind, help, samples in families:
        lines.append(f"# HELP {name} {_escaped(help)}")
        lines.append(f"# TYPE {name} {kind}")
        for value, labels, suffix in samples:
            lines.append(f"{name}{suffix}{_labels(labels)} {_number(value)}")
    return ("\n".join(lines) + "\n").encode()


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    inner = ",".join(f'{name}="{_quoted(value)}"' for name, value in labels)
    return f"{{{inner}}}"


def _number(value: Number) -> str:
    if value == math.inf:
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")
