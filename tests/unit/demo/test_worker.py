"""The demo's worker, with a hand that turns time."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from queuecast.delivery import Delivery, DeliverySink
from queuecast.demo.worker import DemoWorker, job_id
from queuecast.destination import Destination
from queuecast.errors import QueuecastError, Unavailable
from queuecast.message import Message, Properties
from queuecast.queuespec import PLAIN, ConsumeSpec
from queuecast.runtime import Timer

T = TypeVar("T")


class House:
    """Runtime, broker and consumer in one; sleeping takes no time."""

    def __init__(self) -> None:
        self.time = 0.0
        self.said: list[tuple[str, dict[str, Any]]] = []
        self.settled: list[tuple[int, str]] = []
        self.away = False
        self.closed = False
        self.sink: DeliverySink | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    # Runtime
    def now(self) -> float:
        return self.time

    def call_soon(self, call: Callable[..., object], *args: Any) -> None:
        raise NotImplementedError

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> Timer:
        raise NotImplementedError

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> Callable[[], object]:
        task = asyncio.create_task(work, name=name)
        self.tasks.add(task)
        return task.cancel

    def promise(self) -> Any:
        raise NotImplementedError

    async def sleep(self, delay: float) -> None:
        self.time += delay
        await asyncio.sleep(0)

    async def within(self, seconds: float, work: Awaitable[T]) -> T:
        return await work

    # Broker
    async def publish(
        self,
        destination: Destination,
        body: bytes,
        properties: Properties,
        *,
        mandatory: bool | None = None,
    ) -> None:
        if self.away:
            raise Unavailable("away")
        assert properties.content_type == "application/json"
        self.said.append((str(destination), json.loads(body)))

    async def consume(
        self,
        destination: Destination,
        sink: DeliverySink,
        *,
        prefetch: int,
        spec: ConsumeSpec = PLAIN,
    ) -> "House":
        assert str(destination) == "/queue/demo.jobs"
        self.sink = sink
        return self

    # Consumer
    def ack(self, tag: int) -> bool:
        self.settled.append((tag, "ack"))
        return True

    def nack(self, tag: int, *, requeue: bool = True) -> bool:
        self.settled.append((tag, "requeue" if requeue else "drop"))
        return True

    def pause(self) -> None: ...
    def suspend(self, tags: Sequence[int]) -> None: ...
    def resume(self) -> None: ...

    async def close(self) -> None:
        self.closed = True

    async def until(self, ready: Callable[[], bool]) -> None:
        for _ in range(10_000):
            if ready():
                return
            await asyncio.sleep(0)
        raise AssertionError("it never came to that")

    async def deliver(self, tag: int, body: bytes) -> None:
        await self.until(lambda: self.sink is not None)
        # The consumer is the worker's own only once `consume` has returned.
        await asyncio.sleep(0)
        assert self.sink is not None
        self.sink.deliver(Delivery(Message(body), tag))


async def test_a_job_goes_from_nothing_to_its_result() -> None:
    house = House()
    worker = DemoWorker(house, house.publish, house.consume)
    worker.start()
    await house.deliver(7, b'{"job": "a-1"}')
    await house.until(lambda: bool(house.settled))
    await worker.close()
    steps = [value for name, value in house.said if name == "/topic/job.a-1"]
    assert [step["done"] for step in steps] == list(range(0, 101, 5))
    assert {step["state"] for step in steps[:-1]} == {"running"}
    assert steps[-1]["state"] == "done"
    assert 2.5 < float(steps[-1]["result"]["pi"]) < 3.8
    assert house.settled == [(7, "ack")]
    assert house.closed


async def test_metrics_go_round() -> None:
    house = House()
    worker = DemoWorker(house, house.publish, house.consume)
    worker.start()
    await house.until(lambda: len(house.said) >= 8)
    await worker.close()
    assert [name for name, _ in house.said[:4]] == [
        f"/topic/metrics.{name}" for name in ("cpu", "memory", "orders", "latency")
    ]


async def test_what_is_no_job_is_dropped() -> None:
    house = House()
    worker = DemoWorker(house, house.publish, house.consume)
    worker.start()
    await house.deliver(1, b'{"job": "a.#"}')
    assert house.settled == [(1, "drop")]
    await worker.close()


async def test_a_job_goes_back_while_the_broker_is_away() -> None:
    house = House()
    worker = DemoWorker(house, house.publish, house.consume)
    worker.start()
    house.away = True
    await house.deliver(1, b'{"job": "a"}')
    await house.until(lambda: bool(house.settled))
    assert house.settled == [(1, "requeue")]
    await worker.close()


async def test_it_opens_its_queue_again() -> None:
    house = House()
    worker = DemoWorker(house, house.publish, house.consume)
    worker.start()
    await house.until(lambda: house.sink is not None)
    house.sink = None
    worker.cancelled(QueuecastError("deleted"))
    await house.until(lambda: house.sink is not None)
    await worker.close()


@pytest.mark.parametrize(
    ("body", "job"),
    [
        (b'{"job": "x_Y-9"}', "x_Y-9"),
        (b'{"job": "a.b"}', None),
        (b'{"job": ""}', None),
        (b'{"job": 7}', None),
        (b"[]", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_a_job_is_known_by_its_id(body: bytes, job: str | None) -> None:
    assert job_id(body) == job
