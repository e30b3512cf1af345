"""What operators do to Kafka: topics recreated, partitions added, records deleted."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from confluent_kafka import KafkaException, TopicPartition
from confluent_kafka import admin as administration

from tests.chaos.diary import Diary
from tests.chaos.schedule import Fault
from tests.chaos.site import Act
from tests.chaos.sources import Source
from tests.support.confluent import ANSWER, admin, create, delete, grow, highest
from tests.support.kafka import Kafka

# Their types do not say what they export.
_admin: Any = administration

# A topic of more than one partition gets another of them, at most so many in a run: a position
# names each.
_MOST_PARTITIONS = 6

# Records that are left by "delete records".
_LEFT = 3


class KafkaOperator:
    """The acts. topics: of each, how many partitions it has."""

    def __init__(
        self,
        kafka: Kafka,
        diary: Diary,
        sources: dict[str, list[Source]],
        topics: dict[str, int],
    ) -> None:
        self._kafka = kafka
        self._diary = diary
        self._sources = sources
        self._partitions = dict(topics)

    def acts(self) -> dict[str, Act]:
        return {
            "recreate topic": self._recreate,
            "add partitions": self._grow,
            "lower retention": self._retention,
            "delete records": self._delete_records,
        }

    def _choose(self, chance: random.Random) -> str:
        return chance.choice(sorted(self._partitions))

    async def _recreate(self, fault: Fault, chance: random.Random) -> None:
        topic = self._choose(chance)
        with self._diary.during(fault.kind, self._sources[topic], past=True):
            await asyncio.to_thread(delete, self._kafka, topic)
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(self._create, topic)

    def _create(self, topic: str) -> None:
        """Create a topic; a deletion that was answered may still be going on."""
        deadline = time.monotonic() + ANSWER
        while True:
            try:
                create(self._kafka, self._partitions[topic], topic)
            except KafkaException as error:
                if time.monotonic() > deadline or error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                    raise
                time.sleep(0.2)
            else:
                return

    async def _grow(self, fault: Fault, chance: random.Random) -> None:
        """Add a partition: nothing is lost, but a key may move, and its records' order with it."""
        several = [name for name, count in self._partitions.items() if count > 1]
        topic = chance.choice(sorted(several))
        if self._partitions[topic] >= _MOST_PARTITIONS:
            return
        with self._diary.during(fault.kind, self._sources[topic], shuffles=True):
            self._partitions[topic] += 1
            await asyncio.to_thread(grow, self._kafka, topic, self._partitions[topic])

    async def _retention(self, fault: Fault, chance: random.Random) -> None:
        """Have a topic keep nothing that is older than a second, for a while."""
        topic = self._choose(chance)
        with self._diary.during(fault.kind, self._sources[topic], past=True):
            await asyncio.to_thread(self._set_retention, topic, "1000")
            await asyncio.sleep(fault.length)
            await asyncio.to_thread(self._set_retention, topic, "-1")

    def _set_retention(self, topic: str, milliseconds: str) -> None:
        entry = _admin.ConfigEntry(
            "retention.ms",
            milliseconds,
            incremental_operation=_admin.AlterConfigOpType.SET,
        )
        resource = _admin.ConfigResource(
            _admin.ResourceType.TOPIC, topic, incremental_configs=[entry]
        )
        client = admin(self._kafka)
        (done,) = client.incremental_alter_configs([resource]).values()
        done.result(ANSWER)

    async def _delete_records(self, fault: Fault, chance: random.Random) -> None:
        """Delete all but the last records of each partition."""
        topic = self._choose(chance)
        with self._diary.during(fault.kind, self._sources[topic], past=True):
            await asyncio.to_thread(self._delete_most, topic)

    def _delete_most(self, topic: str) -> None:
        client = admin(self._kafka)
        places = [
            TopicPartition(topic, number, max(0, highest(self._kafka, topic, number) - _LEFT))
            for number in range(self._partitions[topic])
        ]
        for done in client.delete_records(places).values():
            done.result(ANSWER)
