"""Asking for topics with their ids and our permissions, which aiokafka has no request for.

Metadata 12 (KIP-516) names each topic's id, which is new when a topic was deleted and recreated.
Brokers before Kafka 3.0 answer version 5 or 4, without ids.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.admin import CreateTopicsRequest_v3, CreateTopicsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v4, MetadataRequest_v5
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

# Bits of "authorized operations" (KIP-430): one shifted by the operation's code.
READ = 1 << 3
WRITE = 1 << 4
# What a broker answers that was not asked, or does not say.
UNKNOWN_OPERATIONS = -(1 << 31)


class CreateTopicsResponse_v4(Response):  # type: ignore[misc]
    API_KEY = 19
    API_VERSION = 4
    SCHEMA = CreateTopicsResponse_v3.SCHEMA


class CreateTopicsRequest_v4(RequestStruct):  # type: ignore[misc]
    """The first version in which -1 partitions or replicas are the cluster's default."""

    API_KEY = 19
    API_VERSION = 4
    RESPONSE_TYPE = CreateTopicsResponse_v4
    SCHEMA = CreateTopicsRequest_v3.SCHEMA


class CreateRequest(Request[CreateTopicsRequest_v4]):  # type: ignore[misc]
    """Create topics: (name, partitions, replication, [], [(setting, value)]) each."""

    API_KEY = 19

    def __init__(self, topics: list[Any], timeout: float) -> None:
        self._topics = topics
        self._timeout = int(timeout * 1000)

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(self._topics, self._timeout, False)


class Uuid(AbstractType):  # type: ignore[misc]
    """Sixteen bytes."""

    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class TopicsResponse_v12(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class TopicsRequest_v12(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = TopicsResponse_v12
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", Uuid), ("topic", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicsRequest(Request[MetadataRequest_v4 | MetadataRequest_v5 | TopicsRequest_v12]):  # type: ignore[misc]
    """Ask for topics by name. create: let the cluster create those that are missing."""

    API_KEY = 3

    def __init__(self, topics: list[str], *, create: bool) -> None:
        self._topics = topics
        self._create = create

    def build(self, request_struct_class: Any) -> Any:
        if request_struct_class is TopicsRequest_v12:
            topics: list[Any] = [(bytes(16), topic, {}) for topic in self._topics]
            return TopicsRequest_v12(topics, self._create, True, {})
        return request_struct_class(self._topics, self._create)
