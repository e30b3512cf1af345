"""The back end of the demo: a worker that does jobs, and metrics to draw.

It knows nothing of browsers. A job comes from the queue `demo.jobs`, its progress goes to
`/topic/job.<id>`; what people say in the chat is put on the queue `demo.chat` by the gateway
and comes to everybody through a bridge.
"""

from __future__ import annotations

import json
import logging
import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from ..delivery import Consumer, Delivery
from ..destination import Destination, Kind
from ..errors import QueuecastError
from ..message import Properties
from ..runtime import Runtime
from ..sessions.services import Consume, Publish

logger = logging.getLogger(__name__)

JOBS = "demo.jobs"
CHAT = "demo.chat"

# What the gateway adds to its configuration when the demo is on.
QUEUES = (JOBS, CHAT)
BRIDGES = ((f"/queue/{CHAT}", f"/topic/{CHAT}"),)

_STEPS = 20
_STEP = 0.2  # seconds, so a job takes about four
_DARTS = 5_000  # thrown in one step: about a millisecond of work
_BEAT = 0.5  # seconds between two rounds of metrics
_RETRY = 1.0  # seconds to wait while the broker does not take what we publish
# Jobs done at a time, the consumer's prefetch: the others wait in the queue.
_AT_ONCE = 8

# A job's id becomes a word of a routing key.
_JOB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class DemoWorker:
    """Does the demo's jobs and publishes its metrics, until closed."""

    def __init__(self, runtime: Runtime, publish: Publish, consume: Consume) -> None:
        self._runtime = runtime
        self._publish = publish
        self._consume = consume
        self._consumer: Consumer | None = None
        self._stopped = False
        self._cancels: list[Callable[[], object]] = []
        # By tag; never more than the prefetch.
        self._jobs: dict[int, Callable[[], object]] = {}

    def start(self) -> None:
        """Begin in the background."""
        self._cancels = [
            self._runtime.spawn(self._open(), "demo: jobs"),
            self._runtime.spawn(self._measure(), "demo: metrics"),
        ]

    async def close(self) -> None:
        """Stop; jobs that are not done go back to their queue."""
        self._stopped = True
        for cancel in self._cancels:
            cancel()
        self.reset()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await consumer.close()

    # -- jobs: delivery.DeliverySink ------------------------------------------------------

    def deliver(self, delivery: Delivery) -> None:
        """Begin one job."""
        job = job_id(delivery.message.body)
        if job is None:
            logger.warning("demo: not a job: %r", delivery.message.body[:80])
            self._settle(delivery.tag, ack=False, requeue=False)
            return
        self._jobs[delivery.tag] = self._runtime.spawn(self._do(job, delivery.tag), "demo: a job")

    def reset(self) -> None:
        """Leave off what was begun: it comes again."""
        jobs, self._jobs = self._jobs, {}
        for cancel in jobs.values():
            cancel()

    def gap(self, reason: str) -> None:
        """Only a consumer with a queue of its own has gaps."""

    def cancelled(self, error: QueuecastError) -> None:
        """The queue is gone: open again when it is back."""
        logger.warning("demo: %s", error)
        self.reset()
        self._consumer = None
        if not self._stopped:
            self._cancels.append(self._runtime.spawn(self._open(), "demo: jobs"))
            del self._cancels[:-3]  # those before have ended

    async def _open(self) -> None:
        queue = Destination(Kind.QUEUE, JOBS)
        while not self._stopped:
            try:
                self._consumer = await self._consume(queue, self, prefetch=_AT_ONCE)
            except QueuecastError as error:
                logger.info("demo: no jobs yet: %s", error)
                await self._runtime.sleep(_RETRY)
            else:
                return

    async def _do(self, job: str, tag: int) -> None:
        try:
            await self._estimate_pi(job)
        except QueuecastError as error:
            logger.info("demo: job %s goes back: %s", job, error)
            await self._runtime.sleep(_RETRY)
            self._settle(tag, ack=False, requeue=True)
        else:
            self._settle(tag, ack=True)
        self._jobs.pop(tag, None)

    async def _estimate_pi(self, job: str) -> None:
        """Throw darts at a square: the share that hits the circle in it tells pi."""
        destination = Destination(Kind.TOPIC, f"job.{job}")
        hits = thrown = 0
        began = self._runtime.now()
        await self._tell(destination, {"state": "running", "done": 0, "text": "Picked up"})
        for step in range(1, _STEPS + 1):
            await self._runtime.sleep(_STEP)
            hits += sum(random.random() ** 2 + random.random() ** 2 <= 1 for _ in range(_DARTS))
            thrown += _DARTS
            estimate = 4 * hits / thrown
            progress: dict[str, object] = {
                "state": "running" if step < _STEPS else "done",
                "done": 100 * step // _STEPS,
                "text": f"{thrown:,} darts thrown, π ≈ {estimate:.4f}",
            }
            if step == _STEPS:
                seconds = round(self._runtime.now() - began, 1)
                progress["result"] = {"pi": f"{estimate:.4f}", "darts": thrown, "seconds": seconds}
            await self._tell(destination, progress)

    def _settle(self, tag: int, *, ack: bool, requeue: bool = True) -> None:
        if self._consumer is None:
            return
        if ack:
            self._consumer.ack(tag)
        else:
            self._consumer.nack(tag, requeue=requeue)

    # -- metrics --------------------------------------------------------------------------

    async def _measure(self) -> None:
        meters: tuple[tuple[str, Callable[[], float]], ...] = (
            ("cpu", _cpu(self._runtime.now)),
            ("memory", _memory),
            ("orders", _walk(120, 20, 240, 9)),
            ("latency", _walk(38, 8, 140, 5)),
        )
        while not self._stopped:
            await self._runtime.sleep(_BEAT)
            try:
                for name, value in meters:
                    at = round(time.time() * 1000)
                    destination = Destination(Kind.TOPIC, f"metrics.{name}")
                    await self._tell(destination, {"value": round(value(), 2), "at": at})
            except QueuecastError as error:
                logger.info("demo: metrics pause: %s", error)
                await self._runtime.sleep(_RETRY)

    async def _tell(self, destination: Destination, value: dict[str, object]) -> None:
        body = json.dumps(value, ensure_ascii=False).encode()
        await self._publish(destination, body, Properties(content_type="application/json"))


def job_id(body: bytes) -> str | None:
    """Return the id in a job's body, or None when the body is no job."""
    try:
        job = json.loads(body)
    except (ValueError, RecursionError):
        return None
    name = job.get("job") if isinstance(job, dict) else None
    return name if isinstance(name, str) and _JOB_ID.fullmatch(name) else None


def _cpu(now: Callable[[], float]) -> Callable[[], float]:
    """Return a meter of this process's processor time, in percent of one core."""
    last = [now(), time.process_time()]

    def percent() -> float:
        clock, used = now(), time.process_time()
        share = (used - last[1]) / max(clock - last[0], 0.001)
        last[:] = [clock, used]
        return 100 * share

    return percent


def _memory() -> float:
    """Return this process's resident memory in MB; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _walk(start: float, low: float, high: float, step: float) -> Callable[[], float]:
    """Return a meter that wanders between two bounds, drawn back to where it began."""
    value = start

    def wander() -> float:
        nonlocal value
        value += random.gauss((start - value) * 0.06, step)
        value = min(max(value, low), high)
        return value

    return wander
