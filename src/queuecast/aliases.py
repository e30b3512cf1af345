"""URL aliases: friendly paths that hide the broker's names.

    "/events/{id}" = "/exchange/events/{id}"        "/sse" = "/topic/news"

A parameter is one segment of the path and stands for one literal name. `*`, `#` and `/` in it,
percent-encoded or not, are refused: they would turn one page's destination into everybody's.
A dot adds a word to a key. Where a parameter is a whole segment of the destination that is
harmless, the segment is all the client's anyway (a version, an e-mail address); where it is a
part (`/topic/user.{id}.done`) dots are refused, lest the client writes words that are the
author's. The policy is asked about the expanded destination in either case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

from .destination import Destination
from .disconnect import reason_for
from .errors import BadDestination, ConfigError, QueuecastError

# Paths that the gateway itself answers, and those that begin a destination.
RESERVED = frozenset(
    (
        *("sse", "ws", "poll", "publish", "ack", "stomp", "healthz", "readyz", "admin", "metrics"),
        *("exchange", "topic", "queue", "amq", "temp-queue", "reply-queue"),
    )
)
# Verbs that mean nothing by themselves, so that an alias may give them a destination.
BARE_VERBS = frozenset(("/sse", "/poll"))

_PARAMETER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_FORBIDDEN = re.compile(r"[*#/\x00-\x1f\x7f]")


class _Alias(NamedTuple):
    """segments: of the path; a parameter is its name in a 1-tuple, a literal is text."""

    path: str  # as configured
    segments: tuple[str | tuple[str], ...]
    target: str
    partial: frozenset[str]  # parameters that are only a part of a segment of the target


class Aliases:
    """The `[aliases]` table, compiled."""

    def __init__(self, aliases: Mapping[str, str] | None = None) -> None:
        """Raises ConfigError naming the alias that is wrong."""
        # By the number of segments, literals before parameters: at most the aliases of one
        # length are tried for a request.
        self._by_length: dict[int, list[_Alias]] = {}
        shapes: dict[tuple[str | None, ...], str] = {}
        for path, target in (aliases or {}).items():
            alias = _compile(path, target)
            shape = tuple(each if isinstance(each, str) else None for each in alias.segments)
            if shape in shapes:
                raise ConfigError(f"aliases: {path!r} and {shapes[shape]!r} are the same path")
            shapes[shape] = path
            self._by_length.setdefault(len(alias.segments), []).append(alias)
        for same_length in self._by_length.values():
            same_length.sort(key=lambda alias: [isinstance(s, tuple) for s in alias.segments])

    def expand(self, path: str) -> str | None:
        """Return the destination's text for a request's path, or None: no alias fits.

        The path is text, still percent-encoded; the verb is already cut off. Raises
        BadDestination when a parameter is not one literal segment.
        """
        if not self._by_length or not path.startswith("/"):
            return None
        segments = path[1:].split("/")
        if len(segments) > 1 and not segments[-1]:
            # "/sse/" is "/sse"; an alias whose last segment is a parameter says it is empty.
            return self._expand(segments) or self._expand(segments[:-1])
        return self._expand(segments)

    def _expand(self, segments: list[str]) -> str | None:
        candidates = self._by_length.get(len(segments))
        if not candidates:
            return None
        texts = [_decode(segment) for segment in segments]
        for alias in candidates:
            if all(
                isinstance(part, tuple) or part == text
                for part, text in zip(alias.segments, texts, strict=True)
            ):
                return _fill(alias, texts, segments)
        return None

    def at(self, path: str, *, below: bool = False) -> str | None:
        """Return the alias, as configured, that takes requests for a path; None: there is none.

        below: or for a path that begins with it. The path is plain text.
        """
        segments = path[1:].split("/")
        for length, same_length in self._by_length.items():
            if length != len(segments) and not (below and length > len(segments)):
                continue
            for alias in same_length:
                if all(
                    isinstance(part, tuple) or part == text
                    for part, text in zip(alias.segments, segments, strict=False)
                ):
                    return alias.path
        return None

    def match(self, path: str) -> Destination | None:
        """Return what an alias makes of a path, or None; raises BadDestination."""
        expanded = self.expand(path)
        return None if expanded is None else replace(Destination.from_url(expanded), alias=path)

    def resolve(self, path: str) -> Destination:
        """Return the destination of a path without its verb: an alias's, or its own."""
        return self.match(path) or Destination.from_url(path)


