"""Every broker: what is published to an exchange reaches the feeds that it matches."""

import pytest

from queuecast.brokers.base import Broker, ExchangeSpec
from queuecast.destination import Destination, of_message
from queuecast.errors import NotFound, Unsupported
from queuecast.message import Properties
from tests.contract.conftest import Keyed
from tests.support.sinks import FeedList, until

D = Destination.parse


async def test_begins_once_and_is_live_when_open_feed_returns(broker: Broker, name: str) -> None:
    sink = FeedList()
    await broker.open_feed(D(f"/topic/{name}"), sink)
    await broker.publish(D(f"/topic/{name}"), b"at once")
    assert await sink.got(1) == [b"at once"]
    assert sink.calls == ["begin", "append"]


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("{}.a", ["{}.a"], ["{}", "{}.b", "{}.a.b"]),
        ("{}.*", ["{}.a", "{}.b"], ["{}", "{}.a.b"]),
        ("{}.#", ["{}", "{}.a", "{}.a.b.c"], ["{}x.a"]),
        ("{}.*.c", ["{}.a.c", "{}.*.c"], ["{}.c", "{}.a.b.c"]),
        ("{}.#.c", ["{}.c", "{}.a.c", "{}.a.b.c"], ["{}.a.b"]),
        ("*.{}.#", ["a.{}", "b.{}.c.d"], ["{}", "{}.{}x"]),
    ],
)
async def test_topic_patterns(
    broker: Broker, keyed: Keyed, name: str, pattern: str, matching: list[str], other: list[str]
) -> None:
    sink = FeedList()
    await broker.open_feed(keyed(pattern.format(name)), sink)
    # What must not match comes first: order then proves that it did not arrive.
    for key in [*other, *matching]:
        key = key.replace("{}", name)
        await broker.publish(keyed(key), key.encode())
    assert await sink.got(len(matching)) == [key.format(name).encode() for key in matching]
    assert [message.routing_key for message in sink.messages] == [
        key.format(name) for key in matching
    ]
    assert [of_message(message.exchange, message.routing_key) for message in sink.messages] == [
        keyed(key.format(name)) for key in matching
    ]


@pytest.mark.needs("exchanges")
async def test_direct_exchange(broker: Broker, name: str) -> None:
    await broker.declare([ExchangeSpec(name, "direct")])
    sink = FeedList()
    await broker.open_feed(D(f"/exchange/{name}/a"), sink)
    for key in ("b", "a.b", "*", "a"):
        await broker.publish(D(f"/exchange/{name}/{key}"), key.encode())
    assert await sink.got(1) == [b"a"]
    assert sink.messages[0].exchange == name


@pytest.mark.needs("exchanges")
async def test_fanout_exchange(broker: Broker, name: str) -> None:
    await broker.declare([ExchangeSpec(name, "fanout")])
    plain, keyed = FeedList(), FeedList()
    await broker.open_feed(D(f"/exchange/{name}"), plain)
    await broker.open_feed(D(f"/exchange/{name}/some.key"), keyed)
    await broker.publish(D(f"/exchange/{name}/other"), b"1")
    await broker.publish(D(f"/exchange/{name}"), b"2")
    assert await plain.got(2) == [b"1", b"2"]
    assert await keyed.got(2) == [b"1", b"2"]


@pytest.mark.needs("exchanges")
async def test_headers_exchange(broker: Broker, name: str) -> None:
    await broker.declare([ExchangeSpec(name, "headers")])
    sink = FeedList()
    await broker.open_feed(D(f"/exchange/{name}"), sink)
    await broker.publish(D(f"/exchange/{name}"), b"1", Properties(headers={"a": 1}))
    await broker.publish(D(f"/exchange/{name}/key"), b"2")
    assert await sink.got(2) == [b"1", b"2"]


async def test_chinese_body_and_routing_key(broker: Broker, keyed: Keyed, name: str) -> None:
    sink = FeedList()
    await broker.open_feed(keyed(f"{name}.消息.*"), sink)
    await broker.publish(keyed(f"{name}.消息.上海"), "你好,世界".encode())
    assert await sink.got(1) == ["你好,世界".encode()]
    assert sink.messages[0].routing_key == f"{name}.消息.上海"


async def test_every_byte_of_a_body_and_a_slash_in_a_key(
    broker: Broker, keyed: Keyed, name: str
) -> None:
    sink = FeedList()
    await broker.open_feed(keyed(f"{name}%2F%25"), sink)
    await broker.publish(keyed(f"{name}%2F%25"), bytes(range(256)))
    await broker.publish(keyed(f"{name}%2F%25"), b"")
    assert await sink.got(2) == [bytes(range(256)), b""]
    assert sink.messages[0].routing_key == f"{name}/%"


