"""Every broker: what a publish promises, and how it fails, by kind of destination."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from queuecast.brokers.base import BindingSpec, Broker, ExchangeSpec, QueueSpec
from queuecast.destination import Destination
from queuecast.errors import Conflict, NotFound, PublishFailed, Unavailable, Unroutable
from queuecast.message import Properties
from tests.contract.conftest import Consume, passing
from tests.support.sinks import FeedList

D = Destination.parse


@pytest.mark.needs("exchanges")
async def test_nobody_listening_is_success(broker: Broker, name: str) -> None:
    await broker.declare([ExchangeSpec(name, "direct")])
    await broker.publish(D(f"/topic/{name}"), b"1")
    await broker.publish(D(f"/exchange/{name}/key"), b"1")
    await broker.publish(D(f"/exchange/{name}"), b"1")


@pytest.mark.needs("exchanges")
async def test_mandatory_needs_somebody(broker: Broker, name: str) -> None:
    with pytest.raises(Unroutable):
        await broker.publish(D(f"/topic/{name}"), b"1", mandatory=True)
    await broker.declare(queues=[passing(name, bindings=(BindingSpec("amq.topic", name),))])
    await broker.publish(D(f"/topic/{name}"), b"2", mandatory=True)


@pytest.mark.needs("exchanges")
async def test_missing_exchange(broker: Broker, name: str) -> None:
    sink = FeedList()
    await broker.open_feed(D(f"/topic/{name}"), sink)
    with pytest.raises(NotFound) as caught:
        await broker.publish(D(f"/exchange/{name}/key"), b"1")
    assert "[[exchange]]" in caught.value.hint
    assert name in str(caught.value)
    await broker.publish(D(f"/topic/{name}"), b"2")
    assert await sink.got(1) == [b"2"]


async def test_queue_is_declared_on_first_use(broker: Broker, name: str, consume: Consume) -> None:
    await broker.publish(D(f"/queue/{name}"), b"1")
    await broker.publish(D(f"/queue/{name}"), b"2")
    sink = await consume(f"/queue/{name}")
    assert await sink.got(2) == [b"1", b"2"]
    assert sink.deliveries[0].message.exchange == ""
    assert sink.deliveries[0].message.routing_key == name
    assert sink.ack()
    assert sink.ack()


@pytest.mark.needs("queues")
async def test_queue_that_was_configured_is_used_as_it_is(
    broker: Broker, name: str, consume: Consume
) -> None:
    await broker.declare(queues=[passing(name, arguments={"x-max-length": 1})])
    await broker.publish(D(f"/queue/{name}"), b"1")
    await broker.publish(D(f"/queue/{name}"), b"2")
    sink = await consume(f"/queue/{name}")
    assert await sink.got(1) == [b"2"]
    assert sink.ack()


@pytest.mark.needs("queues")
@pytest.mark.parametrize("prefix", ["/amq/queue/", "/reply-queue/"])
async def test_named_queue_must_exist(
    broker: Broker, name: str, consume: Consume, prefix: str
) -> None:
    with pytest.raises(Unroutable) as caught:
        await broker.publish(D(prefix + name), b"1")
    assert name in caught.value.text
    assert f'[[queue]] name = "{name}"' in caught.value.hint
    await broker.publish(D(prefix + name), b"1", mandatory=False)
    await broker.declare(queues=[passing(name)])
    await broker.publish(D(prefix + name), b"2")
    sink = await consume(f"/amq/queue/{name}")
    assert await sink.got(1) == [b"2"]
    assert sink.ack()


async def test_publishes_that_do_not_await_each_other_keep_their_order(
    broker: Broker, name: str
) -> None:
    sink = FeedList()
    await broker.open_feed(D(f"/topic/{name}"), sink)
    await asyncio.gather(
        *(broker.publish(D(f"/topic/{name}"), b"%d" % number) for number in range(300))
    )
    assert await sink.got(300) == [b"%d" % number for number in range(300)]


async def test_all_properties_arrive(broker: Broker, name: str, user: str) -> None:
    sent = Properties(
        content_type="application/json",
        content_encoding="identity",
        persistent=True,
        priority=5,
        correlation_id="关联-1",
        reply_to="/queue/answers",
        expiration="60000",
        message_id="m-1",
        timestamp=1_700_000_000,
        type="tick",
        user_id=user,
        app_id="shop",
        headers={
            "text": "文本",
            "empty": "",
            "int": 42,
            "negative": -7,
            "large": 2**40,
            "float": 1.5,
            "true": True,
            "false": False,
            "bytes": b"\xff\x00",
            "none": None,
            "list": ["a", 1, True, None],
            "map": {"inner": {"deep": "x"}, "n": 1},
        },
    )
    sink = FeedList()
    await broker.open_feed(D(f"/topic/{name}"), sink)
    await broker.publish(D(f"/topic/{name}"), b"1", sent)
    await sink.got(1)
    got = sink.messages[0].properties
    assert got == sent
    assert got.headers["true"] is True
    assert isinstance(got.headers["bytes"], bytes)


@pytest.mark.needs("properties")
async def test_no_properties_stay_none(broker: Broker, name: str) -> None:
    sink = FeedList()
    await broker.open_feed(D(f"/topic/{name}"), sink)
    await broker.publish(D(f"/topic/{name}"), b"1")
    await sink.got(1)
    assert sink.messages[0].properties == Properties()


@pytest.mark.needs("queues")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (passing("{}"), passing("{}", arguments={"x-max-length": 5})),
        (passing("{}"), passing("{}", durable=False, exclusive=False)),
    ],
)
async def test_queue_with_other_properties_is_a_conflict(
    broker: Broker, name: str, first: QueueSpec, second: QueueSpec
) -> None:
    def named(spec: QueueSpec) -> QueueSpec:
        return QueueSpec(name, spec.durable, spec.exclusive, spec.auto_delete, spec.arguments)

    await broker.declare(queues=[named(first)])
    await broker.declare(queues=[named(first)])
    with pytest.raises(Conflict) as caught:
        await broker.declare(queues=[named(second)])
    assert name in str(caught.value)
    await broker.publish(D(f"/amq/queue/{name}"), b"still works")


@pytest.mark.needs("exchanges")
async def test_exchange_with_another_type_is_a_conflict(broker: Broker, name: str) -> None:
    await broker.declare([ExchangeSpec(name, "direct")])
    await broker.declare([ExchangeSpec(name, "direct")])
    with pytest.raises(Conflict) as caught:
        await broker.declare([ExchangeSpec(name, "fanout")])
    assert name in str(caught.value)
    assert "direct" in str(caught.value)
    assert "fanout" in str(caught.value)
    await broker.publish(D(f"/exchange/{name}/key"), b"still works")


@pytest.mark.needs("queues")
async def test_full_queue_that_refuses(broker: Broker, name: str, consume: Consume) -> None:
    arguments = {"x-max-length": 2, "x-overflow": "reject-publish"}
    await broker.declare(queues=[passing(name, arguments=arguments)])
    await broker.publish(D(f"/amq/queue/{name}"), b"1")
    await broker.publish(D(f"/amq/queue/{name}"), b"2")
    with pytest.raises(PublishFailed) as caught:
        await broker.publish(D(f"/amq/queue/{name}"), b"3")
    assert not isinstance(caught.value, Unroutable)
    sink = await consume(f"/amq/queue/{name}")
    assert await sink.got(2) == [b"1", b"2"]
    while sink.outstanding:
        assert sink.ack()


async def test_a_closed_broker_is_unavailable(maker: Callable[[], Broker], name: str) -> None:
    broker = maker()
    await broker.start()
    assert broker.ready
    await broker.close()
    assert not broker.ready
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: broker.publish(D(f"/topic/{name}"), b"1"),
        lambda: broker.open_feed(D(f"/topic/{name}"), FeedList()),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            await call()
