"""Which targets a published message reaches: one index per exchange type.

An index holds bindings (key, target, arguments) and answers, for a message's routing key and
headers, the targets of all bindings that match, each once. The embedded broker asks it for
queues and feeds; the RabbitMQ broker tells the messages of a shared feed queue apart with it.

A match visits what matches and little more: the number of bindings does not count.
Order: targets of one key in the order they were added; across several patterns it is the same
from call to call as long as no binding changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from ..errors import BadRequest

T = TypeVar("T", bound=Hashable)

_NO_ARGUMENTS: Mapping[str, Any] = {}
_X_MATCH = ("all", "any", "all-with-x", "any-with-x")

# Results kept per index: a publisher with ever new routing keys must not grow memory, neither
# by their number nor by long results.
CACHE_KEYS = 4096
CACHE_TARGETS = 64


class Index(Protocol[T]):
    """The bindings of one exchange."""

    def add(self, key: str, target: T, arguments: Mapping[str, Any] = ...) -> bool:
        """Add a binding; returns False when there was an equal one.

        Raises BadRequest when a headers exchange does not know the x-match.
        """

    def remove(self, key: str, target: T, arguments: Mapping[str, Any] = ...) -> bool:
        """Remove a binding; returns False when there was none."""

    def match(self, routing_key: str, headers: Mapping[str, Any] = ...) -> Collection[T]:
        """Return the targets that a message reaches, each once; later changes don't show in it."""

    def __len__(self) -> int:
        """Return the number of bindings."""


def new_index(exchange_type: str) -> Index[T]:
    """Return an empty index for direct, topic, fanout or headers; raises ValueError."""
    if exchange_type == "direct":
        return DirectIndex()
    if exchange_type == "topic":
        return TopicIndex()
    if exchange_type == "fanout":
        return FanoutIndex()
    if exchange_type == "headers":
        return HeadersIndex()
    raise ValueError(f"no exchange type {exchange_type!r}")


def matcher(exchange_type: str, pattern: str) -> Callable[[str], bool]:
    """Return what tells whether a routing key matches one binding; raises ValueError.

    It is the index that routes, with this binding alone in it.
    """
    index: Index[bool] = new_index(exchange_type)
    index.add(pattern, True)
    return lambda routing_key: bool(index.match(routing_key))


def frozen(value: Any) -> Hashable:
    """Return a hashable stand-in for a field value; equal exactly where AMQP's values are.

    Text and bytes are one AMQP type (longstr); True is not 1, and 1 is not 1.0.
    """
    if isinstance(value, str):
        return ("s", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, bytes | bytearray | memoryview):
        return ("s", bytes(value))
    if isinstance(value, Mapping):
        return ("m", frozenset((name, frozen(item)) for name, item in value.items()))
    if isinstance(value, list | tuple):
        return ("l", tuple(frozen(item) for item in value))
    return (type(value).__name__, value)


class _Targets(Generic[T]):
    """The targets at one place of an index, each with the number of its bindings there."""

    __slots__ = ("_all", "_counts")

    def __init__(self) -> None:
        self._counts: dict[T, int] = {}
        self._all: tuple[T, ...] | None = ()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, target: T) -> None:
        count = self._counts.get(target, 0)
        self._counts[target] = count + 1
        if not count:
            self._all = None

    def remove(self, target: T) -> None:
        count = self._counts[target] - 1
        if count:
            self._counts[target] = count
            return
        del self._counts[target]
        self._all = None

    def all(self) -> tuple[T, ...]:
        if self._all is None:
            self._all = tuple(self._counts)
        return self._all


