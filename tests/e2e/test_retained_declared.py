"""Retained destinations at RabbitMQ: the streams that rules declare, and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from queuecast.brokers.base import ExchangeSpec
from queuecast.brokers.rabbitmq import RabbitBroker
from queuecast.brokers.rabbitmq.streams import stream_arguments, stream_name
from queuecast.errors import ConfigError, Conflict, NotFound, Refused
from queuecast.position import Start
from queuecast.retention import RetainRule
from tests.support.retained import (
    FIRST,
    D,
    channel,
    delete,
    open_feed,
    publish,
    read,
    retaining,
    rule,
)
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import eventually

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(500)]


def test_names_are_readable_and_no_two_rules_share_one() -> None:
    def name(destination: str) -> str:
        return stream_name(rule(destination))

    assert name("/topic/job.#") == "queuecast.retain.amq.topic:job.#"
    assert name("/exchange/events/a.b") == "queuecast.retain.events:a.b"
    assert name("/exchange/amq.topic/job.#") == name("/topic/job.#")
    long = "x" * 200
    names = [
        name("/exchange/a/b.c"),
        name("/exchange/a.b/c"),
        name("/exchange/a%3Ab/c"),
        name("/exchange/a/b%3Ac"),
        name("/exchange/事件/job"),
        name(f"/topic/{long}"),
        name(f"/topic/{long}x"),
    ]
    assert len(set(names)) == len(names)
    assert all(each.isascii() and len(each) <= 80 for each in names)


def test_a_segment_is_an_eighth_of_what_is_kept() -> None:
    assert stream_arguments(rule("/topic/a", size=64 << 20)) == {
        "x-queue-type": "stream",
        "x-max-age": "3600s",
        "x-max-length-bytes": 64 << 20,
        "x-stream-max-segment-size-bytes": 8 << 20,
    }
    aged = stream_arguments(rule("/topic/a", age=0.5, size=0))
    assert aged["x-max-age"] == "1s"
    assert "x-max-length-bytes" not in aged
    tiny = stream_arguments(rule("/topic/a", age=0, size=1000))
    assert tiny["x-stream-max-segment-size-bytes"] == 64 << 10
    assert "x-max-age" not in tiny
    huge = stream_arguments(rule("/topic/a", size=1 << 40))
    assert huge["x-stream-max-segment-size-bytes"] == 500_000_000


def test_a_bound_on_messages_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot count messages"):
        RabbitBroker("amqp://localhost", retain=[RetainRule(D("/topic/a"), messages=5, age=1)])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"age": 7200.0}, ["age", "'?7200s", "3600s"]),
        ({"size": 32 << 20}, ["bytes", str(32 << 20), str(64 << 20)]),
        ({"age": 0.0}, ["age", "none", "3600s"]),
    ],
)
async def test_changed_settings_stop_the_start_and_name_both_values(
    rabbit: RabbitMQ, changed: dict[str, Any], words: list[str]
) -> None:
    key = unique("changed")
    kept = rule(f"/topic/{key}")
    async with retaining(rabbit.url, kept):
        pass
    try:
        with pytest.raises(Conflict) as caught:
            async with retaining(rabbit.url, rule(f"/topic/{key}", **changed)):
                pass
        for word in [stream_name(kept), *words]:
            assert word.strip("'?") in caught.value.text, caught.value
        # What is there is unharmed.
        async with retaining(rabbit.url, kept):
            pass
    finally:
        delete(rabbit, kept)


async def test_replicas_are_asked_for_and_an_existing_stream_is_taken_as_it_is(
    rabbit: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    key = unique("replicas")
    kept = rule(f"/topic/{key}")
    one, three = replace(kept, replicas=1), replace(kept, replicas=3)

    async def declared(by: RetainRule) -> dict[str, Any]:
        async with retaining(rabbit.url, by):
            rows = {each["name"]: each for each in rabbit.rows("list_queues", "name", "arguments")}
            arguments = rows[stream_name(kept)]["arguments"]
            return {name: value for name, _, value in arguments}

    # RabbitMQ's own choice; then it is there already, whatever the rule says.
    assert "x-initial-cluster-size" not in await declared(kept)
    assert "x-initial-cluster-size" not in await declared(three)
    assert "rabbitmq-streams add_replica" in caplog.text
    delete(rabbit, kept)
    assert (await declared(three))["x-initial-cluster-size"] == 3
    for other in (one, kept):
        assert (await declared(other))["x-initial-cluster-size"] == 3
    # What else differs is a conflict as ever.
    with pytest.raises(Conflict, match="x-max-age"):
        await declared(replace(one, age=7200.0))
    delete(rabbit, kept)


async def test_a_queue_of_the_streams_name_is_refused(rabbit: RabbitMQ) -> None:
    kept = rule(f"/topic/{unique('classic')}")
    with channel(rabbit) as opened:
        opened.queue_declare(stream_name(kept), durable=True)
    try:
        with pytest.raises(Conflict, match="exists with"):
            async with retaining(rabbit.url, kept):
                pass
    finally:
        delete(rabbit, kept)


async def test_a_missing_exchange_stops_the_start_with_the_line_to_add(rabbit: RabbitMQ) -> None:
    name = unique("missing")
    kept = rule(f"/exchange/{name}/#")
    with pytest.raises(NotFound, match=f'name = "{name}"'):
        async with retaining(rabbit.url, kept):
            pass
    exchanges = [ExchangeSpec(name, auto_delete=True)]
    async with retaining(rabbit.url, kept, exchanges=exchanges) as broker:
        reader, _ = await open_feed(broker, f"/exchange/{name}/a")
        publish(rabbit, "a", [b"1"], name)
        await eventually(lambda: (reader.position() or [0])[0] >= 2, "the message")
    delete(rabbit, kept)


@pytest.mark.parametrize(("kind", "word"), [("headers", "topic, direct"), ("direct", "patterns")])
async def test_exchanges_that_a_pattern_cannot_retain_are_refused(
    rabbit: RabbitMQ, kind: str, word: str
) -> None:
    name = unique(kind)
    with pytest.raises(ConfigError, match=word):
        async with retaining(
            rabbit.url,
            rule(f"/exchange/{name}/#"),
            exchanges=[ExchangeSpec(name, type=kind)],
        ):
            pass
    with channel(rabbit) as opened:
        opened.exchange_delete(name)


@pytest.mark.parametrize(
    ("kind", "kept", "feed", "key"),
    [("direct", "/k", "/k", "k"), ("fanout", "/#", "/what.ever", "else"), ("fanout", "", "", "x")],
)
async def test_direct_and_fanout_exchanges(
    rabbit: RabbitMQ, kind: str, kept: str, feed: str, key: str
) -> None:
    name = unique(kind)
    retained = rule(f"/exchange/{name}{kept}")
    async with retaining(rabbit.url, retained, exchanges=[ExchangeSpec(name, type=kind)]) as broker:
        reader, sink = await open_feed(broker, f"/exchange/{name}{feed}")
        publish(rabbit, key, [b"1", b"2"], name)
        await sink.until(b"2")
        assert sink.bodies == [b"1", b"2"]
        assert (await read(reader, FIRST)).bodies == [b"1", b"2"]
        assert (await read(reader, Start("last", count=1))).bodies == [b"2"]
    delete(rabbit, retained)
    with channel(rabbit) as opened:
        opened.exchange_delete(name)


async def test_a_user_needs_only_the_documented_permissions(rabbit: RabbitMQ) -> None:
    user = unique("user")
    url = rabbit.add_user(
        user, "secret", r"queuecast\..*", r"queuecast\..*", r"queuecast\..*|amq\.topic"
    )
    kept = rule(f"/topic/{user}.#")
    async with retaining(url, kept) as broker:
        reader, sink = await open_feed(broker, f"/topic/{user}.a")
        publish(rabbit, f"{user}.a", [b"1"])
        await sink.until(b"1")
        assert (await read(reader, FIRST)).bodies == [b"1"]
    delete(rabbit, kept)
    poor = rabbit.add_user(unique("poor"), "secret", "", "", ".*")
    with pytest.raises(Refused):
        async with retaining(poor, kept):
            pass
