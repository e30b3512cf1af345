"""Which web pages may use the gateway: Origin, Sec-Fetch-Site, Host and CORS.

Any website can make its visitors' browsers open connections to the gateway, also to one on
their own loopback, and would so read its topics and drain its queues. Browsers say from where a
request comes, and programs that are no browsers have no other people's pages to guard against:

* Origin present: it must be the gateway's own (the page was served under the very Host that it
  asks), a configured one, or, where the gateway was reached by a loopback name, a loopback name
  on any port. `null` (sandboxed pages, files) only if configured.
* Origin absent: Sec-Fetch-Site must not say that another site asks.
* On a loopback listener Host must be a loopback name or that of a configured origin: a name
  that an attacker's DNS points at 127.0.0.1 makes his page "same origin" (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from ..errors import Refused

ALLOWED_HEADERS = "Content-Type, Idempotency-Key, Authorization, Last-Event-ID"
PREFLIGHT_AGE = 600  # seconds; browsers cap it at two hours and less
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
# Requests of which it is remembered that they passed, and characters of their headers: strangers
# who invent hosts fill no memory with them.
_KEPT, _LONGEST_KEPT = 256, 300


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address (no port) is this machine's own loopback."""
    host = host.lower().removesuffix(".").removeprefix("[").removesuffix("]")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class OriginCheck:
    """The check for one listener. origins: `[server] origins`; listen_host: where it listens.

    Headers are given by lower-case names. trusted_proxy: the peer is one of
    `[server] trusted_proxies`, so its X-Forwarded-Host is the Host that the browser asked.
    """

    def __init__(self, origins: Iterable[str] = (), listen_host: str = "127.0.0.1") -> None:
        self._origins = frozenset(_normal(origin) for origin in origins)
        self._hosts = frozenset(_split_host(_netloc(origin))[0] for origin in self._origins) - {""}
        self._loopback = is_loopback(listen_host)
        # The pages of a site ask all alike, and thousands at once. Only what passed is kept.
        self._kept_check = lru_cache(_KEPT)(self._check)

    def check(self, headers: Mapping[str, str], *, trusted_proxy: bool = False) -> dict[str, str]:
        """Return the CORS headers to add; raises Refused, its hint is the line to configure."""
        host, origin = _host(headers, trusted_proxy), headers.get("origin")
        site = headers.get("sec-fetch-site", "") if origin is None else ""
        if len(host) + len(origin or site) > _LONGEST_KEPT:
            return self._check(host, origin, site).copy()
        return self._kept_check(host, origin, site).copy()

    def _check(self, host: str, origin: str | None, site: str) -> dict[str, str]:
        self._check_host(host)
        if origin is None:
            self._check_site(site, host)
            return {"Vary": "Origin"}
        if not self._trusts(origin, host):
            raise Refused(
                f"pages of {origin[:200]!r} may not use this gateway",
                # Every sandboxed frame of every site is "null" as well.
                "open the page over http, a file has no origin; "
                '[server] origins = ["null"] lets in any site\'s sandboxed frames too'
                if origin == "null"
                else f'[server] origins = ["{origin[:200]}"]',
            )
        return _cors(origin)

    def cors(self, headers: Mapping[str, str], *, trusted_proxy: bool = False) -> dict[str, str]:
        """Return the CORS headers of any answer, a refusal too: pages that are trusted may read
        why. Never raises; never `*`.
        """
        origin = headers.get("origin")
        host = _host(headers, trusted_proxy)
        if origin is None or not self._host_fits(host) or not self._trusts(origin, host):
            return {"Vary": "Origin"}
        return _cors(origin)

    def preflight(
        self,
        headers: Mapping[str, str],
        methods: str = "GET, POST",
        *,
        trusted_proxy: bool = False,
    ) -> dict[str, str]:
        """Return the headers that answer an OPTIONS preflight with 204; raises Refused."""
        answer = self.check(headers, trusted_proxy=trusted_proxy)
        answer["Vary"] = (
            "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, "
            "Access-Control-Request-Private-Network"
        )
        answer["Access-Control-Allow-Methods"] = methods
        answer["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
        answer["Access-Control-Max-Age"] = str(PREFLIGHT_AGE)
        if headers.get("access-control-request-private-network") == "true":
            # A public page asks for a loopback or private address (Private Network Access).
            answer["Access-Control-Allow-Private-Network"] = "true"
        return answer

    def ancestors(self, headers: Mapping[str, str], *, trusted_proxy: bool = False) -> str:
        """Return whose pages may frame ours, as the sources of a CSP's frame-ancestors."""
        sources = ["'self'", *sorted(origin for origin in self._origins if _netloc(origin))]
        host = _host(headers, trusted_proxy)
        if is_loopback(_split_host(host)[0]) if host else self._loopback:
            sources += [
                f"{scheme}://{name}:*"
                for scheme in _DEFAULT_PORTS
                for name in ("localhost", "*.localhost", "127.0.0.1")
            ]
        return " ".join(sources)

    def _check_host(self, host: str) -> None:
        if self._host_fits(host):
            return
        raise Refused(
            f"Host {host[:200]!r} is not a name of this loopback listener",
            f'[server] origins = ["https://{host[:200]}"]',
        )

    def _host_fits(self, host: str) -> bool:
        if not self._loopback or not host:
            return True
        name = _split_host(host)[0]
        return is_loopback(name) or name in self._hosts

    def _check_site(self, site: str, host: str) -> None:
        if site in ("", "none", "same-origin"):
            return
        if site == "same-site" and is_loopback(_split_host(host)[0]):
            return  # another port of this machine, which would pass with its Origin as well
        raise Refused(
            f"a page of another site asks (Sec-Fetch-Site: {site[:40]})",
            'open it with EventSource, fetch or WebSocket from one of [server] origins = ["…"]',
        )

    def _trusts(self, origin: str, host: str) -> bool:
        origin = _normal(origin)
        if origin in self._origins:
            return True
        netloc = _netloc(origin)
        if not netloc:
            return False
        scheme = origin.partition(":")[0]
        if netloc == host.lower().removesuffix(_DEFAULT_PORTS[scheme]):
            return True
        # On a gateway for everybody a page of the visitor's own machine is a stranger's.
        reached_locally = is_loopback(_split_host(host)[0]) if host else self._loopback
        return reached_locally and is_loopback(_split_host(netloc)[0])


def _cors(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "Origin",
    }


def _host(headers: Mapping[str, str], trusted_proxy: bool) -> str:
    forwarded = headers.get("x-forwarded-host", "") if trusted_proxy else ""
    return forwarded.partition(",")[0].strip() or headers.get("host", "").strip()


def _normal(origin: str) -> str:
    """Write an origin as browsers do: lower case, without its scheme's own port."""
    origin = origin.strip().lower()
    scheme = origin.partition("://")[0]
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, "\n"))


def _netloc(origin: str) -> str:
    """Return host[:port] of a well-formed http(s) origin, else ""."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    if parts.scheme not in _DEFAULT_PORTS or origin != f"{parts.scheme}://{parts.netloc}":
        return ""
    return "" if "@" in parts.netloc else parts.netloc


def _split_host(host: str) -> tuple[str, str]:
    """Split host[:port]; an IPv6 address keeps its brackets."""
    host = host.lower()
    if host.startswith("["):
        name, _, rest = host.partition("]")
        return name + "]", rest.removeprefix(":")
    name, _, port = host.partition(":")
    return name, port
