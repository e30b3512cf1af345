"""What a frame's headers make of a queue, header by header."""

from __future__ import annotations

from typing import Any

import pytest

from queuecast.codecs.stomp_values import AckMode, StompError
from queuecast.destination import Destination
from queuecast.queuespec import BindingSpec, QueueSpec, Timestamp
from queuecast.sessions.stomp_names import durable_name
from queuecast.sessions.stomp_queues import (
    check_stream,
    consumer_arguments,
    dead_letter_targets,
    needs_own_queue,
    queue_of_send,
    queue_of_subscribe,
    temporary_queue,
)

D = Destination.parse


def made(destination: str, id: str | None = "1", /, **headers: str) -> QueueSpec:
    spec = queue_of_subscribe(D(destination), _named(headers), id)
    assert spec is not None
    return spec


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def flags(spec: QueueSpec) -> str:
    """D(urable), E(xclusive), A(uto-delete)."""
    letters = zip("DEA", (spec.durable, spec.exclusive, spec.auto_delete), strict=True)
    return "".join(letter for letter, has in letters if has)


@pytest.mark.parametrize(
    ("destination", "headers", "expected"),
    [
        # Not durable: exclusive and auto-delete, whatever else is said.
        ("/topic/a", {}, "EA"),
        ("/topic/a", {"exclusive": "false"}, "EA"),
        ("/topic/a", {"auto_delete": "false"}, "EA"),
        ("/exchange/e/k", {}, "EA"),
        ("/exchange/e/k", {"durable": "false", "exclusive": "false"}, "EA"),
        # A durable one keeps auto-delete unless the frame says otherwise.
        ("/topic/a", {"durable": "true"}, "DA"),
        ("/topic/a", {"persistent": "True"}, "DA"),
        ("/topic/a", {"durable": "true", "persistent": "false"}, "DA"),
        ("/topic/a", {"durable": "true", "auto_delete": "false"}, "D"),
        ("/topic/a", {"durable": "true", "auto_delete": "False", "exclusive": "true"}, "DE"),
        ("/exchange/e/k", {"durable": "true"}, "DA"),
        ("/exchange/e", {"durable": "true", "auto_delete": "false"}, "D"),
        # Anything but true and false is as if it had not been said.
        ("/topic/a", {"durable": "TRUE"}, "EA"),
        ("/topic/a", {"durable": "yes"}, "EA"),
        # Quorum queues and streams are durable and not exclusive, but auto-delete as said.
        ("/topic/a", {"x_queue_type": "quorum"}, "DA"),
        ("/topic/a", {"x_queue_type": "stream", "auto_delete": "false"}, "D"),
        ("/exchange/e/k", {"x_queue_type": "quorum", "exclusive": "true"}, "DA"),
        ("/queue/q", {"x_queue_type": "stream", "durable": "false", "exclusive": "true"}, "D"),
        ("/queue/q", {"exclusive": "true"}, "DE"),
        ("/queue/q", {"auto_delete": "true"}, "DA"),
        ("/queue/q", {"durable": "false"}, "EA"),
        ("/queue/q", {"persistent": "false"}, "EA"),
        ("/queue/q", {"durable": "false", "exclusive": "false"}, "EA"),
        ("/queue/q", {"x_max_length": "1"}, "D"),
    ],
)
def test_properties(destination: str, headers: dict[str, str], expected: str) -> None:
    assert flags(made(destination, **headers)) == expected


