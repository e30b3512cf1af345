"""Publishing over HTTP: one body, or a JSON batch.

    POST /publish/topic/prices?persistent=false&header.trace=7      the body is the message's
    POST /publish    {"messages": [{"destination", "body" | "base64", "headers"}, …]}

The answer is 200 only once the broker has taken responsibility for everything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from ..auth.identity import Identity
from ..destination import Destination, path_text
from ..disconnect import for_error
from ..errors import (
    BadRequest,
    OutcomeUnknown,
    PublishFailed,
    QueuecastError,
    TooLarge,
)
from ..message import Properties
from ..sessions.idempotency import HEADER
from ..sessions.publishing import (
    NAMES,
    application_headers,
    body_of,
    flag,
    properties_of,
    short_text,
)
from ..sessions.request import one, parse_query
from ..sessions.services import Services
from .limits import ServerLimits
from .uploads import Uploads

_HEADER = "header."
# Said in headers of HTTP's own.
_NOT_IN_QUERY = frozenset(("content-type",))
_RESERVED = frozenset(("token",))
_ENTRY = frozenset(("destination", "body", "base64", "headers", "mandatory"))

# Room for the number of a message in a batch.
_MAX_KEY = 240

# Header lines that are properties of the message, each with its name there.
_FIELDS = (("content-type", "content_type"), ("content-encoding", "content_encoding"))

# Messages of a batch that are published before the event loop has its turn.
_A_TURN = 64

Entry = tuple[Destination, bytes, Properties, bool | None]


class Wanted(NamedTuple):
    """What a request with one body asks for; mandatory as in Broker.publish."""

    destination: Destination
    properties: Properties
    mandatory: bool | None

    @property
    def answer(self) -> dict[str, str]:
        """What its client gets once it is published."""
        return {"published": self.destination.shown}


class BatchFailed(PublishFailed):
    """Some messages of a batch were not taken. extra: their indexes and reasons."""

    def __init__(self, text: str, hint: str, extra: dict[str, Any], status: int) -> None:
        super().__init__(text, hint)
        self.extra = extra
        self.status = status


class Publisher:
    """Serves POST /publish."""

    def __init__(self, services: Services, limits: ServerLimits, uploads: Uploads) -> None:
        self._services = services
        self._limits = limits
        self._uploads = uploads

    def wanted(
        self, identity: Identity, rest: str, query: str, headers: Mapping[str, str]
    ) -> Wanted:
        """Read what a request with one body asks for; raises what the policy does, BadRequest.

        rest: the path after the verb, raw. headers: of any case, or lower-case names.
        """
        parameters = parse_query(query)
        destination = self._target(identity, path_text(rest))
        properties, mandatory = _from_query(parameters)
        for header, field in _FIELDS:
            value = headers.get(header)
            if value is not None and getattr(properties, field) is None:
                setattr(properties, field, short_text(header.title(), value))
        if (key := _key(headers)) is not None:
            properties.headers = {**properties.headers, HEADER: key}
        return Wanted(destination, properties, mandatory)

    async def single(
        self, request: web.BaseRequest, identity: Identity, rest: str, query: str
    ) -> dict[str, Any]:
        """Publish the request's body; returns the answer, raises what policy and broker raise."""
        wanted = self.wanted(identity, rest, query, request.headers)
        body = await self._uploads.read(request, self._services.limits.message, "limits.message")
        await self._services.publish_once(
            identity, wanted.destination, body, wanted.properties, mandatory=wanted.mandatory
        )
        return wanted.answer

    async def batch(self, request: web.BaseRequest, identity: Identity) -> dict[str, Any]:
        """Publish a batch: all of it is checked before any of it is published.

        Raises BatchFailed when the broker did not take all.
        """
        if "Content-Encoding" in request.headers:
            raise BadRequest("a batch is plain JSON, without Content-Encoding")
        raw = await self._uploads.read(request, self._limits.batch, "limits.batch")
        entries = self._entries(identity, raw)
        if (key := _key(request.headers)) is not None:
            for index, (_, _, properties, _) in enumerate(entries):
                # The batch's key, where a message has none of its own.
                properties.headers = {HEADER: f"{key}/{index}", **properties.headers}
        outcomes = await self._publish_all(identity, entries)
        if any(isinstance(outcome, BaseException) for outcome in outcomes):
            raise _partly(outcomes)
        return {"published": [entry[0].shown for entry in entries]}

    async def _publish_all(
        self, identity: Identity, entries: list[Entry]
    ) -> list[BaseException | None]:
        """Publish in order; returns what became of each: None, or what was raised."""
        outcomes: list[BaseException | None] = []
        for destination, body, properties, mandatory in entries:
            if len(outcomes) % _A_TURN == _A_TURN - 1:
                await asyncio.sleep(0)  # others have their turn
            try:
                if not self._services.publish_at_once(
                    identity, destination, body, properties, mandatory=mandatory
                ):
                    break
            except QueuecastError as error:
                outcomes.append(error)
            else:
                outcomes.append(None)
        # The others are started in order and confirmed together: a broker keeps that of calls.
        rest = entries[len(outcomes) :]
        outcomes += await asyncio.gather(
            *(
                self._services.publish_once(
                    identity, destination, body, properties, mandatory=mandatory
                )
                for destination, body, properties, mandatory in rest
            ),
            return_exceptions=True,
        )
        return outcomes

    # -- what is asked for ----------------------------------------------------------------

    def _target(self, identity: Identity, name: str) -> Destination:
        destination = self._services.resolve(name)
        if destination.has_wildcards:
            raise BadRequest(
                f"nothing can be published to the pattern {destination.shown}",
                "publish to a key without * and #",
            )
        self._services.allow(identity, "publish", destination)
        return destination

    def _entries(self, identity: Identity, raw: bytes) -> list[Entry]:
        try:
            batch = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest(f"the batch is not JSON: {error}", _BATCH_HINT) from None
        messages = batch.get("messages") if isinstance(batch, dict) else None
        if not isinstance(messages, list) or set(batch) != {"messages"}:
            raise BadRequest("the body is not a batch", _BATCH_HINT)
        if len(messages) > self._limits.batch_messages:
            raise TooLarge(
                f"{len(messages)} messages in a batch, at most {self._limits.batch_messages}"
            )
        entries = []
        # Most batches name few destinations, and each is checked once.
        targets: dict[str, Destination] = {}
        for index, message in enumerate(messages):
            try:
                entries.append(self._entry(identity, message, targets))
            except QueuecastError as error:
                named = type(error)(f"messages[{index}]: {error.text}", error.hint)
                raise named from None
        return entries

    def _entry(self, identity: Identity, message: Any, targets: dict[str, Destination]) -> Entry:
        if not isinstance(message, dict):
            raise BadRequest("not an object", _BATCH_HINT)
        if not message.keys() <= _ENTRY:
            unknown = sorted(message.keys() - _ENTRY)
            raise BadRequest(
                f"{unknown[0][:64]!r} is unknown", f"allowed are {', '.join(sorted(_ENTRY))}"
            )
        name = message.get("destination")
        if not isinstance(name, str):
            raise BadRequest("no destination given")
        destination = targets.get(name)
        if destination is None:
            destination = targets[name] = self._target(identity, name)
        headers = message.get("headers", {})
        if not isinstance(headers, dict):
            raise BadRequest("headers is not an object")
        properties = properties_of(headers)
        body, is_json = body_of(message)
        limit = self._services.limits.message
        if len(body) > limit:
            raise TooLarge(f"a body of {len(body)} bytes, at most {limit} (limits.message)")
        if is_json and properties.content_type is None:
            properties.content_type = "application/json"
        mandatory = flag("mandatory", message["mandatory"]) if "mandatory" in message else None
        return destination, body, properties, mandatory


