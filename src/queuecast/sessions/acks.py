"""Ack ids, by which any request can settle a message that some session's client was given.

An id is NODE.SESSION.SUBSCRIPTION.TAG. The session's part is 128 random bits: whoever has the id
was given the message. So it can be posted when the session's own connection cannot carry it (SSE,
long poll) or is gone.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..auth.identity import Identity
from ..errors import BadRequest, Elsewhere, NotFound, QueuecastError

if TYPE_CHECKING:
    from .base import Session
    from .work import WorkSubscription

_ID = re.compile(r"([A-Za-z0-9_-]{1,32})\.([A-Za-z0-9_-]{22})\.([0-9]{1,9})\.([0-9]{1,19})")
_SECRET_BYTES = 16

VERBS = ("ack", "nack")


class AckId(NamedTuple):
    """Which node's which session's which subscription's which message."""

    node: str
    session: str
    number: int
    tag: int

    @classmethod
    def parse(cls, text: object) -> AckId:
        """Read an id; raises BadRequest."""
        found = _ID.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise BadRequest(f"{str(text)[:64]!r} is not an ack id", "give back a message's `ack`")
        return cls(found[1], found[2], int(found[3]), int(found[4]))


class Command(NamedTuple):
    """What a client says about messages. ids: as it wrote them."""

    verb: str
    ids: list[object]
    requeue: bool


class Acks:
    """The sessions of this node whose clients settle messages themselves.

    node: its name, in every id; a random one when empty.
    """

    def __init__(self, node: str = "") -> None:
        self.node = node or f"n{secrets.token_hex(3)}"
        # At most one for each session.
        self._sessions: dict[str, Session] = {}

    def enter(self, session: Session) -> str:
        """Know a session; returns the beginning of its ack ids."""
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        self._sessions[secret] = session
        return f"{self.node}.{secret}"

    def leave(self, name: str) -> None:
        """Forget a session."""
        self._sessions.pop(name.rpartition(".")[2], None)

    def session(self, secret: str) -> Session | None:
        """Return the session of that random name, None when it has ended."""
        return self._sessions.get(secret)

    def settle(self, identity: Identity, command: Command, id: object) -> None:
        """Settle one message; raises what is wrong with the id.

        That is BadRequest, Elsewhere, NotFound, Returned, Settled, Refused.
        """
        parsed = AckId.parse(id)
        session, work = self._find(identity, parsed)
        session.alive()
        work.settle_one(parsed.tag, ack=command.verb == "ack", requeue=command.requeue)

    def _find(self, identity: Identity, id: AckId) -> tuple[Session, WorkSubscription]:
        if id.node != self.node:
            raise Elsewhere(
                f"the message was given out by node {id.node!r}, this is {self.node!r}",
                "a load balancer must bring a client back to the same node; to another worker of "
                "one node POST /ack does",
            )
        session = self._sessions.get(id.session)
        # Another's session is nobody's business, not even that it exists.
        if session is None or session.identity != identity:
            raise NotFound(
                "the connection that got the message has ended",
                "what it had not acked went back to its queue",
            )
        for work in session.work:
            if work.number == id.number:
                session.services.allow(identity, "subscribe", work.destination)
                return session, work
        raise NotFound(
            "the subscription that got the message has ended",
            "what it had not acked went back to its queue",
        )


def parse_command(said: Mapping[str, Any], most: int) -> Command:
    """Read {"ack": ID}, {"ack": [ID, …]}, or the same with `nack` and perhaps `requeue`.

    most: ids at a time. Raises BadRequest.
    """
    verbs = [verb for verb in VERBS if verb in said]
    if len(verbs) != 1:
        raise BadRequest(f"{len(verbs)} of ack and nack", 'write {"ack": ID} or {"nack": ID}')
    verb = verbs[0]
    allowed = {"ack"} if verb == "ack" else {"nack", "requeue"}
    unknown = sorted(set(said) - allowed)
    if unknown:
        raise BadRequest(
            f"{unknown[0][:64]!r} does not belong to {verb}",
            f"allowed are {', '.join(sorted(allowed))}",
        )
    requeue = said.get("requeue", True)
    if not isinstance(requeue, bool):
        raise BadRequest("requeue is neither true nor false")
    ids = said[verb]
    if not isinstance(ids, list):
        ids = [ids]
    if not 1 <= len(ids) <= most:
        raise BadRequest(f"{len(ids)} ack ids", f"1 to {most} at a time")
    return Command(verb, ids, requeue)


def settle_all(
    acks: Acks, identity: Identity, command: Command
) -> list[tuple[object, QueuecastError]]:
    """Settle what a command names; returns what could not be, with the reason."""
    failed: list[tuple[object, QueuecastError]] = []
    for id in command.ids:
        try:
            acks.settle(identity, command, id)
        except QueuecastError as error:
            failed.append((id, error))
    return failed