async def test_order_of_1000_messages(broker: Broker, keyed: Keyed, name: str) -> None:
    exact, pattern = FeedList(), FeedList()
    await broker.open_feed(keyed(f"{name}.0"), exact)
    await broker.open_feed(keyed(f"{name}.#"), pattern)
    for number in range(1000):
        await broker.publish(keyed(f"{name}.{number % 3}"), b"%d" % number)
    assert await pattern.got(1000) == [b"%d" % number for number in range(1000)]
    assert await exact.got(334) == [b"%d" % number for number in range(0, 1000, 3)]


async def test_a_message_reaches_each_matching_feed_once(
    broker: Broker, keyed: Keyed, name: str
) -> None:
    sinks = [FeedList() for _ in range(4)]
    for pattern, sink in zip(["a.b", "a.*", "#", "a.b"], sinks, strict=True):
        await broker.open_feed(keyed(f"{name}.{pattern}"), sink)
    await broker.publish(keyed(f"{name}.a.b"), b"1")
    await broker.publish(keyed(f"{name}.a.b"), b"2")
    for sink in sinks:
        assert await sink.got(2) == [b"1", b"2"]


async def test_closing_one_feed_leaves_the_other(broker: Broker, name: str) -> None:
    closed, open_ = FeedList(), FeedList()
    reader = await broker.open_feed(D(f"/topic/{name}"), closed)
    await broker.open_feed(D(f"/topic/{name}"), open_)
    await broker.publish(D(f"/topic/{name}"), b"1")
    await closed.got(1)
    await reader.close()
    await broker.publish(D(f"/topic/{name}"), b"2")
    assert await open_.got(2) == [b"1", b"2"]
    assert closed.bodies == [b"1"]


async def test_close_then_reopen(broker: Broker, keyed: Keyed, name: str) -> None:
    first, second = FeedList(), FeedList()
    reader = await broker.open_feed(keyed(f"{name}.*"), first)
    await broker.publish(keyed(f"{name}.a"), b"1")
    await first.got(1)
    await reader.close()
    await reader.close()
    await broker.open_feed(keyed(f"{name}.*"), second)
    await broker.publish(keyed(f"{name}.a"), b"2")
    assert await second.got(1) == [b"2"]
    assert second.calls == ["begin", "append"]
    assert first.bodies == [b"1"]


@pytest.mark.needs("exchanges")
async def test_missing_exchange_names_the_setting_and_disturbs_nobody(
    broker: Broker, name: str
) -> None:
    sink = FeedList()
    await broker.open_feed(D(f"/topic/{name}"), sink)
    with pytest.raises(NotFound) as caught:
        await broker.open_feed(D(f"/exchange/{name}-missing/key"), FeedList())
    assert "[[exchange]]" in caught.value.hint
    assert f"{name}-missing" in str(caught.value)
    await broker.publish(D(f"/topic/{name}"), b"still here")
    assert await sink.got(1) == [b"still here"]
    assert sink.calls == ["begin", "append"]


@pytest.mark.needs("exchanges")
async def test_an_exchange_declared_later_can_be_opened(broker: Broker, name: str) -> None:
    with pytest.raises(NotFound):
        await broker.open_feed(D(f"/exchange/{name}/a"), FeedList())
    await broker.declare([ExchangeSpec(name, "direct")])
    sink = FeedList()
    await broker.open_feed(D(f"/exchange/{name}/a"), sink)
    await broker.publish(D(f"/exchange/{name}/a"), b"1")
    assert await sink.got(1) == [b"1"]


async def test_no_feed_on_a_queue(broker: Broker, name: str) -> None:
    with pytest.raises(Unsupported):
        await broker.open_feed(D(f"/queue/{name}"), FeedList())


async def test_a_sink_that_raises_stops_nobody_else(
    broker: Broker, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Raises(FeedList):
        def append(self, messages: object) -> None:
            raise ZeroDivisionError("this sink is broken")

    broken, good = Raises(), FeedList()
    await broker.open_feed(D(f"/topic/{name}"), broken)
    await broker.open_feed(D(f"/topic/{name}"), good)
    await broker.publish(D(f"/topic/{name}"), b"1")
    await broker.publish(D(f"/topic/{name}"), b"2")
    assert await good.got(2) == [b"1", b"2"]
    await until(lambda: broken.error is not None, "the broken feed's fail()")
    assert "this sink is broken" in caplog.text