def _key(headers: Mapping[str, str]) -> str | None:
    """Return the request's Idempotency-Key, which may be quoted (RFC 8941 section 3.3.3)."""
    key = headers.get(HEADER)
    if key is None:
        return None
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= _MAX_KEY or not key.isascii():
        raise BadRequest(f"Idempotency-Key has 1 to {_MAX_KEY} characters of ASCII")
    return key


_BATCH_HINT = 'a batch is {"messages": [{"destination": "/topic/a", "body": "…"}]}'


def _from_query(parameters: Mapping[str, list[str]]) -> tuple[Properties, bool | None]:
    known: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    mandatory = None
    for name in parameters:
        value = one(parameters, name)
        if name.startswith(_HEADER):
            headers[name[len(_HEADER) :]] = value
        elif name == "mandatory":
            mandatory = flag(name, value)
        elif name in NAMES and name not in _NOT_IN_QUERY:
            known[name] = value
        elif name not in _RESERVED:
            raise BadRequest(
                f"the parameter {name[:64]!r} is unknown",
                "allowed are mandatory, header.NAME and "
                + ", ".join(sorted(NAMES - _NOT_IN_QUERY)),
            )
    properties = properties_of(known)
    if headers:
        properties.headers = application_headers(headers)
    return properties, mandatory


def _partly(outcomes: list[BaseException | None]) -> BatchFailed:
    failed: list[dict[str, Any]] = []
    unknown: list[dict[str, Any]] = []
    first: QueuecastError | None = None
    for index, outcome in enumerate(outcomes):
        if outcome is None:
            continue
        if not isinstance(outcome, QueuecastError):
            raise outcome
        first = first or outcome
        entry = {
            "index": index,
            "code": outcome.code,
            "text": outcome.text,
            "hint": outcome.hint,
            "retry": outcome.retry,
        }
        (unknown if isinstance(outcome, OutcomeUnknown) else failed).append(entry)
    assert first is not None
    return BatchFailed(
        f"{len(failed)} of {len(outcomes)} messages were not published, "
        f"of {len(unknown)} it is not known",
        "send again only what failed",
        {"failed": failed, "unknown": unknown},
        for_error(first).status,
    )
