"""AMQP topic patterns: words separated by dots, `*` is one word, `#` any number of words.

Matching many patterns at once is the brokers' index; here are the questions about one or two.
The empty key has no words, as at RabbitMQ: `#` matches it, `*` does not.
"""

from __future__ import annotations

from functools import lru_cache

# How many pairs of states one question may visit. It stops a client whose pattern is made to
# cost much ("#.a.#.b.#…"); what is not decided by then counts as not contained.
_MAX_STEPS = 5_000


@lru_cache(maxsize=4096)
def contains(outer: str, inner: str) -> bool:
    """Tell whether every key that matches the pattern `inner` also matches `outer`.

    A literal key is a pattern without wildcards, so this also answers "does the key match".
    """
    return _contains(_words(outer), _words(inner))


def _words(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.split(".")) if pattern else ()


def _contains(outer: tuple[str, ...], inner: tuple[str, ...]) -> bool:
    # Runs both patterns side by side: the places in outer that the words read so far can have
    # led to, for every way of reading inner. A wildcard of inner stands for a word that occurs
    # in neither pattern: what matches that matches any word.
    start = _closure(outer, {0})
    seen = {(0, start)}
    waiting = [(0, start)]
    while waiting:
        at, places = waiting.pop()
        if not places:
            return False
        if at == len(inner):
            if len(outer) not in places:
                return False
            continue
        word = inner[at]
        following = [(at + 1, places)] if word == "#" else []
        onward = _advance(outer, places, "*" if word == "#" else word)
        following.append((at if word == "#" else at + 1, onward))
        for pair in following:
            if pair not in seen:
                seen.add(pair)
                waiting.append(pair)
        if len(seen) > _MAX_STEPS:
            return False
    return True


def _advance(outer: tuple[str, ...], places: frozenset[int], word: str) -> frozenset[int]:
    """Return the places in outer after one more word ("*": a word that it does not have)."""
    following: set[int] = set()
    for place in places:
        if place == len(outer):
            continue
        part = outer[place]
        if part == "#":
            following.add(place)
        elif part in ("*", word):
            following.add(place + 1)
    return _closure(outer, following)


def _closure(outer: tuple[str, ...], places: set[int]) -> frozenset[int]:
    """Add the places that are reached by letting a "#" stand for no word."""
    result = set(places)
    for place in sorted(places):
        while place < len(outer) and outer[place] == "#":
            place += 1
            result.add(place)
    return frozenset(result)


def is_pattern(key: str) -> bool:
    """Tell whether a key has a wildcard word."""
    return any(word in ("*", "#") for word in key.split("."))
