"""The door-keeper of requests: where does this one go, and may it come in at all.

The door and the web application ask the same gate, so that a request means the same whether it
opens a connection or comes later on one.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from ..aliases import BARE_VERBS, Aliases
from ..auth.origins import OriginCheck
from ..codecs import sockjs
from ..errors import BadDestination, QueuecastError, Refused
from ..paths import DEFAULT_PATHS, StompPaths
from ..sessions.request import SubscribeRequest, parse_subscribe
from ..sessions.services import Services
from ..sessions.stomp import Peer
from .peer import peer_address
from .stomp import basic_login, peer_of_request
from .throttle import Throttle

logger = logging.getLogger(__name__)

Cors = tuple[tuple[str, str], ...]

_DESTINATION = re.compile(r"(?:^|&)destination=")
# A WebSocket without a path of its own is STOMP unless its query says otherwise.
_PLAIN = re.compile(r"(?:^|&)(?:destination|envelope)=")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://([^/?]*)")

_HOSTS = ("host", "x-forwarded-host")
_VERBS = ("sse", "ws", "poll", "publish")
_SINGLE = ("ack", "healthz", "readyz")
# Everything that reads from the broker or writes to it: browsers' origins are checked there.
GUARDED = frozenset((*_VERBS, "ack", "stomp", "sockjs"))
# What pages load without a browser's saying where they are: scripts, frames and their forms.
_UNSIGNED = frozenset(("htmlfile", "jsonp", "jsonp_send"))
_ORIGIN = re.compile(r"https?://[^/?#]+")
# Requests whose reading is remembered, and their length in characters: strangers can ask for
# anything, and shall fill no memory with it.
_KEPT, _LONGEST_KEPT = 512, 1000


class Route(NamedTuple):
    """Where a request goes.

    verb: sse, ws, stomp, sockjs, poll, publish, ack, healthz, readyz, or "" for pages. rest: the
    path after the verb, raw; for pages the whole path.
    """

    verb: str
    rest: str


_GREETING = Route("sockjs", "")


class Gate:
    """Routes and admission, shared by door and web."""

    def __init__(
        self,
        services: Services,
        origins: OriginCheck,
        aliases: Aliases,
        *,
        prefix: str = "",
        paths: StompPaths = DEFAULT_PATHS,
        is_proxy: Callable[[str], bool] | None = None,
    ) -> None:
        """prefix: a path that a proxy puts before all others and does not strip, like "/push".
        paths: where STOMP is.

        is_proxy: whether a peer's address is a trusted proxy's, whose X-Forwarded-Host counts.
        """
        self._services = services
        self._origins = origins
        self._aliases = aliases
        self._prefix = prefix.rstrip("/")
        self._paths = paths
        self._is_proxy = is_proxy
        self._throttle = Throttle(logger)
        # A page's visitors all ask for the same. What it means depends on nothing but the text
        # and the configuration; whether they may have it is asked each time.
        self._kept_subscription = lru_cache(_KEPT)(self._subscription)

    def route(self, path: str, query: str) -> Route:
        """Choose by the raw path; the prefix may be there or not (a proxy may strip it)."""
        prefix = self._prefix
        if prefix and (path == prefix or path.startswith(prefix + "/")):
            path = path[len(prefix) :] or "/"
        if self._paths.is_websocket(path, plain=bool(_PLAIN.search(query))):
            return Route("stomp", "")
        found = self._sockjs(path, query)
        if found is not None:
            return found
        verb = path[1:].partition("/")[0]
        if verb in _VERBS and path.startswith("/"):
            return self._verb(verb, path[len(verb) + 1 :], query)
        if path[1:] in _SINGLE:
            return Route(path[1:], "")
        if self._is_alias(path):
            return Route("sse", path)
        return Route("", path)

    def _sockjs(self, path: str, query: str) -> Route | None:
        base = self._paths.sockjs
        if path != base and not path.startswith(base + "/"):
            return None
        rest = path[len(base) :]
        if base == "/ws" and not sockjs.is_unmistakable(rest):
            # Plain WebSockets are here as well; none of their destinations looks like SockJS's.
            return None if rest not in ("", "/") or _DESTINATION.search(query) else _GREETING
        # SockJS's own path for clients that want no SockJS: bare STOMP.
        return Route("stomp", "") if rest == "/websocket" else Route("sockjs", rest)

    @property
    def greets(self) -> bool:
        """Whether STOMP's path is SockJS's as well: without a handshake it is greeted there."""
        return self._paths.websocket == self._paths.sockjs

    def _verb(self, verb: str, rest: str, query: str) -> Route:
        if rest not in ("", "/") or _DESTINATION.search(query):
            return Route(verb, rest)
        # "/sse" = "/topic/news": the bare verb itself can be an alias.
        if f"/{verb}" in BARE_VERBS and self._is_alias(f"/{verb}"):
            return Route(verb, f"/{verb}")
        return Route(verb, rest)

    def _is_alias(self, path: str) -> bool:
        try:
            return self._aliases.expand(path) is not None
        except BadDestination:
            return True  # one that is misused: `subscription` says how

    def admit(
        self, route: Route, headers: Mapping[str, str], transport: asyncio.BaseTransport | None
    ) -> Cors:
        """Check Host and Origin; returns the answer's CORS lines, raises Refused.

        headers: lower-case names. transport: whose peer may be a trusted proxy.
        """
        trusted = self._trusts(headers, transport)
        try:
            if route.verb in GUARDED and not _is_frame(route):
                headers = _signed(route, headers)
                return tuple(self._origins.check(headers, trusted_proxy=trusted).items())
            # A link from anywhere may lead to a page; but the name in it must be ours.
            hosts = {name: headers[name] for name in _HOSTS if name in headers}
            self._origins.check(hosts, trusted_proxy=trusted)
            return tuple(self._origins.cors(headers, trusted_proxy=trusted).items())
        except Refused as error:
            self._report(error)
            raise

    def preflight(
        self, headers: Mapping[str, str], methods: str, transport: asyncio.BaseTransport | None
    ) -> dict[str, str]:
        """Return the headers that answer an admitted OPTIONS."""
        return self._origins.preflight(
            headers, methods, trusted_proxy=self._trusts(headers, transport)
        )

    @property
    def knows_proxies(self) -> bool:
        """Whether it depends on the peer's address what some headers mean."""
        return self._is_proxy is not None

    def _trusts(self, headers: Mapping[str, str], transport: asyncio.BaseTransport | None) -> bool:
        if self._is_proxy is None:
            return False
        address = peer_address(headers, transport)
        return bool(address) and self._is_proxy(address)

    def ancestors(self, headers: Mapping[str, str], transport: asyncio.BaseTransport | None) -> str:
        """Return whose pages may frame ours; see OriginCheck."""
        return self._origins.ancestors(headers, trusted_proxy=self._trusts(headers, transport))

    def peer(self, headers: Mapping[str, str], transport: asyncio.BaseTransport) -> Peer:
        """Return who asks for STOMP."""
        peer = peer_of_request(headers, transport, self._is_proxy)
        if self._services.stomp.http_auth:
            peer = peer._replace(login=basic_login(headers.get("authorization")))
        return peer

    def subscription(
        self, route: Route, query: str, headers: Mapping[str, str], cors: Cors
    ) -> SubscribeRequest:
        """Read a subscription of an admitted request; raises BadRequest and its kin."""
        asked = (headers.get("last-event-id", ""), headers.get("accept", ""))
        if len(route.rest) + len(query) + sum(map(len, asked)) > _LONGEST_KEPT:
            return self._subscription(route, query, *asked, cors)
        return self._kept_subscription(route, query, *asked, cors)

    def _subscription(
        self, route: Route, query: str, last_event_id: str, accept: str, cors: Cors
    ) -> SubscribeRequest:
        return parse_subscribe(
            route.rest,
            query,
            {"last-event-id": last_event_id, "accept": accept},
            self._services.resolve,
            limit=self._services.limits.subscriptions,
            cors=cors,
            may_begin_empty=route.verb == "ws",
        )

    def _report(self, error: QueuecastError) -> None:
        """Log a refusal with the configuration line that would allow it."""
        hint = f"; {'to allow it: ' if error.hint.startswith('[') else ''}{error.hint}"
        hint = hint if error.hint else ""
        self._throttle.warning(f"refused: {error.text}{hint}")