def test_names_and_bindings() -> None:
    durable = made("/topic/a.*", "s", durable="true")
    assert durable.name == durable_name("a.*", "s")
    assert durable.bindings == (BindingSpec("amq.topic", "a.*"),)
    # The exchange is no part of the name, its key is.
    assert made("/exchange/e/a.*", "s", durable="true").name == durable.name
    assert made("/exchange/e", "s", durable="true").name == durable_name("", "s")
    assert made("/exchange/e", "s").bindings == (BindingSpec("e", ""),)
    assert made("/topic/a", "s").name != made("/topic/a", "s").name
    # Durable by its type alone, it is not the subscription's own to come back to.
    typed = made("/topic/a.*", "s", x_queue_type="quorum")
    assert typed.name not in (durable.name, made("/topic/a.*", "s", x_queue_type="quorum").name)
    assert made("/topic/a", x_queue_name="mine", durable="true").name == "mine"
    queue = made("/queue/q", x_queue_name="other", exclusive="true")
    assert (queue.name, queue.bindings) == ("q", ())


@pytest.mark.parametrize("name", ["", "x" * 256, "磁" * 86])
def test_impossible_names(name: str) -> None:
    with pytest.raises(StompError, match="x-queue-name"):
        made("/topic/a", x_queue_name=name)


def test_arguments_have_types() -> None:
    spec = made(
        "/queue/q",
        x_expires=" 60000 ",
        x_max_length="1",
        x_max_length_bytes="2",
        x_max_priority="3",
        x_message_ttl="4",
        x_stream_max_segment_size_bytes="5",
        x_stream_filter_size_bytes="6",
        x_dead_letter_exchange=" dead ",
        x_dead_letter_routing_key="k",
        x_max_age="7D",
        x_queue_type="classic",
        x_overflow="reject-publish",
        x_delivery_limit="9",
        x_unknown="10",
        other="11",
    )
    assert spec.arguments == {
        "x-expires": 60000,
        "x-max-length": 1,
        "x-max-length-bytes": 2,
        "x-max-priority": 3,
        "x-message-ttl": 4,
        "x-stream-max-segment-size-bytes": 5,
        "x-stream-filter-size-bytes": 6,
        "x-dead-letter-exchange": "dead",
        "x-dead-letter-routing-key": "k",
        "x-max-age": "7D",
        "x-queue-type": "classic",
        "x-overflow": "reject-publish",
    }


@pytest.mark.parametrize("value", ["", "many", "-1", "1.5", "1" * 20, "９", "9223372036854775808"])
def test_numbers_that_are_none(value: str) -> None:
    with pytest.raises(StompError, match="x-max-length") as caught:
        made("/queue/q", x_max_length=value)
    assert caught.value.message == "Processing error"


@pytest.mark.parametrize(
    ("destination", "headers", "expected"),
    [
        ("/queue/q", {}, None),
        ("/queue/q", {"durable": "true", "auto_delete": "false", "exclusive": "false"}, None),
        # It is the message that is persistent or not.
        ("/queue/q", {"persistent": "false"}, None),
        ("/queue/q", {"persistent": "false", "x_max_length": "1"}, "D"),
        ("/queue/q", {"durable": "false"}, "EA"),
        ("/queue/q", {"x_unknown": "1"}, None),
        ("/queue/q", {"auto_delete": "true"}, "DA"),
        ("/amq/queue/q", {"auto_delete": "true"}, None),
        ("/topic/q", {"durable": "true", "x_max_length": "1"}, None),
        ("/reply-queue/q", {"exclusive": "true"}, None),
    ],
)
def test_what_a_send_declares(
    destination: str, headers: dict[str, str], expected: str | None
) -> None:
    spec = queue_of_send(D(destination), _named(headers))
    assert (None if spec is None else flags(spec)) == expected


