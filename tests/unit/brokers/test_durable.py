"""The durable broker over restarts, clean and by kill: what is there again, and what is not."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from queuecast.brokers.base import BindingSpec, ExchangeSpec, QueueSpec
from queuecast.brokers.embedded import store
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.brokers.embedded.store_codec import decode_properties, encode_properties
from queuecast.destination import Destination
from queuecast.errors import BadRequest, Conflict, PublishFailed, Unavailable
from queuecast.message import Properties
from tests.support.durable import Restart, closing, killing, on_disk, writer_of
from tests.support.sinks import DeliveryList, FeedList, until

D = Destination.parse
Q = D("/queue/q")
PERSISTENT = Properties(persistent=True)


async def consume(
    broker: EmbeddedBroker, where: Destination = Q, prefetch: int = 100
) -> DeliveryList:
    sink = DeliveryList()
    sink.consumer = await broker.consume(where, sink, prefetch=prefetch)
    return sink


async def publish(broker: EmbeddedBroker, *bodies: bytes, where: Destination = Q) -> None:
    for body in bodies:
        await broker.publish(where, body, PERSISTENT)


async def test_messages_come_back_in_order_with_all_their_properties(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    properties = Properties(
        persistent=True,
        content_type="text/plain",
        priority=3,
        timestamp=7,
        headers={"a": [1, True, None, 1.5, b"\0\xff"], "b": {"m": {"b": "关"}}},
    )
    await publish(broker, b"1", b"2")
    await broker.publish(Q, b"3", properties)
    after = await restart(broker)
    sink = await consume(after)
    assert await sink.got(3) == [b"1", b"2", b"3"]
    assert not any(delivery.message.redelivered for delivery in sink.deliveries)
    message = sink.deliveries[2].message
    assert (message.exchange, message.routing_key) == ("", "q")
    assert message.properties == properties
    assert message.properties.headers["a"][1] is True


async def test_transient_messages_and_queues_are_gone(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    await broker.declare(queues=[QueueSpec("passing", durable=False)])
    await broker.publish(Q, b"transient")
    await publish(broker, b"kept")
    await publish(broker, b"kept", where=D("/queue/passing"))
    after = await restart(broker)
    assert list(after.counts().queues) == ["q"]
    sink = await consume(after)
    assert await sink.got(1) == [b"kept"]


async def test_acked_ones_are_gone_and_unacked_ones_marked(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    await publish(broker, b"1", b"2", b"3", b"4")
    sink = await consume(broker, prefetch=2)
    await sink.got(2)
    assert sink.ack()
    await sink.got(3)
    after = await restart(broker)
    again = await consume(after)
    assert await again.got(3) == [b"2", b"3", b"4"]
    marks = [delivery.message.redelivered for delivery in again.deliveries]
    assert marks == [True, True, False]
    once_more = await restart(after)
    assert once_more.counts().queues["q"].ready == 3


async def test_one_that_found_a_waiting_consumer_is_marked(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    sink = await consume(broker, prefetch=1)
    await asyncio.sleep(0)
    await publish(broker, b"1", b"2")
    await sink.got(1)
    after = await restart(broker)
    again = await consume(after)
    await again.got(2)
    assert [delivery.message.redelivered for delivery in again.deliveries] == [True, False]


async def test_what_was_cleared_and_never_delivered_is_not_marked_after_a_close(
    broker: EmbeddedBroker, tmp_path: Path, brokers: list[EmbeddedBroker]
) -> None:
    await publish(broker, *(b"%d" % number for number in range(50)))
    sink = await consume(broker, prefetch=1)
    for count in range(1, 20):
        await sink.got(count)
        assert sink.ack()
    await sink.got(20)
    after = await closing(tmp_path, brokers)(broker)
    again = await consume(after)
    await again.got(31)
    assert [delivery.message.redelivered for delivery in again.deliveries] == [True] + [False] * 30


async def test_a_backlog_is_cleared_in_few_commits(broker: EmbeddedBroker) -> None:
    await asyncio.gather(*(publish(broker, b"x") for _ in range(600)))
    commits = 0

    def count(statement: str) -> None:
        nonlocal commits
        commits += statement.startswith("COMMIT")

    writer_of(broker).database.set_trace_callback(count)
    sink = await consume(broker, prefetch=1)
    sink.acks_at_once = True
    await sink.got(600)
    writer_of(broker).database.set_trace_callback(None)
    assert commits < 100


async def test_exchanges_and_bindings_come_back(broker: EmbeddedBroker, restart: Restart) -> None:
    await broker.declare(
        [
            ExchangeSpec("events", "headers", arguments={"alternate-exchange": "amq.fanout"}),
            ExchangeSpec("passing", "topic", durable=False),
        ],
        [
            QueueSpec("bound", bindings=(BindingSpec("events", "", {"a": 1}),)),
            QueueSpec("other", bindings=(BindingSpec("amq.topic", "x.*"), BindingSpec("passing"))),
            QueueSpec("gone", bindings=(BindingSpec("amq.topic", "#"),)),
        ],
    )
    await broker.delete_queue("gone")
    after = await restart(broker)
    assert after.counts().exchanges == 7
    one = Properties(persistent=True, headers={"a": 1})
    await after.publish(D("/exchange/events"), b"1", one)
    await after.publish(D("/topic/x.y"), b"2", PERSISTENT)
    again = await restart(after)
    assert await (await consume(again, D("/queue/bound"))).got(1) == [b"1"]
    assert await (await consume(again, D("/queue/other"))).got(1) == [b"2"]
    with pytest.raises(Conflict, match="other properties"):
        await again.declare([ExchangeSpec("events", "topic")])
    await again.delete_exchange("events")
    last = await restart(again)
    assert last.counts().exchanges == 6


async def test_positions_go_on_and_none_is_given_twice(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    first, second = FeedList(), FeedList()
    reader = await broker.open_feed(D("/topic/a"), first)
    for number in range(3):
        await broker.publish(D("/topic/a"), b"%d" % number)
    position = reader.position()
    after = await restart(broker)
    await after.open_feed(D("/topic/a"), second)
    await after.publish(D("/topic/a"), b"3")
    assert first.start is not None
    assert second.start is not None
    assert first.start[0].epoch == second.start[0].epoch
    assert second.start[0].offset >= position[0]
    assert (second.messages[0].offset or 0) > position[0]


async def test_continuity_is_claimed_after_a_close_and_not_after_a_kill(
    broker: EmbeddedBroker, tmp_path: Path, brokers: list[EmbeddedBroker]
) -> None:
    reader = await broker.open_feed(D("/topic/a"), FeedList())
    await broker.publish(D("/topic/a"), b"1")
    position = reader.position()
    killed = FeedList()
    await (await killing(tmp_path, brokers)(broker)).open_feed(D("/topic/a"), killed)
    assert killed.start is not None
    assert killed.start[0].offset > position[0]  # something may have come after it
    closed = FeedList()
    await (await closing(tmp_path, brokers)(broker)).open_feed(D("/topic/a"), closed)
    assert closed.start is not None
    assert closed.start[0].offset == position[0]  # that was the last


async def test_offsets_are_reserved_again_and_again(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    brokers: list[EmbeddedBroker],
) -> None:  # fmt: skip
    monkeypatch.setattr(store, "RANGE", 20)
    after = await closing(tmp_path, brokers)(broker)
    sink = FeedList()
    await after.open_feed(D("/topic/a"), sink)
    for number in range(500):
        await after.publish(D("/topic/a"), b"%d" % number)
    assert sink.bodies == [b"%d" % number for number in range(500)]
    last = await killing(tmp_path, brokers)(after)
    assert last.counts().offset >= (sink.messages[-1].offset or 0)


async def test_dead_letters_and_expiry_across_a_restart(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    arguments = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    # The dead letters' queue comes after it in the store.
    await broker.declare(queues=[QueueSpec("q", arguments=arguments), QueueSpec("dead")])
    await broker.publish(Q, b"short", Properties(persistent=True, expiration="300"))
    await broker.publish(Q, b"long", Properties(persistent=True, expiration="3600000"))
    await publish(broker, b"rejected")
    sink = await consume(broker)
    await sink.got(3)
    assert sink.consumer is not None
    assert sink.consumer.nack(sink.deliveries[2].tag, requeue=False)
    letters = broker.counts().queues["dead"]
    await broker.declare()
    await until(lambda: broker.counts().queues["dead"].ready == 1, "the letter")
    assert letters.ready in (0, 1)
    await asyncio.sleep(0.4)  # the first one's time is over; its consumer has it still
    after = await restart(broker)
    dead = await consume(after, D("/queue/dead"))
    assert sorted(await dead.got(2)) == [b"rejected", b"short"]
    assert dead.deliveries[0].message.properties.headers["x-first-death-queue"] == "q"
    again = await consume(after)
    assert await again.got(1) == [b"long"]
    once_more = await restart(after)
    assert once_more.counts().queues["dead"].ready == 2
    assert once_more.counts().queues["q"].ready == 1


async def test_a_full_queue_refuses_those_on_their_way_too(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    arguments = {"x-max-length": 3, "x-overflow": "reject-publish"}
    await broker.declare(queues=[QueueSpec("q", arguments=arguments)])
    results = await asyncio.gather(
        *(publish(broker, b"%d" % number) for number in range(10)), return_exceptions=True
    )
    assert [result for result in results if result is None] == [None] * 3
    assert all(isinstance(result, PublishFailed) for result in results[3:])
    after = await restart(broker)
    assert await (await consume(after)).got(3) == [b"0", b"1", b"2"]


async def test_nothing_is_seen_before_its_commit(broker: EmbeddedBroker) -> None:
    feed = FeedList()
    await broker.open_feed(D("/topic/a"), feed)
    await broker.declare(queues=[QueueSpec("q", bindings=(BindingSpec("amq.topic", "a"),))])
    sink = await consume(broker)
    await asyncio.sleep(0)
    seen: list[tuple[int, int]] = []

    def traced(statement: str) -> None:
        # From the writer's thread, while the loop goes on.
        if statement.startswith("COMMIT"):
            time.sleep(0.05)
            seen.append((len(feed.messages), len(sink.deliveries)))

    writer_of(broker).database.set_trace_callback(traced)
    await broker.publish(D("/topic/a"), b"1", PERSISTENT)
    writer_of(broker).database.set_trace_callback(None)
    assert seen == [(0, 0)]
    assert feed.bodies == [b"1"]
    await sink.got(1)


async def test_transient_messages_keep_their_place_behind_persistent_ones(
    broker: EmbeddedBroker,
) -> None:
    feed = FeedList()
    await broker.open_feed(D("/topic/#"), feed)
    await broker.declare(queues=[QueueSpec("q", bindings=(BindingSpec("amq.topic", "#"),))])
    await asyncio.gather(
        *(
            broker.publish(D("/topic/a"), b"%d" % number, Properties(persistent=number % 3 == 0))
            for number in range(300)
        )
    )
    expected = [b"%d" % number for number in range(300)]
    assert feed.bodies == expected
    offsets = [message.offset or 0 for message in feed.messages]
    assert offsets == sorted(set(offsets))
    assert await (await consume(broker, prefetch=500)).got(300) == expected


async def test_a_feed_that_opens_meanwhile_misses_nothing(broker: EmbeddedBroker) -> None:
    await broker.declare(queues=[QueueSpec("q", bindings=(BindingSpec("amq.topic", "#"),))])
    under_way = asyncio.gather(
        *(broker.publish(D("/topic/a"), b"%d" % number, PERSISTENT) for number in range(50))
    )
    await asyncio.sleep(0)
    feed = FeedList()
    await broker.open_feed(D("/topic/a"), feed)
    await under_way
    assert [m.body for m in [*feed.backlog, *feed.messages]] == [b"%d" % n for n in range(50)]


async def test_a_deleted_queue_takes_those_on_their_way_along(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    await broker.declare(queues=[QueueSpec("q")])
    under_way = asyncio.gather(*(publish(broker, b"x") for _ in range(10)))
    await asyncio.sleep(0)
    await broker.delete_queue("q")
    await under_way
    assert broker.counts().queue_bytes == 0
    after = await restart(broker)
    assert not after.counts().queues


async def test_a_header_that_cannot_be_kept_is_refused(broker: EmbeddedBroker) -> None:
    await broker.declare(queues=[QueueSpec("q")])
    with pytest.raises(BadRequest, match="type set cannot be kept"):
        await broker.publish(Q, b"1", Properties(persistent=True, headers={"a": {1}}))
    assert broker.counts().queue_bytes == 0
    await broker.publish(Q, b"2", Properties(persistent=True, headers={"a": "\ud800"}))
    assert broker.counts().queues["q"].ready == 1


async def test_a_full_disk_refuses_publishes_and_recovers(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    await publish(broker, b"1", b"2")
    sink = await consume(broker)
    await sink.got(2)
    database = writer_of(broker).database
    ((pages,),) = database.execute("PRAGMA page_count").fetchall()
    database.execute(f"PRAGMA max_page_count = {pages}").fetchall()
    large = b"x" * 200_000
    results = await asyncio.gather(
        *(publish(broker, large) for _ in range(5)), return_exceptions=True
    )
    assert all(isinstance(result, Unavailable) for result in results)
    assert "cannot write" in broker.status
    assert "full" in str(results[0])
    # What has happened already is not forgotten, and feeds go on.
    assert sink.ack()
    feed = FeedList()
    await broker.open_feed(D("/topic/a"), feed)
    await until(lambda: feed.error is None, "an open feed")
    assert broker.counts().queues["q"].ready == 0
    with pytest.raises(Unavailable):
        await broker.declare(queues=[QueueSpec("more")])
    # It notices by itself that there is room again.
    database.execute("PRAGMA max_page_count = 1000000").fetchall()
    await until(lambda: "cannot write" not in broker.status, "a store that can write")
    await publish(broker, b"3")
    await sink.got(3)
    after = await restart(broker)
    again = await consume(after)
    assert await again.got(2) == [b"2", b"3"]
    assert after.counts().queue_bytes < 10_000


async def test_a_disk_that_is_full_at_the_close_is_no_hang(
    broker: EmbeddedBroker, tmp_path: Path
) -> None:
    await publish(broker, b"1")
    await broker.declare(queues=[QueueSpec(f"q{number}" * 20) for number in range(3)])
    database = writer_of(broker).database
    database.execute("PRAGMA query_only = 1")
    with pytest.raises(Unavailable):
        await publish(broker, b"2")
    await broker.close()
    after = on_disk(tmp_path / "0")
    await after.start()
    assert after.counts().queues["q"].ready == 1
    await after.close()


async def test_too_much_on_its_way_is_refused(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "WAITING_BYTES", 10_000)
    results = await asyncio.gather(
        *(publish(broker, b"x" * 1000) for _ in range(50)), return_exceptions=True
    )
    failed = [result for result in results if result is not None]
    assert failed
    assert all(isinstance(result, Unavailable) for result in failed)
    await publish(broker, b"x")
    assert broker.counts().queues["q"].ready == 51 - len(failed)


async def test_a_publisher_that_leaves_does_not_take_its_message_back(
    broker: EmbeddedBroker, restart: Restart
) -> None:
    await broker.declare(queues=[QueueSpec("q")])
    task = asyncio.create_task(publish(broker, b"1"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await publish(broker, b"2")
    after = await restart(broker)
    assert await (await consume(after)).got(2) == [b"1", b"2"]


def test_properties_are_text_that_only_this_reads() -> None:
    assert encode_properties(Properties()) == ""
    for text in ("{", "[]", '"x"', '{"nope": 1}', '{"headers": {"a": {"x": 1}}}'):
        with pytest.raises(ValueError, match=r".+"):
            decode_properties(text)
    text = encode_properties(Properties(headers={"n": float("inf")}))
    assert json.loads(text)["headers"]["n"] == float("inf")
