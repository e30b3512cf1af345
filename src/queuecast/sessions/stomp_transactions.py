"""A session's transactions: what a client asked to be done at COMMIT, kept until then.

As at RabbitMQ a transaction is a buffer, replayed in order. What the gateway can know beforehand
is known before any of it is done: a COMMIT whose transaction had a refused member, or has one now,
does nothing at all. What the broker itself refuses afterwards fails the COMMIT too, but not the
members that the broker took.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..codecs.stomp import Frame
from ..codecs.stomp_values import StompError
from ..errors import QueuecastError
from .stomp_errors import answer_of

# What one client may have open, and in all of them together: it stops one that never commits.
MAX_TRANSACTIONS = 16
MAX_ACTIONS = 1024
MAX_BYTES = 8 << 20

# Learns how an action ended: None, or what was wrong (it has been answered).
Done = Callable[[StompError | QueuecastError | None], None]
Action = Callable[[Done], None]


class Claims:
    """What the acks of one COMMIT settle, as far as they were looked at.

    single: by number of the consumer and tag. reached: up to which tag a consumer's cumulative
    acks go.
    """

    __slots__ = ("reached", "single")

    def __init__(self) -> None:
        self.single: set[tuple[int, int]] = set()  # at most MAX_ACTIONS, as is `reached`
        self.reached: dict[int, int] = {}


class Member(NamedTuple):
    """One frame of a transaction.

    check: raises StompError or QueuecastError where `act` would fail, given what the members
    before it claim.
    """

    frame: Frame
    check: Callable[[Claims], None]
    act: Action


class Transaction:
    """The members of one transaction. failure: why none of them will be done, if so."""

    __slots__ = ("failure", "members", "size")

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.size = 0
        self.failure: str | None = None

    def why_not(self) -> str | None:
        """Return what is against doing all of it now, None if nothing is known to be."""
        if self.failure is not None:
            return self.failure
        claims = Claims()
        for member in self.members:
            try:
                member.check(claims)
            except (StompError, QueuecastError) as error:
                return reason(member.frame, error)
        return None


class Transactions:
    """The open transactions of one session."""

    __slots__ = ("_bytes", "_open")

    def __init__(self) -> None:
        self._open: dict[str, Transaction] = {}
        self._bytes = 0

    def begin(self, name: str) -> None:
        """Open a transaction; an open one of that name is forgotten. Raises StompError."""
        self._pop(name)
        if len(self._open) >= MAX_TRANSACTIONS:
            raise StompError(
                "Transaction limit exceeded", f"{MAX_TRANSACTIONS} transactions are open\n"
            )
        self._open[name] = Transaction()

    def add(self, name: str, member: Member, size: int) -> None:
        """Keep a member of `size` bytes for the COMMIT; raises StompError.

        A transaction that has failed keeps no more of them.
        """
        found = self._open.get(name)
        if found is None:
            raise _unknown(name)
        if found.failure is not None:
            if "receipt" in member.frame.headers:
                raise StompError("Transaction failed", f"{found.failure}\n")
            return
        if len(found.members) >= MAX_ACTIONS or self._bytes + size > MAX_BYTES:
            raise StompError(
                "Transaction too large",
                f"at most {MAX_ACTIONS} actions, and {MAX_BYTES} bytes in all transactions\n",
            )
        found.members.append(member)
        found.size += size
        self._bytes += size

    def fail(self, frame: Frame, error: StompError | QueuecastError) -> None:
        """Note that a frame was refused: its transaction, if it has one, will do nothing.

        The first refusal is the one that COMMIT tells.
        """
        found = self._open.get(frame.headers.get("transaction", ""))
        if found is not None and found.failure is None:
            found.failure = reason(frame, error)

    def take(self, name: str) -> Transaction:
        """Close a transaction and return it; raises StompError."""
        found = self._pop(name)
        if found is None:
            raise _unknown(name)
        return found

    def _pop(self, name: str) -> Transaction | None:
        found = self._open.pop(name, None)
        if found is not None:
            self._bytes -= found.size
        return found


def reason(frame: Frame, error: StompError | QueuecastError) -> str:
    """Return why a member was refused, in one line."""
    answer = answer_of(error)
    first = answer.text.strip().partition("\n")[0]
    return f"{frame.command} was refused: {answer.message}: {first}"


def _unknown(name: str) -> StompError:
    return StompError("Bad transaction", f"Invalid transaction identifier: {name[:300]!r}\n")