@pytest.mark.parametrize(
    ("headers", "mode", "expected"),
    [
        ({}, AckMode.AUTO, False),
        ({}, AckMode.CLIENT, True),
        ({}, AckMode.INDIVIDUAL, True),
        ({"durable": "false", "auto_delete": "true", "exclusive": "true"}, AckMode.AUTO, False),
        ({"durable": "true"}, AckMode.AUTO, True),
        ({"persistent": "true"}, AckMode.AUTO, True),
        ({"exclusive": "false"}, AckMode.AUTO, True),
        ({"auto_delete": "false"}, AckMode.AUTO, True),
        ({"x_queue_name": "q"}, AckMode.AUTO, True),
        ({"x_message_ttl": "5"}, AckMode.AUTO, True),
        ({"x_unknown": "5"}, AckMode.AUTO, False),
    ],
)
def test_who_shares_the_feed(headers: dict[str, str], mode: AckMode, expected: bool) -> None:
    assert needs_own_queue(_named(headers), mode) is expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, {}),
        ({"x_priority": " -5 "}, {"x-priority": -5}),
        ({"x_stream_offset": "first"}, {"x-stream-offset": "first"}),
        ({"x_stream_offset": "last"}, {"x-stream-offset": "last"}),
        ({"x_stream_offset": "next"}, {"x-stream-offset": "next"}),
        ({"x_stream_offset": "offset=42"}, {"x-stream-offset": 42}),
        ({"x_stream_offset": "timestamp=1700000000"}, {"x-stream-offset": Timestamp(1700000000)}),
        ({"x_stream_offset": "somewhere"}, {}),
        ({"x_stream_filter": "a, b,,"}, {"x-stream-filter": ["a", "b"]}),
        ({"x_stream_filter": ","}, {}),
        ({"x_stream_match_unfiltered": "true"}, {"x-stream-match-unfiltered": True}),
    ],
)
def test_consumer_arguments(headers: dict[str, str], expected: dict[str, Any]) -> None:
    assert consumer_arguments(_named(headers)) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {"x_priority": "high"},
        {"x_priority": str(1 << 31)},
        {"x_stream_offset": "offset="},
        {"x_stream_offset": "offset=-1"},
        {"x_stream_offset": f"offset={1 << 63}"},
        {"x_stream_offset": "timestamp=1700000000000000"},
        {"x_stream_filter": ",".join("a" * 101)},
    ],
)
def test_consumer_arguments_that_are_none(headers: dict[str, str]) -> None:
    with pytest.raises(StompError) as caught:
        consumer_arguments(_named(headers))
    assert caught.value.message == "Processing error"


def test_streams_are_read_with_acks_and_a_prefetch() -> None:
    stream = made("/queue/s", x_queue_type="stream")
    for headers, mode, message in (
        ({"prefetch-count": "5"}, AckMode.AUTO, "not_implemented"),
        ({}, AckMode.CLIENT, "precondition_failed"),
        ({"prefetch-count": " 0 "}, AckMode.CLIENT, "precondition_failed"),
    ):
        with pytest.raises(StompError) as caught:
            check_stream(stream, headers, mode)
        assert caught.value.message == message
    check_stream(stream, {"prefetch-count": "5"}, AckMode.INDIVIDUAL)
    check_stream(made("/queue/s", x_queue_type="quorum"), {}, AckMode.AUTO)
    check_stream(None, {}, AckMode.AUTO)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, []),
        ({"x-dead-letter-routing-key": "k"}, []),
        ({"x-dead-letter-exchange": "e"}, ["/exchange/e/#"]),
        (
            {"x-dead-letter-exchange": "e", "x-dead-letter-routing-key": "k"},
            ["/exchange/e/k"],
        ),
        ({"x-dead-letter-exchange": ""}, ["/queue/#"]),
        ({"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "q"}, ["/queue/q"]),
        (
            {"x-dead-letter-exchange": "amq.topic", "x-dead-letter-routing-key": "k"},
            ["/exchange/amq.topic/k", "/topic/k"],
        ),
    ],
)
def test_where_dead_letters_go(arguments: dict[str, str], expected: list[str]) -> None:
    targets = dead_letter_targets(QueueSpec("q", arguments=arguments))
    assert [str(each) for each in targets] == expected


def test_a_temporary_queue() -> None:
    assert flags(temporary_queue()) == "EA"
    assert temporary_queue().name != temporary_queue().name
