"""Every broker: queues with competing consumers, ack, nack, prefetch, limits and dead letters."""

from collections.abc import Awaitable, Callable

import pytest

from queuecast.brokers.base import BindingSpec, Broker, ExchangeSpec
from queuecast.delivery import Delivery
from queuecast.destination import Destination
from queuecast.errors import NotFound, Unsupported
from queuecast.message import Properties
from tests.contract.conftest import Consume, passing
from tests.support.sinks import DeliveryList, until

D = Destination.parse


async def fill(broker: Broker, name: str, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        await broker.publish(D(f"/amq/queue/{name}"), b"%d" % number)


@pytest.fixture
async def queue(make_queue: Callable[[str], Awaitable[None]], name: str) -> str:
    """An empty queue's name."""
    await make_queue(name)
    return name


async def test_deliveries_come_in_order_with_tags_of_their_own(
    broker: Broker, queue: str, consume: Consume
) -> None:
    sink = await consume(f"/amq/queue/{queue}")
    await fill(broker, queue, 100)
    assert await sink.got(100) == [b"%d" % number for number in range(100)]
    assert len({delivery.tag for delivery in sink.deliveries}) == 100
    assert not any(delivery.message.redelivered for delivery in sink.deliveries)


async def test_consume_declares_the_queue(broker: Broker, name: str, consume: Consume) -> None:
    sink = await consume(f"/queue/{name}")
    await broker.publish(D(f"/queue/{name}"), "任务".encode())
    assert await sink.got(1) == ["任务".encode()]
    assert sink.ack()


async def test_missing_amq_queue_names_the_setting(
    broker: Broker, kind: str, queue: str, consume: Consume
) -> None:
    sink = await consume(f"/amq/queue/{queue}")
    with pytest.raises(NotFound) as caught:
        await broker.consume(D(f"/amq/queue/{queue}-missing"), DeliveryList())
    assert ("[[topic]]" if kind == "kafka" else "[[queue]]") in caught.value.hint
    assert f"{queue}-missing" in str(caught.value)
    await fill(broker, queue, 1)
    assert await sink.got(1) == [b"0"]


async def test_no_consumer_on_a_shared_destination(broker: Broker, name: str) -> None:
    with pytest.raises(Unsupported):
        await broker.consume(D(f"/topic/{name}"), DeliveryList())


async def test_prefetch_is_never_exceeded(broker: Broker, queue: str, consume: Consume) -> None:
    await fill(broker, queue, 20)
    sink = await consume(f"/amq/queue/{queue}", prefetch=3)
    for acked in range(20):
        await sink.got(min(acked + 3, 20))
        assert sink.ack()
    assert sink.bodies == [b"%d" % number for number in range(20)]
    assert sink.most == 3


async def test_acked_messages_are_gone(broker: Broker, queue: str, consume: Consume) -> None:
    await fill(broker, queue, 3)
    first = await consume(f"/amq/queue/{queue}")
    await first.got(3)
    assert first.ack()
    assert first.ack()
    assert first.ack()
    assert first.consumer is not None
    await first.consumer.close()
    second = await consume(f"/amq/queue/{queue}")
    await fill(broker, queue, 1, first=3)
    assert await second.got(1) == [b"3"]


async def test_nack_with_requeue_comes_again_first_and_redelivered(
    broker: Broker, queue: str, consume: Consume
) -> None:
    await fill(broker, queue, 3)
    sink = await consume(f"/amq/queue/{queue}", prefetch=1)
    await sink.got(1)
    assert sink.nack(requeue=True)
    await sink.got(2)
    assert sink.ack()
    await sink.got(3)
    assert sink.ack()
    await sink.got(4)
    assert sink.bodies == [b"0", b"0", b"1", b"2"]
    assert [delivery.message.redelivered for delivery in sink.deliveries] == [
        False,
        True,
        False,
        False,
    ]
    assert len({delivery.tag for delivery in sink.deliveries}) == 4


@pytest.mark.needs("queues")
async def test_nack_without_requeue_goes_to_the_dead_letter_exchange(
    broker: Broker, name: str, consume: Consume
) -> None:
    await broker.declare(
        [ExchangeSpec(f"{name}-dlx", "direct")],
        [
            passing(
                name,
                arguments={
                    "x-dead-letter-exchange": f"{name}-dlx",
                    "x-dead-letter-routing-key": "dead",
                },
            ),
            passing(f"{name}-dead", bindings=(BindingSpec(f"{name}-dlx", "dead"),)),
        ],
    )
    await broker.publish(D(f"/amq/queue/{name}"), b"poison", Properties(headers={"mine": "1"}))
    sink = await consume(f"/amq/queue/{name}")
    dead = await consume(f"/amq/queue/{name}-dead")
    await sink.got(1)
    assert sink.nack(requeue=False)
    assert await dead.got(1) == [b"poison"]
    message = dead.deliveries[0].message
    assert message.exchange == f"{name}-dlx"
    assert message.routing_key == "dead"
    assert not message.redelivered
    assert message.properties.headers["mine"] == "1"
    assert message.properties.headers["x-first-death-queue"] == name
    death = message.properties.headers["x-death"][0]
    assert death["count"] == 1
    assert death["reason"] == "rejected"
    assert death["queue"] == name
    assert death["exchange"] == ""
    assert death["routing-keys"] == [name]
    assert dead.ack()


async def test_competing_consumers_share(broker: Broker, queue: str, consume: Consume) -> None:
    sinks = [await consume(f"/amq/queue/{queue}", prefetch=1) for _ in range(2)]
    await fill(broker, queue, 20)
    for sink in sinks:
        await sink.got(1)
        sink.acks_at_once = True
        assert sink.ack()
    await sinks[0].got(1)
    await until(lambda: sum(len(sink.deliveries) for sink in sinks) == 20, "20 deliveries")
    assert sorted(sinks[0].bodies + sinks[1].bodies, key=int) == [b"%d" % n for n in range(20)]
    assert all(sink.bodies == sorted(sink.bodies, key=int) for sink in sinks)


async def test_close_gives_unacked_back_in_order(
    broker: Broker, queue: str, consume: Consume
) -> None:
    await fill(broker, queue, 4)
    first = await consume(f"/amq/queue/{queue}", prefetch=4)
    await first.got(4)
    assert first.ack()
    assert first.consumer is not None
    await first.consumer.close()
    await first.consumer.close()
    await fill(broker, queue, 1, first=4)
    second = await consume(f"/amq/queue/{queue}")
    assert await second.got(4) == [b"1", b"2", b"3", b"4"]
    assert [delivery.message.redelivered for delivery in second.deliveries] == [
        True,
        True,
        True,
        False,
    ]
    assert len(first.deliveries) == 4


async def test_stale_and_foreign_tags_are_ignored(
    broker: Broker, queue: str, consume: Consume
) -> None:
    await fill(broker, queue, 2)
    sink = await consume(f"/amq/queue/{queue}", prefetch=1)
    await sink.got(1)
    assert sink.consumer is not None
    tag = sink.deliveries[0].tag
    assert sink.consumer.ack(tag + 1_000_000) is False
    assert sink.ack() is True
    assert sink.consumer.ack(tag) is False
    assert sink.consumer.nack(tag) is False
    assert await sink.got(2) == [b"0", b"1"]
    assert sink.ack() is True
    await sink.consumer.close()
    assert sink.consumer.ack(sink.deliveries[1].tag) is False


async def test_pause_and_resume(
    broker: Broker,
    queue: str,
    consume: Consume,
    make_queue: Callable[[str], Awaitable[None]],
) -> None:
    sink = await consume(f"/amq/queue/{queue}")
    await fill(broker, queue, 1)
    await sink.got(1)
    assert sink.consumer is not None
    sink.consumer.pause()
    await fill(broker, queue, 3, first=1)
    # Another consumer's round trip: time enough for a delivery that should not come.
    await make_queue(f"{queue}-other")
    other = await consume(f"/amq/queue/{queue}-other")
    await fill(broker, f"{queue}-other", 1)
    await other.got(1)
    assert sink.bodies == [b"0"]
    assert sink.ack() is True
    sink.consumer.resume()
    assert await sink.got(4) == [b"0", b"1", b"2", b"3"]
    assert not any(delivery.message.redelivered for delivery in sink.deliveries)


@pytest.mark.needs("queues")
async def test_max_length_drops_the_oldest(broker: Broker, name: str, consume: Consume) -> None:
    await broker.declare(queues=[passing(name, arguments={"x-max-length": 3})])
    await fill(broker, name, 5)
    sink = await consume(f"/amq/queue/{name}")
    assert await sink.got(3) == [b"2", b"3", b"4"]


@pytest.mark.needs("queues")
@pytest.mark.parametrize("by_message", [False, True])
async def test_expired_messages_go_to_the_dead_letter_exchange(
    broker: Broker, name: str, consume: Consume, by_message: bool
) -> None:
    arguments: dict[str, object] = {
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{name}-dead",
    }
    if not by_message:
        arguments["x-message-ttl"] = 30
    await broker.declare(queues=[passing(name, arguments=arguments), passing(f"{name}-dead")])
    properties = Properties(expiration="30") if by_message else Properties()
    await broker.publish(D(f"/amq/queue/{name}"), b"late", properties)
    dead = await consume(f"/amq/queue/{name}-dead")
    assert await dead.got(1) == [b"late"]
    got = dead.deliveries[0].message.properties
    assert got.expiration is None
    death = got.headers["x-death"][0]
    assert (death["reason"], death["queue"], death["count"]) == ("expired", name, 1)
    assert death.get("original-expiration") == ("30" if by_message else None)


@pytest.mark.needs("queues")
async def test_bindings_of_a_declared_queue(broker: Broker, name: str, consume: Consume) -> None:
    await broker.declare(
        [ExchangeSpec(f"{name}-h", "headers"), ExchangeSpec(f"{name}-f", "fanout")],
        [
            passing(
                name,
                bindings=(
                    BindingSpec("amq.topic", f"{name}.*"),
                    BindingSpec("amq.topic", f"{name}.#"),
                    BindingSpec(f"{name}-f"),
                    BindingSpec(f"{name}-h", "", {"x-match": "any", "kind": "job", "urgent": True}),
                ),
            )
        ],
    )
    sink = await consume(f"/amq/queue/{name}")
    await broker.publish(D(f"/topic/{name}.a"), b"topic")
    await broker.publish(D(f"/exchange/{name}-f/whatever"), b"fanout")
    await broker.publish(D(f"/exchange/{name}-h"), b"no", Properties(headers={"kind": "other"}))
    await broker.publish(D(f"/exchange/{name}-h"), b"kind", Properties(headers={"kind": "job"}))
    await broker.publish(D(f"/exchange/{name}-h"), b"flag", Properties(headers={"urgent": True}))
    assert await sink.got(4) == [b"topic", b"fanout", b"kind", b"flag"]


@pytest.mark.needs("queues")
async def test_binding_to_a_missing_exchange(broker: Broker, name: str) -> None:
    with pytest.raises(NotFound) as caught:
        await broker.declare(queues=[passing(name, bindings=(BindingSpec(f"{name}-x", "k"),))])
    assert "[[exchange]]" in caught.value.hint


class Full(DeliveryList):
    """Takes `room` deliveries; refuses the next and stands still, as the law of sinks says."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.refusals = 0

    def deliver(self, delivery: Delivery) -> bool | None:
        if len(self.deliveries) >= self.room and self.consumer is not None:
            self.consumer.pause()
            self.refusals += 1
            return False
        super().deliver(delivery)
        return True


async def test_what_a_sink_cannot_hold_stays_in_the_queue_in_order(
    broker: Broker, queue: str
) -> None:
    sink = Full(3)
    sink.consumer = await broker.consume(D(f"/amq/queue/{queue}"), sink, prefetch=10)
    await fill(broker, queue, 20)
    for room in (3, 4, 5):
        sink.room = room
        sink.consumer.resume()
        await sink.got(room)
        await until(lambda room=room: sink.refusals >= room - 2, "a refusal")  # type: ignore[misc]
    sink.room = 1000
    sink.acks_at_once = True
    sink.consumer.resume()
    while sink.outstanding:
        sink.ack()
    assert await sink.got(20) == [b"%d" % number for number in range(20)]
    await sink.consumer.close()
