"""Brokers that keep history by themselves: backlog, watermark, positions."""

from queuecast.brokers.base import Broker
from queuecast.destination import Destination
from tests.support.sinks import FeedList

D = Destination.parse


async def test_an_empty_history_begins_at_an_epoch(historic: Broker, name: str) -> None:
    sink = FeedList()
    await historic.open_feed(D(f"/topic/{name}"), sink)
    assert sink.keeps_history
    assert sink.backlog == []
    assert sink.start is not None
    assert len(sink.start) == 1


async def test_backlog_of_what_was_published_before(historic: Broker, name: str) -> None:
    for number, key in enumerate(["a", "b", "other", "a", "b"]):
        await historic.publish(D(f"/topic/{name}.{key}"), b"%d" % number)
    exact, pattern, none = FeedList(), FeedList(), FeedList()
    await historic.open_feed(D(f"/topic/{name}.a"), exact)
    await historic.open_feed(D(f"/topic/{name}.*"), pattern)
    await historic.open_feed(D(f"/topic/{name}"), none)
    assert [message.body for message in exact.backlog] == [b"0", b"3"]
    assert [message.body for message in pattern.backlog] == [b"0", b"1", b"2", b"3", b"4"]
    assert none.backlog == []
    offsets = [message.offset or 0 for message in pattern.backlog]
    assert offsets == sorted(set(offsets))


async def test_backlog_and_live_join_without_hole_or_repetition(
    historic: Broker, name: str
) -> None:
    first, second = FeedList(), FeedList()
    reader = await historic.open_feed(D(f"/topic/{name}"), first)
    for number in range(5):
        await historic.publish(D(f"/topic/{name}"), b"%d" % number)
    position = reader.position()
    await reader.close()
    for number in range(5, 8):
        await historic.publish(D(f"/topic/{name}"), b"%d" % number)
    again = await historic.open_feed(D(f"/topic/{name}"), second)
    for number in range(8, 10):
        await historic.publish(D(f"/topic/{name}"), b"%d" % number)
    assert position is not None
    assert first.messages[-1].offset == position[0]
    after = [m for m in second.backlog + second.messages if (m.offset or 0) > position[0]]
    assert [message.body for message in after] == [b"5", b"6", b"7", b"8", b"9"]
    assert first.start is not None
    assert second.start is not None
    assert first.start[0].epoch == second.start[0].epoch
    assert second.start[0].offset <= position[0]
    last = again.position()
    assert last is not None
    assert last[0] == second.messages[-1].offset


async def test_position_runs_on_with_other_destinations_messages(
    historic: Broker, name: str
) -> None:
    reader = await historic.open_feed(D(f"/topic/{name}"), FeedList())
    before = reader.position()
    await historic.publish(D(f"/topic/{name}-other"), b"1")
    after = reader.position()
    assert before is not None
    assert after is not None
    assert after[0] > before[0]


async def test_watermark_after_eviction_is_the_last_that_is_gone(
    historic: Broker, name: str
) -> None:
    live = FeedList()
    await historic.open_feed(D(f"/topic/{name}.#"), live)
    await historic.publish(D(f"/topic/{name}.quiet"), b"quiet")
    for number in range(130):
        await historic.publish(D(f"/topic/{name}.busy"), b"%d" % number)
    both, busy, quiet = FeedList(), FeedList(), FeedList()
    await historic.open_feed(D(f"/topic/{name}.*"), both)
    await historic.open_feed(D(f"/topic/{name}.busy"), busy)
    await historic.open_feed(D(f"/topic/{name}.quiet"), quiet)
    evicted = live.messages[30].offset
    assert both.start is not None
    assert busy.start is not None
    assert quiet.start is not None
    assert busy.start[0].offset == evicted
    assert both.start[0].offset == evicted
    assert quiet.start[0].offset == 0
    assert [message.body for message in busy.backlog] == [b"%d" % n for n in range(30, 130)]
    # Other keys' messages before the mark are extra, for a `last=N`.
    assert [message.body for message in both.backlog][:2] == [b"quiet", b"30"]