def split_target(target: str, headers: dict[str, str]) -> tuple[str, str]:
    """Return path and query of a request target, raw.

    An absolute form gives its authority to `headers` (RFC 9112 section 3.2.2).
    """
    absolute = _ABSOLUTE.match(target)
    if absolute is not None:
        headers["host"] = absolute[1]
        target = target[absolute.end() :]
        if not target.startswith("/"):
            target = "/" + target
    path, _, query = target.partition("?")
    return path, query


def _is_frame(route: Route) -> bool:
    """Tell whether a page is asked for that others frame: a browser's word is no use there."""
    return route.verb == "sockjs" and sockjs.is_iframe(route.rest)


def _signed(route: Route, headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return headers that say from where a script, a frame or a form is asked for.

    Any page of any site can load those, and a jsonp answer could be read there. Browsers that say
    neither Origin nor Sec-Fetch-Site, those that need such transports, have the Referer.
    """
    if route.verb != "sockjs" or "origin" in headers or headers.get("sec-fetch-site"):
        return headers
    path = sockjs.parse_path(route.rest)
    if path is None or path.transport not in _UNSIGNED:
        return headers
    origin = _ORIGIN.match(headers.get("referer", ""))
    if origin is None:
        raise Refused(
            f"{path.transport} is for pages that say where they are",
            "the request has neither Origin, Sec-Fetch-Site nor Referer",
        )
    return {**headers, "origin": origin[0]}
