"""The indexes: what matches, each target once, and no slowing down with many bindings."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuecast.brokers.matching import (
    CACHE_KEYS,
    DirectIndex,
    FanoutIndex,
    HeadersIndex,
    Index,
    TopicIndex,
    new_index,
)
from queuecast.errors import BadRequest
from queuecast.pattern import contains

words = st.sampled_from(["a", "b", ""])
keys = st.lists(words, min_size=1, max_size=5).map(".".join).filter(bool)
patterns = (
    st.lists(st.sampled_from(["a", "b", "*", "#", ""]), min_size=1, max_size=5)
    .map(".".join)
    .filter(bool)
)


@given(st.lists(patterns, max_size=8), st.lists(st.integers(0, 7)), keys)
def test_topic_index_finds_what_the_patterns_say(
    bound: list[str], removed: list[int], key: str
) -> None:
    index: TopicIndex[int] = TopicIndex()
    left = dict(enumerate(bound))
    for target, pattern in left.items():
        assert index.add(pattern, target)
    index.match(key)  # fills the cache, which the removals below must clear
    for target in removed:
        if target in left:
            assert index.remove(left.pop(target), target)
    expected = {target for target, pattern in left.items() if contains(pattern, key)}
    for _ in range(2):
        found = index.match(key)
        assert set(found) == expected
        assert len(found) == len(expected)
    assert len(index) == len(left)


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("#", "", True),
        ("*", "", False),  # an empty key has no words
        ("", "", True),
        ("", "a", False),
        ("a.#", "a", True),
        ("#.#.#", "a", True),
        ("a.*", "a.", True),
        ("a.#.b", "a.#.b", True),
        ("a.b", "a.#", False),
        ("a.b", "a.*", False),
    ],
)
def test_topic_edges(pattern: str, key: str, matches: bool) -> None:
    index: TopicIndex[str] = TopicIndex()
    index.add(pattern, "target")
    assert list(index.match(key)) == (["target"] if matches else [])


def test_topic_visits_do_not_grow_with_the_bindings() -> None:
    visits = []
    for count in (10, 100_000):
        index: TopicIndex[int] = TopicIndex()
        for number in range(count):
            index.add(f"job.{number}.#" if number % 2 else f"job.{number}.done", number)
        index.match("job.5.done")
        visits.append(index.visited)
    assert visits[0] == visits[1] < 20


def test_topic_visits_of_hostile_patterns_are_bounded() -> None:
    index: TopicIndex[int] = TopicIndex()
    index.add(".".join(["#", "a"] * 30), 1)
    index.match(".".join(["a"] * 100 + ["b"]))
    # Each place of the pattern at most once a word: no exponential backtracking.
    assert index.visited <= 62 * 102


def test_topic_cache_is_bounded_and_answers_repeated_keys() -> None:
    index: TopicIndex[int] = TopicIndex()
    index.add("#", 1)
    for number in range(CACHE_KEYS * 2):
        index.match(str(number))
    assert len(index._cache) == CACHE_KEYS
    before = index.visited
    index.match(str(CACHE_KEYS * 2 - 1))
    assert index.visited == before


def test_topic_trie_shrinks_again() -> None:
    index: TopicIndex[int] = TopicIndex()
    for pattern in ("a.b.c", "a.b", "a.#"):
        index.add(pattern, 1)
    for pattern in ("a.b.c", "a.#", "a.b"):
        index.remove(pattern, 1)
    assert not index._root.children


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers"])
def test_a_target_comes_once_and_stays_until_its_last_binding_goes(kind: str) -> None:
    index: Index[str] = new_index(kind)
    assert index.add("a", "q")
    assert not index.add("a", "q")
    assert index.add("a", "q", {"n": None})
    assert index.add("a", "r")
    assert len(index) == 3
    assert list(index.match("a", {"n": 1})) == ["q", "r"]
    assert index.remove("a", "q")
    assert not index.remove("a", "q")
    assert set(index.match("a", {"n": 1})) == {"q", "r"}
    assert index.remove("a", "q", {"n": None})
    assert list(index.match("a", {"n": 1})) == ["r"]
    assert index.remove("a", "r")
    assert list(index.match("a", {"n": 1})) == []
    assert len(index) == 0


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers"])
def test_a_result_does_not_change_while_it_is_read(kind: str) -> None:
    index: Index[int] = new_index(kind)
    index.add("a", 1)
    index.add("a", 2)
    found = index.match("a")
    index.add("a", 3)
    index.remove("a", 1)
    assert list(found) == [1, 2]


def test_direct_and_fanout() -> None:
    direct: DirectIndex[str] = DirectIndex()
    direct.add("a", "x")
    direct.add("*", "y")
    assert list(direct.match("a")) == ["x"]
    assert list(direct.match("*")) == ["y"]
    fanout: FanoutIndex[str] = FanoutIndex()
    fanout.add("a", "x")
    fanout.add("b", "x")
    assert list(fanout.match("c")) == ["x"]


@pytest.mark.parametrize(
    ("arguments", "headers", "matches"),
    [
        ({}, {}, True),
        ({"x-match": "any"}, {"a": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"x-match": "any", "a": 1, "b": 2}, {"b": 2}, True),
        ({"x-match": "any", "a": 1, "b": 2}, {"b": 3}, False),
        ({"a": None}, {"a": "anything"}, True),
        ({"a": None}, {}, False),
        ({"x-a": 1, "b": 2}, {"b": 2}, True),
        ({"x-match": "all-with-x", "x-a": 1, "b": 2}, {"b": 2}, False),
        ({"x-match": "all-with-x", "x-a": 1, "b": 2}, {"b": 2, "x-a": 1}, True),
        ({"x-match": "any", "x-a": 1}, {"x-a": 1}, False),
        ({"x-match": "any-with-x", "x-a": 1}, {"x-a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": "1"}, {"a": b"1"}, True),
        ({"a": [1, {"b": "c"}]}, {"a": [1, {"b": "c"}]}, True),
        ({"a": [1, {"b": "c"}]}, {"a": [1, {"b": "d"}]}, False),
    ],
)
def test_headers(arguments: Mapping[str, Any], headers: Mapping[str, Any], matches: bool) -> None:
    index: HeadersIndex[str] = HeadersIndex()
    index.add("ignored", "q", arguments)
    assert list(index.match("", headers)) == (["q"] if matches else [])
    index.remove("ignored", "q", arguments)
    assert list(index.match("", headers)) == []
    assert not index._by_pair


tables = st.dictionaries(st.sampled_from("abc"), st.sampled_from([1, 2, True, "1"]), max_size=3)


@given(st.lists(st.tuples(tables, st.booleans()), max_size=6), tables)
def test_headers_index_finds_what_a_plain_search_finds(
    bound: list[tuple[dict[str, Any], bool]], headers: dict[str, Any]
) -> None:
    def is_same(name: str, value: object) -> bool:
        return name in headers and headers[name] == value and type(headers[name]) is type(value)

    index: HeadersIndex[int] = HeadersIndex()
    expected = set()
    for number, (table, any_) in enumerate(bound):
        index.add("", number, {**table, "x-match": "any" if any_ else "all"})
        hits = [is_same(name, value) for name, value in table.items()]
        if any(hits) if any_ else all(hits):
            expected.add(number)
    assert set(index.match("", headers)) == expected


def test_headers_visits_do_not_grow_with_the_bindings() -> None:
    visits = []
    for count in (10, 20_000):
        index: HeadersIndex[int] = HeadersIndex()
        for number in range(count):
            index.add("", number, {"kind": "job", "id": number})
        assert list(index.match("", {"kind": "job", "id": 5})) == [5]
        visits.append(index.visited)
    # The first bindings, made when no pair was crowded yet, may stand at the common one.
    assert visits[1] <= visits[0] <= 3


def test_unknown_x_match_and_type() -> None:
    index: HeadersIndex[int] = HeadersIndex()
    with pytest.raises(BadRequest, match="x-match"):
        index.add("", 1, {"x-match": "some"})
    assert len(index) == 0
    with pytest.raises(ValueError, match="consistent-hash"):
        new_index("consistent-hash")
