"""The two paths that may be chosen: of STOMP over WebSocket, and of STOMP over SockJS.

Both may be the same, as Spring's users have it: a WebSocket's opening handshake at the path
itself is STOMP's, everything that SockJS asks for lies under it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .aliases import Aliases
from .errors import ConfigError

# What the gateway answers at paths that nobody can choose.
_OWN = frozenset(("sse", "ws", "poll", "publish", "ack", "healthz", "readyz", "admin", "metrics"))
_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True, slots=True)
class StompPaths:
    """websocket: where a WebSocket's opening handshake begins STOMP. sockjs: SockJS's base path.

    At `/ws` STOMP shares with plain WebSockets: `/ws/topic/prices` and `/ws?destination=…`
    are theirs.
    """

    websocket: str = "/ws"
    sockjs: str = "/stomp"

    def check(self, aliases: Aliases, *, demo: bool = False) -> None:
        """Raise ConfigError that names the setting and what else has its path."""
        own = _OWN | {"demo"} if demo else _OWN
        for name, path in (("stomp_path", self.websocket), ("sockjs_path", self.sockjs)):
            where = f"server.{name}: {path!r}"
            if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
                raise ConfigError(f"{where} is not a path", 'e.g. "/ws", no slash at the end')
            first = path.split("/")[1]
            if first in own and path != "/ws":
                relation = "is" if path == f"/{first}" else "lies under"
                raise ConfigError(
                    f"{where} {relation} /{first}, a path of the gateway's own",
                    "choose another first segment",
                )
            alias = aliases.at(path, below=path == self.sockjs)
            if alias is not None:
                raise ConfigError(
                    f"{where} and the alias {alias!r} take the same requests",
                    "choose another path for one of them",
                )
        if self.websocket.startswith(self.sockjs + "/"):
            raise ConfigError(
                f"server.stomp_path: {self.websocket!r} lies under server.sockjs_path "
                f"{self.sockjs!r}, whose paths are SockJS's",
                "give both the same path, or different ones",
            )

    def is_websocket(self, path: str, *, plain: bool) -> bool:
        """Tell whether a request's path is STOMP's. plain: its query names destinations."""
        if path.removesuffix("/") != self.websocket:
            return False
        return not (plain and self.websocket == "/ws")


DEFAULT_PATHS = StompPaths()
