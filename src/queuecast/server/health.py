"""Liveness and readiness on the clients' port: /healthz and /readyz.

Both are answered as well when no connection is left for clients: an orchestrator must not kill a
gateway for being full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..sessions.services import Services
from . import answers
from .answers import Answer
from .handover import Handover

VERBS: Final = frozenset(("healthz", "readyz"))
METHODS: Final = "GET, HEAD"


class Health:
    """What is said of this process, or of all workers on the port."""

    def __init__(
        self,
        services: Services,
        ready: Callable[[], tuple[bool, str]],
        handover: Handover | None = None,
    ) -> None:
        """ready: whether the broker can be used, and its status for people. handover: the way to
        other workers.
        """
        self._services = services
        self._ready = ready
        self._handover = handover

    def readiness(self) -> tuple[bool, str]:
        """Return whether clients should come, and what is the matter, for people."""
        drain = self._services.drain
        if drain.begun:
            return False, "drained" if drain.done else "draining"
        return self._ready()

    async def answer(self, verb: str) -> Answer:
        """Answer one of VERBS; waits for other workers' word at most."""
        if verb == "healthz":
            return answers.value({"status": "ok"})
        ready, status = self.readiness()
        if self._handover is not None:
            # The port is everybody's: so is the answer.
            ready, status = await self._handover.readiness() or (ready, status)
        return answers.value({"ready": ready, "status": status}, 200 if ready else 503)
