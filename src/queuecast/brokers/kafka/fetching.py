"""Fetching by a topic's id instead of its name (Fetch 13, KIP-516), which aiokafka cannot.

A topic that was deleted and recreated has its old name and offsets of its own. Asked by name, a
broker hands out records of the new topic from a place in the old one; asked by id it refuses. The
answer is turned into the form that aiokafka's fetcher knows. Kafka has this since 3.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from .requests import Uuid

VERSION = 13
# Error codes of Kafka's protocol: no such topic, and the two that say so of an id.
UNKNOWN_TOPIC = 3
_UNKNOWN_ID = (100, 103)


class FetchResponse_v13(Response):  # type: ignore[misc]
    API_KEY = 1
    API_VERSION = VERSION
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("session_id", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", Uuid),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("highwater_offset", Int64),
                        ("last_stable_offset", Int64),
                        ("log_start_offset", Int64),
                        (
                            "aborted_transactions",
                            CompactArray(
                                ("producer_id", Int64),
                                ("first_offset", Int64),
                                ("tags", TaggedFields),
                            ),
                        ),
                        ("preferred_read_replica", Int32),
                        ("records", CompactBytes),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class FetchRequest_v13(RequestStruct):  # type: ignore[misc]
    API_KEY = 1
    API_VERSION = VERSION
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = FetchResponse_v13
    SCHEMA = Schema(
        ("replica_id", Int32),
        ("max_wait_time", Int32),
        ("min_bytes", Int32),
        ("max_bytes", Int32),
        ("isolation_level", Int8),
        ("session_id", Int32),
        ("session_epoch", Int32),
        (
            "topics",
            CompactArray(
                ("topic_id", Uuid),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("fetch_offset", Int64),
                        ("last_fetched_epoch", Int32),
                        ("log_start_offset", Int64),
                        ("max_bytes", Int32),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        (
            "forgotten_topics_data",
            CompactArray(
                ("topic_id", Uuid),
                ("partitions", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("rack_id", CompactString("utf-8")),
        ("tags", TaggedFields),
    )


class FetchById(Request[FetchRequest_v13]):  # type: ignore[misc]
    """aiokafka's request, with ids; ids: by the topics' names, all of them."""

    API_KEY = 1

    def __init__(self, request: FetchRequest, ids: Mapping[str, bytes]) -> None:
        self._request = request
        self._ids = ids

    def build(self, request_struct_class: Any) -> Any:
        request = self._request
        topics: list[Any] = [
            (
                self._ids[name],
                [(number, -1, offset, -1, -1, most, {}) for number, offset, most in partitions],
                {},
            )
            for name, partitions in request.topics
        ]
        return request_struct_class(
            -1,  # replica_id: a consumer
            request._max_wait_ms,
            request._min_bytes,
            request._max_bytes,
            request._isolation_level,
            0,  # session_id: none
            -1,  # session_epoch: none
            topics,
            [],
            "",
            {},
        )


class Fetched(NamedTuple):
    """An answer in the form of Fetch 11: partitions end with log_start_offset, aborted
    transactions, preferred replica, records."""

    topics: list[tuple[str, list[tuple[Any, ...]]]]
    API_VERSION: int = 11


def by_name(answer: Any, ids: Mapping[str, bytes]) -> Fetched:
    """Name the topics of an answer, and say of an unknown id what is said of an unknown name."""
    names = {topic_id: name for name, topic_id in ids.items()}
    topics: list[tuple[str, list[tuple[Any, ...]]]] = []
    for topic_id, partitions, _ in answer.topics:
        name = names.get(topic_id)
        if name is None:
            continue
        found = [
            (
                number,
                UNKNOWN_TOPIC if code in _UNKNOWN_ID else code,
                high,
                stable,
                start,
                [(producer, first) for producer, first, _ in aborted or ()],
                replica,
                records or b"",
            )
            for number, code, high, stable, start, aborted, replica, records, _ in partitions
        ]
        topics.append((name, found))
    return Fetched(topics)
