"""Which of a cluster's hosts is tried first: known to all connections of a gateway together.

They all begin at the same host, so that they are on one node while it lives. A host that failed,
however that was noticed and by whichever connection, is tried last from then on, so that further
connections (more consumers, other logins) do not wait for a node that is dead or frozen. Nothing
goes back to it when it is well again: that would cut connections without need.
"""

from __future__ import annotations

from dataclasses import replace

from ..url import Host
from .address import Address
from .connection import Link


class Hosts:
    """The order of an address's hosts: a ring, and where in it the next attempt begins."""

    def __init__(self, address: Address) -> None:
        self._ring = address.hosts
        self._first = 0

    @property
    def several(self) -> bool:
        return len(self._ring) > 1

    @property
    def order(self) -> tuple[Host, ...]:
        """The hosts as they are tried now."""
        return self._ring[self._first :] + self._ring[: self._first]

    async def open(self, address: Address, purpose: str) -> Link:
        """Connect to the first host that lets us; raises as Link.open, of all hosts.

        address: with these hosts, and any login.
        """
        link = await Link.open(replace(address, hosts=self.order), purpose)
        self._first = self._ring.index(link.host)
        return link

    def failed(self, host: Host) -> None:
        """Have the host tried last, unless another connection has found a better one already."""
        if self._ring[self._first] == host:
            self._first = (self._first + 1) % len(self._ring)
