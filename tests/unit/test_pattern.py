"""Containment of topic patterns, against the definition itself over all short keys."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from queuecast import pattern
from queuecast.pattern import contains, is_pattern

Words = tuple[str, ...]

# "z" occurs in no pattern: what a wildcard alone can match.
KEYS: list[Words] = [key for length in range(7) for key in itertools.product("az", repeat=length)]


def matches(words: Words, key: Words) -> bool:
    """Match by the definition: # is any number of words, * is one."""
    if not words:
        return not key
    if words[0] == "#":
        return any(matches(words[1:], key[taken:]) for taken in range(len(key) + 1))
    return bool(key) and words[0] in ("*", key[0]) and matches(words[1:], key[1:])


PATTERNS = st.lists(st.sampled_from("a*#"), min_size=1, max_size=4).map(tuple)


@settings(max_examples=600, deadline=None)
@given(PATTERNS, PATTERNS)
def test_contains_is_exactly_that_every_key_of_inner_matches_outer(
    outer: Words, inner: Words
) -> None:
    expected = all(matches(outer, key) for key in KEYS if matches(inner, key))
    assert contains(".".join(outer), ".".join(inner)) is expected


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("public.#", "#", False),
        ("public.#", "public", True),
        ("public.#", "public.#", True),
        ("public.#", "public.*.x", True),
        ("public.*", "public.#", False),
        ("*.#", "#.a", True),
        ("#.*", "*.#", True),
        ("#", "", True),
        ("*", "", False),
        ("", "", True),
        ("价格.*", "价格.大", True),
    ],
)
def test_examples(outer: str, inner: str, expected: bool) -> None:
    assert contains(outer, inner) is expected


def test_a_pattern_that_costs_too_much_counts_as_not_contained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outer, inner = "#.costly.#", "#.costly.*.#"
    assert contains.__wrapped__(outer, inner) is True
    monkeypatch.setattr(pattern, "_MAX_STEPS", 3)
    assert contains.__wrapped__(outer, inner) is False


def test_is_pattern() -> None:
    assert is_pattern("a.*")
    assert is_pattern("#")
    assert not is_pattern("a*.b#")
