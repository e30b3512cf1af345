"""A session's transactions: what a client asked to be done at COMMIT, kept until then.

As at RabbitMQ a transaction is a buffer, replayed in order and not atomic.
"""

from __future__ import annotations

from collections.abc import Callable

from ..codecs.stomp_values import StompError
from ..errors import QueuecastError

# What one client may have open, and in all of them together: it stops one that never commits.
MAX_TRANSACTIONS = 16
MAX_ACTIONS = 1024
MAX_BYTES = 8 << 20

# Learns how an action ended: None, or what was wrong (it has been answered).
Done = Callable[[StompError | QueuecastError | None], None]
Action = Callable[[Done], None]


class Transactions:
    """The open transactions of one session."""

    __slots__ = ("_bytes", "_open")

    def __init__(self) -> None:
        self._open: dict[str, tuple[list[Action], int]] = {}
        self._bytes = 0

    def begin(self, name: str) -> None:
        """Open a transaction; one that is open already begins anew. Raises StompError."""
        self._pop(name)
        if len(self._open) >= MAX_TRANSACTIONS:
            raise StompError(
                "Transaction limit exceeded", f"{MAX_TRANSACTIONS} transactions are open\n"
            )
        self._open[name] = ([], 0)

    def add(self, name: str, action: Action, size: int) -> None:
        """Keep an action of `size` bytes for the COMMIT; raises StompError."""
        found = self._open.get(name)
        if found is None:
            raise _unknown(name)
        actions, held = found
        if len(actions) >= MAX_ACTIONS or self._bytes + size > MAX_BYTES:
            raise StompError(
                "Transaction too large",
                f"at most {MAX_ACTIONS} actions, and {MAX_BYTES} bytes in all transactions\n",
            )
        actions.append(action)
        self._open[name] = (actions, held + size)
        self._bytes += size

    def take(self, name: str) -> list[Action]:
        """Close a transaction and return what was kept; raises StompError."""
        actions = self._pop(name)
        if actions is None:
            raise _unknown(name)
        return actions

    def clear(self) -> None:
        """Forget everything: the client is gone."""
        self._open.clear()
        self._bytes = 0

    def _pop(self, name: str) -> list[Action] | None:
        found = self._open.pop(name, None)
        if found is None:
            return None
        self._bytes -= found[1]
        return found[0]


def _unknown(name: str) -> StompError:
    return StompError("Bad transaction", f"Invalid transaction identifier: {name[:300]!r}\n")
