"""The view of all workers together, asked of each over its Unix socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from ..admin.listing import MOST_ROWS
from ..admin.process import process_families
from ..admin.view import Readiness, Row
from ..metrics import Family, Sample, by_label, merged
from ..server.siblings import Place

logger = logging.getLogger(__name__)

# Seconds for one worker's answer; one that does not come is left out.
_PATIENCE: Final = 2.0
# Bytes of an answer: 10,000 lines of connections, or metrics.
_ANSWER: Final = 16 << 20


class WorkersView:
    """Implements admin.view.View. running: the numbers of workers that there are now.

    restarts: how often each was started again.
    """

    def __init__(
        self, place: Place, running: Callable[[], Sequence[int]], restarts: Sequence[int]
    ) -> None:
        self._place = place
        self._running = running
        self._restarts = restarts
        self._clients: dict[int, aiohttp.ClientSession] = {}
        self._asking: asyncio.Task[Readiness] | None = None

    async def close(self) -> None:
        """Let go of the workers."""
        for client in self._clients.values():
            await client.close()

    async def metrics(self) -> list[Family]:
        """See View: every sample has its worker's number; without one it is the parent's."""
        answers = await self._ask("/metrics.json", list[Family])
        parts = {str(number): families for number, families in answers.items()}
        numbers = [str(number) for number in range(self._place.count)]
        up = {number: int(number in parts) for number in numbers}
        found = merged(parts, "worker")
        own = {family.name: family for family in process_families()}
        for index, family in enumerate(found):
            mine = own.pop(family.name, None)
            if mine is not None:
                samples = [
                    *(each._replace(labels=(("worker", "parent"),)) for each in mine.samples),
                    *family.samples,
                ]
                found[index] = family._replace(samples=samples)
        return [
            *found,
            *own.values(),
            Family(
                "queuecast_workers",
                "gauge",
                "Workers that there should be.",
                (Sample(self._place.count),),
            ),
            by_label("queuecast_worker_up", "gauge", "1 while a worker answers.", "worker", up),
            by_label(
                "queuecast_worker_restarts_total",
                "counter",
                "How often a worker ended and was started again.",
                "worker",
                dict(zip(numbers, self._restarts, strict=True)),
            ),
        ]

    async def connections(self, count: int) -> list[Row]:
        """See View: each row has its worker."""
        count = min(count, MOST_ROWS)
        answers = await self._ask(f"/admin/connections?limit={count}", dict[str, list[Row]])
        rows = [
            {"worker": number, **row}
            for number, answer in answers.items()
            for row in answer["connections"]
        ]
        rows.sort(key=lambda row: (row["lag"], row["unsent"]), reverse=True)
        return rows[:count]

    async def readiness(self) -> Readiness:
        """See View: ready while a worker is, and none drains."""
        # One question at a time for all who ask: anybody may.
        if self._asking is None:
            self._asking = asyncio.create_task(self._readiness())
            self._asking.add_done_callback(self._asked)
        return await asyncio.shield(self._asking)

    def _asked(self, task: asyncio.Task[Readiness]) -> None:
        self._asking = None

    async def _readiness(self) -> Readiness:
        answers = await self._ask("/readyz", dict[str, Any])
        statuses = {answer["status"] for answer in answers.values()}
        if statuses & {"draining", "drained"}:
            return Readiness(False, "drained" if statuses == {"drained"} else "draining")
        if not answers:
            return Readiness(False, "no worker answers")
        troubles = [
            f"worker {number}: {answer['status']}"
            for number, answer in sorted(answers.items())
            if not answer["ready"]
        ]
        ready = len(troubles) < len(answers)
        return Readiness(ready, "; ".join(troubles) or next(iter(statuses)))

    async def alive(self) -> bool:
        """See View."""
        return bool(await self._ask("/healthz", dict[str, str]))

    async def answers(self, number: int) -> bool:
        """Tell whether a worker answers."""
        return await self._ask_one(number, "/healthz", dict[str, str]) is not None

    async def _ask(self, path: str, kind: Any) -> dict[int, Any]:
        """Return the answers of those who give one, by number."""
        numbers = self._running()
        answers = await asyncio.gather(*(self._ask_one(number, path, kind) for number in numbers))
        return {
            number: answer
            for number, answer in zip(numbers, answers, strict=True)
            if answer is not None
        }

    async def _ask_one(self, number: int, path: str, kind: Any) -> Any:
        client = self._clients.get(number)
        if client is None:
            client = self._clients[number] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(self._place.admin(number))),
                timeout=aiohttp.ClientTimeout(_PATIENCE),
            )
        try:
            async with client.get(f"http://worker{path}") as answer:
                return msgspec.json.decode(await answer.content.read(_ANSWER), type=kind)
        except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError) as error:
            logger.debug("worker %d does not answer: %s", number, error)
            return None
