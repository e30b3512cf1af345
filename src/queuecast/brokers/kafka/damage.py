"""Records that are damaged where they lie: their checksum is wrong, and will be for ever.

Kafka keeps such a batch and sends it to whoever asks for its offsets. A reader that only tries
again stands there for good, so it is told where the next batch begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiokafka import errors as kafka
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.memory_records import MemoryRecords

# A gap's reason.
DAMAGED = "damaged"

_READ_COMMITTED = 1
_WAIT_MS = 500
# Of what stands behind an offset. A batch that is larger comes alone, and whole.
_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """A batch that cannot be read. first: the offset where it begins; following: the one after."""

    first: int
    following: int


class Damaged(Exception):
    """What stands at the offset cannot be read; following: where it goes on."""

    def __init__(self, partition: int, following: int) -> None:
        super().__init__(f"the records up to {following} of partition {partition} are damaged")
        self.partition = partition
        self.following = following


def damaged_of(error: kafka.CorruptRecordException, partitions: Iterable[Any]) -> Any:
    """Return the partition that aiokafka speaks of; raises the error where it names none."""
    for tp in partitions:
        if str(tp) in str(error):
            return tp
    raise error


async def find_damage(consumer: Any, tp: Any, offset: int) -> Damage | None:
    """Look for the first damaged batch behind an offset.

    Returns None where there is none. Raises KafkaError, OSError, TimeoutError.
    """
    client = consumer._client
    node = client.cluster.leader_for_partition(tp)
    if node is None or node < 0:
        raise kafka.LeaderNotAvailableError
    asked = [(tp.topic, [(tp.partition, offset, _BYTES)])]
    answer = await client.send(node, FetchRequest(_WAIT_MS, 1, _BYTES, _READ_COMMITTED, asked))
    for _, partitions in answer.topics:
        for _, code, _, *rest in partitions:
            if code:
                raise kafka.for_code(code)()
            return _first_damage(rest[-1], offset)
    return None


def _first_damage(data: bytes, offset: int) -> Damage | None:
    records = MemoryRecords(data)
    place = offset
    while records.has_next():
        batch = records.next_batch()
        following = int(batch.next_offset)
        if not batch.validate_crc():
            # Not even its length is to be trusted: then it is passed over offset by offset.
            return Damage(place, following if 0 < following - place < 1 << 24 else place + 1)
        place = max(place, following)
    return None
