"""What a client asks for when it subscribes by URL: destinations, start, envelope, ack.

The parameters mean the same on SSE, WebSocket and long poll (docs/protocols.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

import msgspec

from ..auth.identity import ANONYMOUS, Identity
from ..destination import Destination, path_text
from ..errors import BadRequest, LimitExceeded
from ..position import LIVE, Start
from .binary import PARAMETER, parse_binary
from .lease import parse_lease

# Distinct parameters in a query; more would only cost us time.
MAX_PARAMETERS = 1000
_SEPARATORS = re.compile("[-_]")


class SubscribeRequest(msgspec.Struct, frozen=True):
    """A subscription asked for in a URL.

    destinations: what was named, in order.
    ack: whether the client settles deliveries itself. prefetch, lease (seconds): None where not
    given. session: of the poll before this one, "" for none.
    cors: header lines (name, value) that every answer must carry. in_path: the (only)
    destination stood in the path. binary: bodies are bytes, whatever they are. verdict: only the
    answer is wanted, no stream. wait: seconds that a long poll may take, None for the gateway's
    own.
    """

    destinations: tuple[Destination, ...]
    start: Start = LIVE
    envelope: bool = False
    ack: bool = False
    prefetch: int | None = None
    identity: Identity = ANONYMOUS
    cors: tuple[tuple[str, str], ...] = ()
    in_path: bool = False
    verdict: bool = False
    wait: float | None = None
    lease: float | None = None
    session: str = ""
    binary: bool = False

    @property
    def work(self) -> tuple[Destination, ...]:
        """The destinations that are queues."""
        return tuple(item for item in self.destinations if not item.is_shared)

    @property
    def shared(self) -> tuple[Destination, ...]:
        """The destinations that are feeds."""
        return tuple(item for item in self.destinations if item.is_shared)


def parse_subscribe(
    path: str,
    query: str,
    headers: Mapping[str, str],
    resolve: Callable[[str], Destination],
    *,
    limit: int,
    identity: Identity = ANONYMOUS,
    cors: tuple[tuple[str, str], ...] = (),
    may_begin_empty: bool = False,
) -> SubscribeRequest:
    """Read a subscription from a URL.

    path: what follows the verb, raw ("" or "/" when the destinations are in the query).
    query: raw. headers: lower-case names. resolve: the destination of a text, aliases expanded.
    limit: destinations per connection. may_begin_empty: with an envelope, no destination is
    needed, the client subscribes later. Raises BadRequest and its kin, LimitExceeded.
    """
    parameters = parse_query(query)
    names = list(parameters.get("destination", ()))
    if path not in ("", "/"):
        names.insert(0, path_text(path))
    envelope = _choice(parameters, "envelope", "json")
    if not names and not (envelope and may_begin_empty):
        raise BadRequest(
            "no destination given", "write /sse/topic/prices, or ?destination=/topic/prices"
        )
    if len(names) > limit:
        raise LimitExceeded(f"{len(names)} destinations, at most {limit} per connection")
    destinations = tuple(resolve(name) for name in names)
    if len(set(destinations)) != len(destinations):
        raise BadRequest("a destination is named twice")
    ack = _choice(parameters, "ack", "client", also="auto")
    lease = parse_lease(one(parameters, "lease"))
    if lease is not None and not ack:
        raise BadRequest("a lease is for ack=client", "add ack=client, or leave it out")
    return SubscribeRequest(
        destinations,
        Start.parse(
            one(parameters, "since"),
            one(parameters, "last"),
            headers.get("last-event-id") or _event_id(parameters),
        ),
        envelope,
        ack,
        parse_prefetch(one(parameters, "prefetch")),
        identity,
        cors,
        in_path=bool(names) and not parameters.get("destination"),
        verdict="application/json" in headers.get("accept", ""),
        wait=_wait(one(parameters, "wait")),
        lease=lease,
        session=one(parameters, "session") or "",
        binary=parse_binary(one(parameters, PARAMETER)),
    )


def parse_query(query: str) -> dict[str, list[str]]:
    """Read a raw query string; raises BadRequest when it is malformed."""
    if not query:
        return {}
    try:
        return parse_qs(
            query,
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_PARAMETERS,
        )
    except ValueError as error:
        raise BadRequest(f"malformed query: {error}", "percent-encode it as UTF-8") from None


def one(parameters: Mapping[str, list[str]], name: str) -> str | None:
    """Return the value of a parameter that may stand once; raises BadRequest."""
    values = parameters.get(name)
    if values is None:
        return None
    if len(values) > 1:
        raise BadRequest(f"the parameter {name!r} is given {len(values)} times, once is allowed")
    return values[0]


def parse_prefetch(text: str | None) -> int | None:
    """Read a prefetch count, 1 to 65535 (AMQP's short); raises BadRequest."""
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 65535:
        raise BadRequest(f"prefetch={text[:32]!r} is not a count", "give 1 to 65535")
    return int(text)


def _event_id(parameters: Mapping[str, list[str]]) -> str | None:
    """Return the last event id that stands in a query, None where there is none.

    Clients that cannot set a header on a request put it there, each with a spelling of its own:
    `lastEventId` (event-source-polyfill), `Last-Event-ID`, `lastEventID` … Of several the last
    one counts: a polyfill appends to a query that may have one already.
    """
    found = None
    for name, values in parameters.items():
        if _SEPARATORS.sub("", name).lower() == "lasteventid":
            found = values[-1] or found
    return found


def _wait(text: str | None) -> float | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 4:
        raise BadRequest(f"wait={text[:32]!r} is not a time", "give whole seconds, from 0")
    return float(text)


def _choice(
    parameters: Mapping[str, list[str]], name: str, value: str, also: str | None = None
) -> bool:
    given = one(parameters, name)
    if given is None or given == also:
        return False
    if given != value:
        allowed = value if also is None else f"{value} or {also}"
        raise BadRequest(f"{name}={given[:32]!r} is unknown", f"allowed is {allowed}")
    return True