def concealed(error: QueuecastError, destinations: Sequence[Destination]) -> QueuecastError:
    """Return the error as the client may see it: without the names behind an alias."""
    aliases = [destination.alias for destination in destinations if destination.alias]
    if not aliases:
        return error
    plain = reason_for(error).text
    return type(error)(f"{', '.join(aliases)}: {plain}", "the gateway's log says more")


def _compile(path: str, target: str) -> _Alias:
    where = f"aliases: {path!r}"
    if not path.startswith("/") or path == "/" or path.endswith("/"):
        raise ConfigError(f"{where} is not a path", 'e.g. "/events/{id}", no slash at the end')
    segments: list[str | tuple[str]] = []
    names: list[str] = []
    for text in path[1:].split("/"):
        found = _PARAMETER.fullmatch(text)
        if found:
            segments.append((found[1],))
            names.append(found[1])
        elif not text or re.search(r"[{}*#?%\x00-\x20\x7f]", text) or text in (".", ".."):
            raise ConfigError(
                f"{where}: {text!r} is not a segment",
                "plain text, or one parameter such as {id} as a whole segment",
            )
        else:
            segments.append(text)
    first = segments[0]
    if isinstance(first, tuple):
        raise ConfigError(f"{where} begins with a parameter", "it would take every path")
    if first in RESERVED and path not in BARE_VERBS:
        raise ConfigError(f"{where} is a path of the gateway's own", "choose another first segment")
    used = _PARAMETER.findall(target)
    if sorted(set(used)) != sorted(names):
        raise ConfigError(
            f"{where}: path and destination {target!r} differ in their parameters",
            "each {name} stands once in the path and at least once in the destination",
        )
    try:
        plain = _PARAMETER.sub("x", target)
        if "{" in plain or "}" in plain:
            raise BadDestination(f"{target!r} has a stray brace", "a parameter is {name}")
        Destination.parse(plain)
    except QueuecastError as error:
        raise ConfigError(f"{where}: {error.text}", error.hint) from None
    whole = {found[1] for s in target.split("/") if (found := _PARAMETER.fullmatch(s))}
    partly = {name for s in target.split("/") if not _PARAMETER.fullmatch(s) for name in _names(s)}
    return _Alias(path, tuple(segments), target, frozenset(partly | (set(used) - whole)))


def _names(segment: str) -> list[str]:
    return _PARAMETER.findall(segment)


def _fill(alias: _Alias, texts: list[str | None], segments: list[str]) -> str:
    values: dict[str, str] = {}
    for part, text, raw in zip(alias.segments, texts, segments, strict=True):
        if isinstance(part, str):
            continue
        (name,) = part
        if text is None:
            raise BadDestination(f"{name} is not percent-encoded UTF-8", "write a literal % as %25")
        if text in ("", ".", "..") or _FORBIDDEN.search(text):
            raise BadDestination(
                f"{name} cannot be {raw[:100]!r}", "it is one literal name without *, # and /"
            )
        if "." in text and name in alias.partial:
            raise BadDestination(f"{name} cannot be {raw[:100]!r}", "it is one word without dots")
        values[name] = quote(text, safe="!$&'()+,;=:@")
    # Percent-encoded all through: the author's own text may hold any character too.
    target = quote(alias.target, safe="/%{}*!$&'()+,;=:@")
    return _PARAMETER.sub(lambda found: values[found[1]], target)


def _decode(segment: str) -> str | None:
    """Return a raw segment's text, None where its encoding is broken."""
    if _BAD_ESCAPE.search(segment):
        return None
    try:
        return unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        return None
