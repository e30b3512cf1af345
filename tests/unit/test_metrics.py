"""The exposition format, read back with the parser of Prometheus' own client."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from queuecast.metrics import (
    Family,
    Sample,
    by_label,
    count_up,
    counter,
    gauge,
    histogram,
    merged,
    render,
)


def read(families: list[Family]) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(render(families).decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


@given(st.text(), st.text(), st.integers(0, 2**53) | st.floats(0, 1e12))
def test_any_text_and_number_comes_back(value: str, help: str, number: float) -> None:
    found = read([Family("a", "gauge", help, [Sample(number, (("x", value),))])])
    assert found == {("a", frozenset({("x", value)})): float(number)}


def test_a_histogram_is_cumulative() -> None:
    found = read([histogram("h", "H.", (0.5, 1), [3, 2, 1], 4.25)])
    none: frozenset[tuple[str, str]] = frozenset()
    assert found == {
        ("h_bucket", frozenset({("le", "0.5")})): 3,
        ("h_bucket", frozenset({("le", "1")})): 5,
        ("h_bucket", frozenset({("le", "+Inf")})): 6,
        ("h_sum", none): 4.25,
        ("h_count", none): 6,
    }


def test_several_processes_are_one_family_with_a_label() -> None:
    def one(number: int) -> list[Family]:
        return [
            counter("c_total", "C.", number),
            by_label("g", "gauge", "G.", "kind", {"a": number, "b": 0}),
        ]

    found = merged({"0": one(1), "1": [*one(2), gauge("only", "One's.", 5)]}, "worker")
    assert [family.name for family in found] == ["c_total", "g", "only"]
    values = read(found)
    assert values["c_total", frozenset({("worker", "0")})] == 1
    assert values["c_total", frozenset({("worker", "1")})] == 2
    assert values["g", frozenset({("worker", "1"), ("kind", "a")})] == 2
    assert values["only", frozenset({("worker", "1")})] == 5


def test_ever_new_reasons_are_one_in_the_end() -> None:
    counts: dict[str, int] = {}
    for number in range(100):
        count_up(counts, f"reason {number}")
    assert len(counts) == 33
    assert counts["other"] == 68
    assert sum(counts.values()) == 100
