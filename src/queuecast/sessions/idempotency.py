"""Publishing once: a publisher that got no answer may say the same message again.

A message may carry a key, `idempotency-key` among its headers (HTTP: the header Idempotency-Key
of draft-ietf-httpapi-idempotency-key-header). What was confirmed under a key is not published a
second time within the window; the second request gets the first one's answer. Keys are those of
one identity and one destination, and known to this gateway process alone, so that they do not
help across a restart or on another node. A publish that failed, or whose outcome is unknown, is
forgotten: trying again publishes.
"""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from ..auth.identity import Identity
from ..destination import Destination
from ..errors import BadRequest, Conflict, OutcomeUnknown, QueuecastError
from ..message import Properties
from ..runtime import Promise, Runtime

HEADER = "idempotency-key"

_Place = tuple[str, Destination, str]


class _Known:
    """One key: what was published under it, when, and who waits for the answer."""

    __slots__ = ("at", "digest", "done", "waiters")

    def __init__(self, digest: bytes, at: float) -> None:
        self.digest = digest
        self.at = at
        self.done = False
        # Bounded by the connections' unconfirmed publishes.
        self.waiters: list[Promise] = []


class IdempotencyKeys:
    """The keys of the last while.

    window: seconds that a key is remembered from its first use; 0 is off. most: keys; the oldest
    go first, so that a publisher with ever new ones does not fill the memory (about 400 bytes
    each).
    """

    def __init__(self, runtime: Runtime, *, window: float = 600.0, most: int = 100_000) -> None:
        self._runtime = runtime
        self._window = window
        self._most = most
        self._known: OrderedDict[_Place, _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def place(
        self, identity: Identity, destination: Destination, properties: Properties
    ) -> _Place | None:
        """Return where a message's key is remembered, None without one; raises BadRequest."""
        key = properties.headers.get(HEADER)
        if key is None or not self._window:
            return None
        if not isinstance(key, str) or not 1 <= len(key) <= 255:
            raise BadRequest(f"{HEADER} is a text of 1 to 255 characters")
        return identity.name, destination, key

    async def admit(self, place: _Place, body: bytes) -> bool:
        """Tell whether to publish; if not, it was published before.

        Waits for an answer that is under way and raises what it was. Raises Conflict when the
        key was used for another body. After True, call `settle`.
        """
        self._forget_old()
        digest = blake2b(body, digest_size=16).digest()
        known = self._known.get(place)
        if known is None:
            self._known[place] = _Known(digest, self._runtime.now())
            return True
        if known.digest != digest:
            raise Conflict(
                f"the {HEADER} {place[2]!r} was used for another message",
                "a new message needs a new key",
            )
        if not known.done:
            waiter = self._runtime.promise()
            known.waiters.append(waiter)
            await waiter
        return False

    def settle(self, place: _Place, error: QueuecastError | None) -> None:
        """Say how the publish ended that `admit` allowed."""
        known = self._known.get(place)
        if known is None or known.done:  # pushed out meanwhile; nobody waits for it
            return
        known.done = True
        if error is not None:
            del self._known[place]
        waiters, known.waiters = known.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)

    def _forget_old(self) -> None:
        oldest = self._runtime.now() - self._window
        while self._known:
            place, known = next(iter(self._known.items()))
            if known.at > oldest and len(self._known) < self._most:
                return
            self.settle(place, OutcomeUnknown("the key was forgotten while it was under way"))
            self._known.pop(place, None)


LOST = OutcomeUnknown("the publish was given up before the broker answered")