class _Bindings(Generic[T]):
    """The set of bindings, which every index keeps beside its own structure."""

    def __init__(self) -> None:
        self._bindings: set[tuple[str, T, Hashable]] = set()

    def __len__(self) -> int:
        return len(self._bindings)

    def add(self, key: str, target: T, arguments: Mapping[str, Any] = _NO_ARGUMENTS) -> bool:
        binding = (key, target, frozen(arguments) if arguments else None)
        if binding in self._bindings:
            return False
        self._insert(binding, arguments)
        self._bindings.add(binding)
        return True

    def remove(self, key: str, target: T, arguments: Mapping[str, Any] = _NO_ARGUMENTS) -> bool:
        binding = (key, target, frozen(arguments) if arguments else None)
        if binding not in self._bindings:
            return False
        self._bindings.remove(binding)
        self._delete(binding)
        return True

    def _insert(self, binding: tuple[str, T, Hashable], arguments: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _delete(self, binding: tuple[str, T, Hashable]) -> None:
        raise NotImplementedError


class DirectIndex(_Bindings[T]):
    """A direct exchange: the routing key equals the binding key."""

    def __init__(self) -> None:
        super().__init__()
        self._by_key: dict[str, _Targets[T]] = {}

    def match(self, routing_key: str, headers: Mapping[str, Any] = _NO_ARGUMENTS) -> Collection[T]:
        targets = self._by_key.get(routing_key)
        return () if targets is None else targets.all()

    def _insert(self, binding: tuple[str, T, Hashable], arguments: Mapping[str, Any]) -> None:
        self._by_key.setdefault(binding[0], _Targets()).add(binding[1])

    def _delete(self, binding: tuple[str, T, Hashable]) -> None:
        targets = self._by_key[binding[0]]
        targets.remove(binding[1])
        if not targets:
            del self._by_key[binding[0]]


class FanoutIndex(_Bindings[T]):
    """A fanout exchange: every binding matches."""

    def __init__(self) -> None:
        super().__init__()
        self._targets: _Targets[T] = _Targets()

    def match(self, routing_key: str, headers: Mapping[str, Any] = _NO_ARGUMENTS) -> Collection[T]:
        return self._targets.all()

    def _insert(self, binding: tuple[str, T, Hashable], arguments: Mapping[str, Any]) -> None:
        self._targets.add(binding[1])

    def _delete(self, binding: tuple[str, T, Hashable]) -> None:
        self._targets.remove(binding[1])


class _Node(Generic[T]):
    """A place in the trie of patterns: the words read so far."""

    __slots__ = ("children", "targets")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.targets: _Targets[T] = _Targets()


class TopicIndex(_Bindings[T]):
    """A topic exchange: a trie over the words of the patterns.

    visited: trie nodes looked at by all matches so far, for tests and measurements.
    """

    def __init__(self) -> None:
        super().__init__()
        self._root: _Node[T] = _Node()
        self._cache: OrderedDict[str, tuple[T, ...]] = OrderedDict()
        self.visited = 0

    def match(self, routing_key: str, headers: Mapping[str, Any] = _NO_ARGUMENTS) -> Collection[T]:
        known = self._cache.get(routing_key)
        if known is not None:
            self._cache.move_to_end(routing_key)
            return known
        found = self._walk(routing_key)
        if len(found) <= CACHE_TARGETS:
            self._cache[routing_key] = found
            if len(self._cache) > CACHE_KEYS:
                self._cache.popitem(last=False)
        return found

    def _walk(self, routing_key: str) -> tuple[T, ...]:
        # All places that the words so far can lead to, as a set: each node is looked at once a
        # word, so that patterns like "#.#.a.#" cannot make the walk exponential.
        level = self._closed({self._root: False})
        for word in _words(routing_key):
            following: dict[_Node[T], bool] = {}
            for node, is_hash in level.items():
                if is_hash:
                    following[node] = True
                for part in (word, "*"):
                    child = node.children.get(part)
                    if child is not None and part != "#":
                        following.setdefault(child, False)
            if not following:
                return ()
            level = self._closed(following)
        holders = [node.targets for node in level if node.targets]
        if not holders:
            return ()
        if len(holders) == 1:
            return holders[0].all()
        return tuple(dict.fromkeys(target for holder in holders for target in holder.all()))

    def _closed(self, level: dict[_Node[T], bool]) -> dict[_Node[T], bool]:
        """Add the "#" nodes that are reached by letting "#" stand for no word."""
        pending = list(level)
        while pending:
            child = pending.pop().children.get("#")
            if child is not None and child not in level:
                level[child] = True
                pending.append(child)
        self.visited += len(level)
        return level

    def _insert(self, binding: tuple[str, T, Hashable], arguments: Mapping[str, Any]) -> None:
        node = self._root
        for word in _pattern_words(binding[0]):
            child = node.children.get(word)
            if child is None:
                child = node.children[word] = _Node()
            node = child
        node.targets.add(binding[1])
        self._forget(binding[0])

    def _delete(self, binding: tuple[str, T, Hashable]) -> None:
        path = [self._root]
        words = _pattern_words(binding[0])
        for word in words:
            path.append(path[-1].children[word])
        path[-1].targets.remove(binding[1])
        while words and not path[-1].targets and not path[-1].children:
            path.pop()
            del path[-1].children[words.pop()]
        self._forget(binding[0])

    def _forget(self, pattern: str) -> None:
        words = pattern.split(".")
        if "*" in words or "#" in words:
            self._cache.clear()
        else:
            # Only that very key is concerned: thousands of pages that come and go on
            # /topic/job.N leave the other keys' results alone.
            self._cache.pop(pattern, None)


def _words(key: str) -> list[str]:
    # As RabbitMQ has it, an empty key has no words: "#" matches it, "*" does not.
    return key.split(".") if key else []


def _pattern_words(pattern: str) -> list[str]:
    """Split a pattern; "#.#" means the same as "#", which keeps hostile patterns short."""
    words = _words(pattern)
    return [word for at, word in enumerate(words) if not (at and word == "#" == words[at - 1])]


class _Rule(Generic[T]):
    """What the arguments of a binding to a headers exchange ask for."""

    __slots__ = ("any", "binding", "places", "wanted")

    def __init__(self, binding: tuple[str, T, Hashable], arguments: Mapping[str, Any]) -> None:
        kind = arguments.get("x-match", "all")
        if kind not in _X_MATCH:
            raise BadRequest(f"x-match is {kind!r}", f"it is one of {', '.join(_X_MATCH)}")
        with_x = kind.endswith("-with-x")
        self.binding = binding
        self.any = kind.startswith("any")
        # An argument without a value asks for presence only (RabbitMQ's reading of AMQP 0-9-1
        # section 3.1.3.4).
        self.wanted: frozenset[tuple[str, Hashable]] = frozenset(
            (name, None if value is None else frozen(value))
            for name, value in arguments.items()
            if name != "x-match" and (with_x or not name.startswith("x-"))
        )
        self.places: tuple[tuple[str, Hashable], ...] = ()


class HeadersIndex(_Bindings[T]):
    """A headers exchange: rules are found by a pair that they ask for, then checked.

    An `any` rule stands at each of its pairs; an `all` rule at one, the least crowded.
    visited: rules checked by all matches so far, for tests and measurements.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rules: dict[tuple[str, T, Hashable], _Rule[T]] = {}
        self._by_pair: dict[tuple[str, Hashable], dict[_Rule[T], None]] = {}
        self._always: dict[_Rule[T], None] = {}
        self.visited = 0

    def match(self, routing_key: str, headers: Mapping[str, Any] = _NO_ARGUMENTS) -> Collection[T]:
        found: dict[T, None] = {rule.binding[1]: None for rule in self._always}
        if not headers or not self._by_pair:
            return tuple(found)
        pairs: dict[tuple[str, Hashable], None] = {}
        for name, value in headers.items():
            pairs[(name, None)] = None
            pairs[(name, frozen(value))] = None
        for pair in pairs:
            for rule in self._by_pair.get(pair, ()):
                self.visited += 1
                if rule.any or all(wanted in pairs for wanted in rule.wanted):
                    found[rule.binding[1]] = None
        return tuple(found)

    def _insert(self, binding: tuple[str, T, Hashable], arguments: Mapping[str, Any]) -> None:
        rule = _Rule(binding, arguments)
        self._rules[binding] = rule
        if not rule.wanted:
            # `all` of nothing is always true, `any` of nothing never.
            if not rule.any:
                self._always[rule] = None
            return
        if rule.any:
            rule.places = tuple(rule.wanted)
        else:
            rule.places = (min(rule.wanted, key=self._crowd),)
        for pair in rule.places:
            self._by_pair.setdefault(pair, {})[rule] = None

    def _crowd(self, pair: tuple[str, Hashable]) -> tuple[int, str]:
        # Presence alone is asked for by more messages than a value: the last choice.
        return len(self._by_pair.get(pair, ())) + (1 << 20 if pair[1] is None else 0), pair[0]

    def _delete(self, binding: tuple[str, T, Hashable]) -> None:
        rule = self._rules.pop(binding)
        self._always.pop(rule, None)
        for pair in rule.places:
            rules = self._by_pair[pair]
            del rules[rule]
            if not rules:
                del self._by_pair[pair]
