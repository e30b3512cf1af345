"""Settling over HTTP what a client got over SSE, long poll, or a WebSocket that is gone.

    POST /ack    {"ack": ID}    {"ack": [ID, …]}    {"nack": ID, "requeue": false}

The answer is 200 {"settled": N} when all of it was settled. Else it is the first failure's, with
`settled` and a list `failed` of the ids that were not, each with its reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from ..auth.identity import Identity
from ..errors import (
    BadRequest,
    Elsewhere,
    NotFound,
    QueuecastError,
    Refused,
    Returned,
    Settled,
    Unavailable,
)
from ..sessions.acks import Command, parse_command, settle_all
from ..sessions.envelope import error_notice
from ..sessions.services import Services
from .handover import Handover

# Bytes of one id in JSON; a request has so many of them as limits.settle.
_ID_BYTES = 100

# Reads a request's body: the most bytes, and the setting's name that raises them.
Read = Callable[[web.BaseRequest, int, str], Awaitable[bytes]]

Failed = list[tuple[object, QueuecastError]]


class AckFailed(QueuecastError):
    """Some messages could not be settled; it says what the first one's error says.

    error: what is wrong with the first. extra: what was settled, and what was not.
    """

    def __init__(self, error: QueuecastError, extra: dict[str, Any]) -> None:
        super().__init__(error.text, error.hint)
        self.error = error
        self.extra = extra


class Acker:
    """Serves POST /ack."""

    def __init__(self, services: Services, read: Read, handover: Handover | None = None) -> None:
        """handover: the way to other workers."""
        self._services = services
        self._read = read
        self._handover = handover

    async def answer(
        self, request: web.BaseRequest, identity: Identity, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        """Settle what the body names; raises BadRequest and AckFailed.

        headers: lower-case names.
        """
        services = self._services
        most = services.limits.settle
        raw = await self._read(request, most * _ID_BYTES, "nothing")
        try:
            said = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the body is not JSON: {error}", _HINT) from None
        if not isinstance(said, dict):
            raise BadRequest("the body is not a JSON object", _HINT)
        command = parse_command(said, most)
        failed = await self._settle(request, identity, headers, command)
        settled = len(command.ids) - len(failed)
        if failed:
            notices = [{command.verb: id, **error_notice(error)} for id, error in failed]
            raise AckFailed(failed[0][1], {"settled": settled, "failed": notices})
        return {"settled": settled}

    async def _settle(
        self,
        request: web.BaseRequest,
        identity: Identity,
        headers: Mapping[str, str],
        command: Command,
    ) -> Failed:
        """Settle here what was given out here, and have the other workers settle theirs."""
        if self._handover is None:
            return settle_all(self._services.acks, identity, command)
        parts = self._handover.place.by_owner(command.ids)
        own = parts.pop(None, [])
        failed = settle_all(self._services.acks, identity, command._replace(ids=own))
        found = await asyncio.gather(
            *(
                self._settle_at(request, owner, headers, command._replace(ids=ids))
                for owner, ids in parts.items()
                if owner is not None
            )
        )
        for part in found:
            failed += part
        places = {str(id): place for place, id in enumerate(command.ids)}
        return sorted(failed, key=lambda each: places.get(str(each[0]), 0))

    async def _settle_at(
        self, request: web.BaseRequest, owner: int, headers: Mapping[str, str], command: Command
    ) -> Failed:
        assert self._handover is not None
        said: dict[str, Any] = {command.verb: command.ids}
        if command.verb == "nack":
            said["requeue"] = command.requeue
        try:
            answer = await self._handover.ask(request, owner, "/ack", headers, said)
        except Unavailable:
            gone = NotFound(
                "the worker that gave the message out has ended",
                "what its clients had not acked went back to the queue",
            )
            return [(id, gone) for id in command.ids]
        except QueuecastError as error:
            return [(id, error) for id in command.ids]
        if "failed" in answer:
            return [(each.get(command.verb), _error(each)) for each in answer["failed"]]
        if "settled" in answer:
            return []
        return [(id, _error(answer)) for id in command.ids]


def _error(notice: Mapping[str, Any]) -> QueuecastError:
    """Return the error that another worker's notice tells of."""
    text, hint = str(notice.get("text", "")), str(notice.get("hint", ""))
    for kind in _KINDS:
        if kind.code == notice.get("code"):
            return kind(text, hint)
    return QueuecastError(text, hint)


# What settling a message raises, and what admission does.
_KINDS: tuple[type[QueuecastError], ...] = (
    NotFound,
    Returned,
    Settled,
    Elsewhere,
    Refused,
    BadRequest,
)


_HINT = 'write {"ack": ID} or {"nack": ID, "requeue": false}'
