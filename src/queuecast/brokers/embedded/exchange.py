"""An exchange: its properties and the index of what is bound to it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any, Generic, TypeVar

from ..base import ExchangeSpec
from ..matching import Index, new_index

T = TypeVar("T", bound=Hashable)


class Exchange(Generic[T]):
    """An exchange with bindings to targets (queues and feeds)."""

    __slots__ = ("index", "spec")

    def __init__(self, spec: ExchangeSpec) -> None:
        self.spec = spec
        self.index: Index[T] = new_index(spec.type)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def alternate(self) -> str | None:
        """The exchange that gets what reaches no target here."""
        value = self.spec.arguments.get("alternate-exchange")
        return value if isinstance(value, str) else None

    def match(self, routing_key: str, headers: Mapping[str, Any]) -> Collection[T]:
        """Return the targets of a message, each once."""
        return self.index.match(routing_key, headers)


def describe(spec: ExchangeSpec) -> str:
    """Return an exchange's properties for people."""
    words = [spec.type, "durable" if spec.durable else "transient"]
    if spec.auto_delete:
        words.append("auto-delete")
    words.extend(f"{name}={value!r}" for name, value in sorted(spec.arguments.items()))
    return ", ".join(words)
