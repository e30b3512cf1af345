"""The listening sockets, and the file descriptors that they need."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

# A page reload of thousands arrives at once; the kernel caps it at net.core.somaxconn.
BACKLOG = 4096
# Descriptors that are not clients: the broker's connections, logs, databases, the loop's own.
KEPT_BACK = 128


def raise_open_files() -> int:
    """Raise RLIMIT_NOFILE to its hard limit; returns how many connections it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            # Some systems have a ceiling below an unlimited hard limit; we live with the soft.
            logger.warning("the limit of open files stays at %d: %s", soft, error)
    if soft == resource.RLIM_INFINITY:
        return 1 << 30
    return max(1, soft - KEPT_BACK)


class Listener:
    """Listens on every address of a host name, on one port."""

    def __init__(
        self,
        make_door: Callable[[], asyncio.Protocol],
        host: str,
        port: int,
        *,
        reuse: bool = False,
        inherited: Sequence[socket.socket] = (),
    ) -> None:
        """port: 0 takes a free one. reuse: several processes may share the port. inherited:
        sockets that listen already, instead of own ones.
        """
        self._make_door = make_door
        self._host = host
        self._port = port
        self._reuse = reuse
        self._inherited = inherited
        self._servers: list[asyncio.Server] = []

    async def start(self) -> tuple[str, int]:
        """Listen; returns host and port. Raises OSError as it comes (port taken, no such host)."""
        loop = asyncio.get_running_loop()
        opened = list(self._inherited)
        if not opened:
            opened = await bind(self._host, self._port, reuse=self._reuse)
        self._port = opened[0].getsockname()[1]
        try:
            while opened:
                server = await loop.create_server(self._make_door, sock=opened[0], backlog=BACKLOG)
                opened.pop(0)
                self._servers.append(server)
        except BaseException:
            for each in opened:
                each.close()
            self.close()
            raise
        return self._host, self._port

    def close(self) -> None:
        """Stop accepting; connections that are open stay so."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()


async def bind(host: str, port: int, *, reuse: bool = False) -> list[socket.socket]:
    """Return sockets bound to every address of a host name, all on one port; see Listener.

    Raises OSError.
    """
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    opened: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in dict.fromkeys((info[0], info[4]) for info in found):
        # The first address decides which port "0" is; the others take the same.
        full = (address[0], port, *address[2:])
        try:
            opened.append(_open(family, full, reuse))
        except OSError as error:
            # "localhost" is ::1 as well, which a container without IPv6 does not have.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                missing = error
                continue
            for each in opened:
                each.close()
            raise
        port = opened[-1].getsockname()[1]
    if not opened:
        raise missing or OSError(errno.EADDRNOTAVAIL, f"no address for {host!r}")
    return opened


def _open(family: int, address: tuple[object, ...], reuse: bool) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit these, which saves two system calls for each.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.bind(address)
    except BaseException:
        opened.close()
        raise
    return opened
