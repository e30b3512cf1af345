"""The embedded broker's topology: exchanges, queues, and the bindings between them.

An auto-delete exchange goes with its last binding, be it of a queue or of a feed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...errors import Conflict, LimitExceeded, NotFound, QueuecastError, Refused, Unsupported
from ..base import EXCHANGE_TYPES, PREDECLARED, BindingSpec, ExchangeSpec, QueueSpec
from ..matching import Index, frozen, new_index
from . import exchange, queue
from .arguments import QueueArguments, check_properties
from .exchange import Exchange
from .feed import Feed
from .queue import Queue
from .stream import Stream

if TYPE_CHECKING:
    from .store import Store

AnyQueue = Queue | Stream
Target = AnyQueue | Feed


class Topology:
    """What is declared.

    make_queue: how a declared queue is made. on_exchange_gone: told the name of an exchange that
    was deleted, for what else hangs on it.
    """

    def __init__(
        self,
        make_queue: Callable[[QueueSpec], AnyQueue],
        max_queues: int,
        on_exchange_gone: Callable[[str], None],
    ) -> None:
        self.store: Store | None = None
        """What keeps the durable part, told of each change."""
        self.exchanges: dict[str, Exchange[Target]] = {
            name: Exchange(ExchangeSpec(name, kind)) for name, kind in PREDECLARED.items()
        }
        self.queues: dict[str, AnyQueue] = {}
        self._make_queue = make_queue
        self._max_queues = max_queues
        self._on_exchange_gone = on_exchange_gone

    def exchange(self, name: str) -> Exchange[Target]:
        """Return an exchange; raises NotFound."""
        found = self.exchanges.get(name)
        if found is None:
            raise NotFound(f"no exchange {name!r}", hint_exchange(name))
        return found

    def queue(self, name: str) -> AnyQueue:
        """Return a queue; raises NotFound."""
        found = self.queues.get(name)
        if found is None:
            raise NotFound(f"no queue {name!r}", hint_queue(name))
        return found

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        """Create an exchange unless it is there.

        Raises Unsupported, Refused, Conflict, Unavailable (the store cannot write).
        """
        if spec.type not in EXCHANGE_TYPES:
            raise Unsupported(
                f"exchange {spec.name!r}: the embedded broker has no type {spec.type!r}",
                f"it has {', '.join(EXCHANGE_TYPES)}; for other types use amqp://…",
            )
        present = self.exchanges.get(spec.name)
        if present is None:
            _check_name("exchange", spec.name)
            self._check_store()
            self.exchanges[spec.name] = Exchange(spec)
            if self.store is not None:
                self.store.exchange_added(spec)
            return
        if exchange.describe(present.spec) != exchange.describe(spec):
            raise Conflict(
                f"exchange {spec.name!r} exists with other properties",
                f"there: {exchange.describe(present.spec)}; asked for: {exchange.describe(spec)}",
            )

    def declare_queue(self, spec: QueueSpec) -> AnyQueue:
        """Create a queue unless it is there, and bind it.

        Raises NotFound (an exchange), Refused, Conflict, LimitExceeded, Unavailable (the store
        cannot write).
        """
        for binding in spec.bindings:
            if binding.exchange == "":
                raise Refused(f"queue {spec.name!r}: no binding to the default exchange")
            # A headers binding that is wrong must not leave a queue half declared.
            trial: Index[bool] = new_index(self.exchange(binding.exchange).spec.type)
            trial.add(binding.key, True, binding.arguments)
        present = self.queues.get(spec.name)
        if present is None:
            _check_name("queue", spec.name)
            QueueArguments.read(spec.name, spec.arguments)
            check_properties(spec)
            if spec.is_lasting:
                self._check_store()
            if len(self.queues) >= self._max_queues:
                raise LimitExceeded(
                    f"queue {spec.name!r}: there are {self._max_queues} queues already",
                    "delete queues, or let unused ones go with x-expires",
                )
            present = self.queues[spec.name] = self._make_queue(spec)
            if self.store is not None:
                self.store.queue_added(spec)
        elif queue.describe(present.spec) != queue.describe(spec):
            raise Conflict(
                f"queue {spec.name!r} exists with other properties",
                f"there: {queue.describe(present.spec)}; asked for: {queue.describe(spec)}",
            )
        present.touch()
        for binding in spec.bindings:
            self._bind(present, binding)
        return present

    def _check_store(self) -> None:
        if self.store is not None:
            self.store.check_writable()

    def _bind(self, bound: AnyQueue, binding: BindingSpec) -> None:
        source = self.exchange(binding.exchange)
        source.index.add(binding.key, bound, binding.arguments)
        place = (binding.exchange, binding.key, frozen(binding.arguments))
        if self.store is not None and source.spec.durable and place not in bound.bindings:
            self.store.bound(bound.name, binding)
        bound.bindings[place] = binding

    def unbind(self, name: str, key: str, target: Target, binding: BindingSpec | None) -> None:
        """Take a target's binding away; binding: a queue's own, None for a feed's."""
        found = self.exchanges.get(name)
        if found is None:
            return
        found.index.remove(key, target, {} if binding is None else binding.arguments)
        if found.spec.auto_delete and not len(found.index):
            self._drop_exchange(found)

    def delete_exchange(self, name: str) -> None:
        """Delete an exchange; raises NotFound, Refused."""
        if name in PREDECLARED:
            raise Refused(f"exchange {name!r} is predeclared: it cannot be deleted")
        self._drop_exchange(self.exchange(name))

    def _drop_exchange(self, gone: Exchange[Target]) -> None:
        del self.exchanges[gone.name]
        if self.store is not None:
            self.store.exchange_dropped(gone.name)
        self._on_exchange_gone(gone.name)
        for kept in self.queues.values():
            for place in [place for place in kept.bindings if place[0] == gone.name]:
                del kept.bindings[place]

    def drop_queue(self, name: str, error: QueuecastError) -> None:
        """Delete a queue; its consumers are cancelled with the error. Raises NotFound."""
        gone = self.queue(name)
        del self.queues[gone.name]
        if self.store is not None:
            self.store.queue_dropped(gone.name)
        for binding in list(gone.bindings.values()):
            self.unbind(binding.exchange, binding.key, gone, binding)
        gone.delete(error)

    def close(self, error: QueuecastError) -> None:
        """Delete every queue; its consumers are cancelled with the error."""
        for name in list(self.queues):
            self.queues.pop(name).delete(error)


def _check_name(what: str, name: str) -> None:
    if not name or name.startswith("amq."):
        raise Refused(f"{what} {name!r}: names that are empty or begin with 'amq.' are reserved")


def hint_exchange(name: str) -> str:
    """Return what to do about a missing exchange."""
    return f'add [[exchange]] name = "{name}" to the configuration'


def hint_queue(name: str) -> str:
    """Return what to do about a missing queue."""
    return f'add [[queue]] name = "{name}" to the configuration, or use /queue/{name}'
