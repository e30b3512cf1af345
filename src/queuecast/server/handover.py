"""Handing a request to the worker that it belongs to, and its answer back to the client.

The request goes over the owner's Unix socket, as HTTP, to the same doors that its clients come in
by. What does not end, a SockJS stream, is passed on as it comes, and neither side reads faster
than the other takes; when the client goes, the owner's connection is cut, which it sees as the
client's own end.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from ..errors import LimitExceeded, OutcomeUnknown, Unavailable
from .peer import HANDED, peer_address
from .siblings import Place

logger = logging.getLogger(__name__)

# Requests under way to one worker; each is a socket here and there, beside the client's own.
MOST: Final = 4096
# Seconds to reach a worker of the same machine: one that is alive takes milliseconds.
_CONNECT: Final = 2.0
# Seconds of its silence: more than a publish may take, and than a stream's heartbeats are apart.
_SILENCE: Final = 60.0
# Seconds for the parent's word on all workers.
_PARENT: Final = 3.0
_SURROGATE: Final = re.compile(r"[\ud800-\udfff]")
# Bytes of an answer that is read whole.
_ANSWER: Final = 1 << 20

# RFC 9110 section 7.6.1, and what each side says for itself.
_OWN: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "expect",
        "content-length",
        "server",
        "date",
        HANDED,
    )
)


class Handover:
    """One worker's way to the others. heartbeat: seconds between signs of life of a stream."""

    def __init__(self, place: Place, heartbeat: float) -> None:
        self.place = place
        self._silence = max(_SILENCE, 2 * heartbeat + 10)
        self._clients: dict[int, aiohttp.ClientSession] = {}
        self._parent: aiohttp.ClientSession | None = None
        self._under_way = [0] * place.count
        # Requests handed over so far, by what became of them.
        self.counts = {"answered": 0, "failed": 0, "left": 0}

    async def close(self) -> None:
        """Cut off what is under way."""
        clients, self._clients = [*self._clients.values()], {}
        if self._parent is not None:
            clients.append(self._parent)
        for client in clients:
            await client.close()

    async def forward(
        self, request: web.BaseRequest, owner: int, target: str, headers: Mapping[str, str],
        body: bytes | None,
    ) -> web.StreamResponse:  # fmt: skip
        """Return a request's answer, which its owner gives; it is written already.

        target: path and query, raw. body: all of it, None where there is none. Raises
        LimitExceeded, Unavailable (the owner has ended), OutcomeUnknown (while it answered).
        """
        self._count(owner)
        outcome = "failed"
        try:
            answer = await self._forward(request, owner, target, headers, body)
            outcome = "answered"
            return answer
        except (asyncio.CancelledError, ConnectionResetError):
            outcome = "left"
            raise
        finally:
            self._done(owner, outcome)

    async def _forward(
        self, request: web.BaseRequest, owner: int, target: str, headers: Mapping[str, str],
        body: bytes | None,
    ) -> web.StreamResponse:  # fmt: skip
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client went")
        made: web.StreamResponse | None = None
        try:
            async with self._client(owner).request(
                request.method,
                URL("http://worker" + target, encoded=True),
                headers=_headers(request, headers),
                data=body,
                allow_redirects=False,
            ) as answer:
                made = web.StreamResponse(status=answer.status, reason=answer.reason)
                for name, value in answer.headers.items():
                    if name.lower() not in _OWN:
                        made.headers.add(name, value)
                made.headers["Server"] = "queuecast"
                made.content_length = answer.content_length
                if answer.content_length is None:
                    # It ends with the owner's connection, and so with the client's.
                    made.force_close()
                await made.prepare(request)
                async for part in answer.content.iter_any():
                    await made.write(part)
                await made.write_eof()
                return made
        except aiohttp.ClientConnectorError as error:
            raise _ended(owner) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            if transport.is_closing():
                raise ConnectionResetError("the client went") from error
            logger.warning("worker %d broke off an answer: %s", owner, error or "no answer")
            if made is not None and made.prepared:
                # The client must see that it is not all.
                transport.abort()
                raise ConnectionError("the answer was cut") from error
            raise _unknown(owner) from error

    async def ask(
        self, request: web.BaseRequest, owner: int, path: str, headers: Mapping[str, str], said: Any
    ) -> dict[str, Any]:
        """Post JSON to a worker for a client, and return the JSON that it answers.

        Raises LimitExceeded, Unavailable, OutcomeUnknown.
        """
        self._count(owner)
        outcome = "failed"
        try:
            async with self._client(owner).post(
                URL("http://worker" + path, encoded=True),
                headers=_headers(request, headers),
                data=msgspec.json.encode(said),
            ) as answer:
                found = msgspec.json.decode(await answer.content.read(_ANSWER))
                if not isinstance(found, dict):
                    raise _unknown(owner)
                outcome = "answered"
                return found
        except aiohttp.ClientConnectorError as error:
            raise _ended(owner) from error
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            raise _unknown(owner) from error
        finally:
            self._done(owner, outcome)

    async def readiness(self) -> tuple[bool, str] | None:
        """Return what the parent says of all workers; None if it does not answer."""
        if self._parent is None:
            self._parent = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self.place.parent)),
                timeout=aiohttp.ClientTimeout(_PARENT),
            )
        try:
            async with self._parent.get("http://parent/readyz") as answer:
                said = msgspec.json.decode(await answer.content.read(_ANSWER))
            return bool(said["ready"]), str(said["status"])
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, KeyError, TypeError):
            return None

    def _count(self, owner: int) -> None:
        if self._under_way[owner] >= MOST:
            raise LimitExceeded(f"{MOST} requests wait for worker {owner}, that is the limit")
        self._under_way[owner] += 1

    def _done(self, owner: int, outcome: str) -> None:
        self._under_way[owner] -= 1
        self.counts[outcome] += 1

    def _client(self, owner: int) -> aiohttp.ClientSession:
        client = self._clients.get(owner)
        if client is None:
            client = self._clients[owner] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self.place.door(owner)), limit=0),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT, sock_read=self._silence
                ),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            )
        return client


def _headers(request: web.BaseRequest, headers: Mapping[str, str]) -> CIMultiDict[str]:
    made: CIMultiDict[str] = CIMultiDict()
    for name, value in request.headers.items():
        # What is not UTF-8 cannot be sent on. Nothing hangs on it: the request was admitted here.
        if name.lower() not in _OWN and not _SURROGATE.search(value):
            made.add(name, value)
    made["Host"] = headers.get("host", "")
    made[HANDED] = peer_address(headers, request.transport)
    return made


def _ended(owner: int) -> Unavailable:
    return Unavailable(f"worker {owner}, which has this session, has ended", "begin a new session")


def _unknown(owner: int) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"worker {owner} did not answer", "whether it did what was asked is not known"
    )
