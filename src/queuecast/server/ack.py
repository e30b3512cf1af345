"""Settling over HTTP what a client got over SSE, long poll, or a WebSocket that is gone.

    POST /ack    {"ack": ID}    {"ack": [ID, …]}    {"nack": ID, "requeue": false}

The answer is 200 {"settled": N} when all of it was settled. Else it is the first failure's, with
`settled` and a list `failed` of the ids that were not, each with its reason.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from ..auth.identity import Identity
from ..errors import BadRequest, QueuecastError
from ..sessions.acks import parse_command, settle_all
from ..sessions.envelope import error_notice
from ..sessions.services import Services

# Bytes of one id in JSON; a request has so many of them as limits.settle.
_ID_BYTES = 100

# Reads a request's body: the most bytes, and the setting's name that raises them.
Read = Callable[[web.BaseRequest, int, str], Awaitable[bytes]]


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

    def __init__(self, services: Services, read: Read) -> None:
        self._services = services
        self._read = read

    async def answer(self, request: web.BaseRequest, identity: Identity) -> dict[str, Any]:
        """Settle what the body names; raises BadRequest and AckFailed."""
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
        failed = settle_all(services.acks, identity, command)
        settled = len(command.ids) - len(failed)
        if failed:
            notices = [{command.verb: id, **error_notice(error)} for id, error in failed]
            raise AckFailed(failed[0][1], {"settled": settled, "failed": notices})
        return {"settled": settled}


_HINT = 'write {"ack": ID} or {"nack": ID, "requeue": false}'
