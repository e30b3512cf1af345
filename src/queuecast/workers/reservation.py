"""The ports that workers share.

Where the system spreads connections over all sockets that share a port (SO_REUSEPORT on Linux),
each worker has its own, and the parent holds the port with one that does not listen. Elsewhere
the parent listens and all workers accept from its sockets.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from ..server.listener import BACKLOG, bind

# Elsewhere SO_REUSEPORT exists too, but gives everything to one of the sockets.
SPREADS = sys.platform.startswith("linux")


class Reservation:
    """Holds one port. shared: the workers accept from its sockets."""

    def __init__(self, *, shared: bool = not SPREADS) -> None:
        self.shared = shared
        self.sockets: list[socket.socket] = []
        self.port = 0

    async def take(self, host: str, port: int) -> None:
        """Take a port of every address of a host, 0 for a free one; raises OSError."""
        alone = await bind(host, port)
        try:
            # Bound as nobody's: another gateway's workers must not get ours into their midst.
            for each in alone:
                each.listen(BACKLOG)
        except BaseException:
            _close(alone)
            raise
        self.port = alone[0].getsockname()[1]
        if self.shared:
            self.sockets = alone
            for each in alone:
                each.set_inheritable(True)
            return
        _close(alone)
        # What was in the queue of the closed socket was nobody's; the system forgets it at once.
        await asyncio.sleep(0)
        self.sockets = await bind(host, self.port, reuse=True)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What workers inherit."""
        return tuple(each.fileno() for each in self.sockets) if self.shared else ()

    def close(self) -> None:
        """Give the port up."""
        sockets, self.sockets = self.sockets, []
        _close(sockets)


def _close(sockets: list[socket.socket]) -> None:
    for each in sockets:
        each.close()
