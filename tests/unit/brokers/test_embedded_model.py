"""A queue of the embedded broker does what a simple list would do, whatever the order of calls."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from queuecast.brokers.base import QueueSpec
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.counts import QueueCounts
from queuecast.destination import Destination
from tests.support.sinks import DeliveryList
from tests.unit.brokers.hand_clock import HandClock

Q = Destination.parse("/amq/queue/q")
DEAD = Destination.parse("/amq/queue/dead")


class ModelConsumer:
    """A consumer of the model: what it holds, oldest first."""

    def __init__(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self.held: list[int] = []
        self.paused = False

    @property
    def may_take(self) -> bool:
        return not self.paused and len(self.held) < self.prefetch


class QueueMachine(RuleBasedStateMachine):
    """Compares queue and model: contents in order, who holds what, what died."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.broker = EmbeddedBroker(self.clock)
        self.loop = asyncio.new_event_loop()
        self.published = 0
        self.ready: list[int] = []
        self.redelivered: set[int] = set()
        self.dead: list[int] = []
        self.pairs: list[tuple[DeliveryList, ModelConsumer]] = []
        self.takers: list[ModelConsumer] = []  # the round

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.broker.close())
        assert self.broker.counts().queue_bytes == 0
        self.loop.close()

    # The model

    def settle_model(self) -> None:
        while self.ready and self.takers:
            taker = self.takers.pop(0)
            taker.held.append(self.ready.pop(0))
            if taker.may_take:
                self.takers.append(taker)
        if self.limit is not None:
            while len(self.ready) > self.limit:
                self.dead.append(self.ready.pop(0))

    def open_model(self, consumer: ModelConsumer) -> None:
        if consumer.may_take and consumer not in self.takers:
            self.takers.append(consumer)
        self.settle_model()

    def return_model(self, numbers: list[int]) -> None:
        self.redelivered.update(numbers)
        self.ready = sorted([*self.ready, *numbers])
        self.settle_model()

    # The rules

    @initialize(limit=st.one_of(st.none(), st.integers(0, 4)))
    def begin(self, limit: int | None) -> None:
        self.limit = limit
        arguments: dict[str, Any] = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "dead",
        }
        if limit is not None:
            arguments["x-max-length"] = limit
        self.run(self.broker.start())
        specs = [QueueSpec("dead"), QueueSpec("q", arguments=arguments)]
        self.run(self.broker.declare(queues=specs))

    @rule()
    def publish(self) -> None:
        self.published += 1
        self.run(self.broker.publish(Q, b"%d" % self.published))
        self.ready.append(self.published)
        self.settle_model()

    @precondition(lambda self: len(self.pairs) < 4)
    @rule(prefetch=st.integers(1, 3))
    def consume(self, prefetch: int) -> None:
        sink = DeliveryList()

        async def consume() -> None:
            sink.consumer = await self.broker.consume(Q, sink, prefetch=prefetch)

        self.run(consume())
        self.clock.turn()
        consumer = ModelConsumer(prefetch)
        self.pairs.append((sink, consumer))
        self.open_model(consumer)

    @precondition(lambda self: self.pairs)
    @rule(data=st.data(), verb=st.sampled_from(["ack", "requeue", "reject"]))
    def settle(self, data: st.DataObject, verb: str) -> None:
        sink, consumer = data.draw(st.sampled_from(self.pairs))
        if not consumer.held:
            return
        at = data.draw(st.integers(0, len(consumer.held) - 1))
        number = consumer.held.pop(at)
        tag = sink.outstanding.pop(at).tag
        assert sink.consumer is not None
        if verb == "ack":
            assert sink.consumer.ack(tag)
        else:
            assert sink.consumer.nack(tag, requeue=verb == "requeue")
        if verb == "requeue":
            self.return_model([number])
        elif verb == "reject":
            self.dead.append(number)
        self.open_model(consumer)
        assert sink.consumer.ack(tag) is False

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        sink, consumer = data.draw(st.sampled_from(self.pairs))
        assert sink.consumer is not None
        consumer.paused = not consumer.paused
        if consumer.paused:
            sink.consumer.pause()
            if consumer in self.takers:
                self.takers.remove(consumer)
        else:
            sink.consumer.resume()
            self.open_model(consumer)

    @precondition(lambda self: self.pairs)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.pairs))
        sink, consumer = pair
        assert sink.consumer is not None
        self.run(sink.consumer.close())
        self.pairs.remove(pair)
        if consumer in self.takers:
            self.takers.remove(consumer)
        self.return_model(consumer.held)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "limit"):
            return
        held = sum(len(consumer.held) for _, consumer in self.pairs)
        queues = self.broker.counts().queues
        assert queues["q"] == QueueCounts(len(self.ready), held, len(self.pairs))
        assert queues["dead"].ready == len(self.dead)
        for sink, consumer in self.pairs:
            messages = [delivery.message for delivery in sink.outstanding]
            assert [int(message.body) for message in messages] == consumer.held
            assert {int(m.body) for m in messages if m.redelivered} == (
                self.redelivered & set(consumer.held)
            )

    @rule()
    def look_at_the_dead(self) -> None:
        sink = DeliveryList()

        async def read() -> None:
            consumer = await self.broker.consume(DEAD, sink, prefetch=100_000)
            self.clock.turn()
            await consumer.close()

        self.run(read())
        assert [int(body) for body in sink.bodies] == self.dead


QueueMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_queue_is_like_the_model = QueueMachine.TestCase
