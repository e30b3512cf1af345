"""The other side of Kafka in the tests: confluent's client, which is not ours."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka import (
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicPartition,
)
from confluent_kafka import admin as administration

from tests.support.kafka import Kafka
from tests.support.processes import wait_until
from tests.support.servers import unique

# Seconds that one question may take.
ANSWER = 30.0

# Their types do not say what they export.
_admin: Any = administration


def _settings(kafka: Kafka, **more: Any) -> dict[str, Any]:
    # It would print every lost connection.
    return {"bootstrap.servers": kafka.bootstrap, "log_level": 0, **more}


def admin(kafka: Kafka) -> Any:
    return _admin.AdminClient(_settings(kafka))


def create(
    kafka: Kafka, partitions: int = 1, name: str = "", replication: int = 0, **settings: str | int
) -> str:
    """Create a topic and return its name; settings as `retention_ms=1000`."""
    name = name or unique("topic")
    config = {key.replace("_", "."): str(value) for key, value in settings.items()}
    topic = _admin.NewTopic(name, partitions, replication or kafka.replication, config=config)
    client = admin(kafka)  # its answers end with it
    (made,) = client.create_topics([topic], operation_timeout=ANSWER).values()
    made.result(ANSWER)
    return name


def delete(kafka: Kafka, topic: str) -> None:
    client = admin(kafka)
    (gone,) = client.delete_topics([topic], operation_timeout=ANSWER).values()
    gone.result(ANSWER)


def grow(kafka: Kafka, topic: str, partitions: int) -> None:
    client = admin(kafka)
    (grown,) = client.create_partitions([_admin.NewPartitions(topic, partitions)]).values()
    grown.result(ANSWER)


def delete_records(kafka: Kafka, topic: str, before: int, partition: int = 0) -> None:
    """Delete a partition's records below an offset, as kafka-delete-records does."""
    client = admin(kafka)
    (gone,) = client.delete_records([TopicPartition(topic, partition, before)]).values()
    gone.result(ANSWER)


def configure(kafka: Kafka, topic: str, **settings: str | int) -> None:
    """Change a topic's settings, as kafka-configs does; settings as `retention_ms=1000`."""
    entries = [
        _admin.ConfigEntry(
            key.replace("_", "."),
            str(value),
            incremental_operation=_admin.AlterConfigOpType.SET,
        )
        for key, value in settings.items()
    ]
    client = admin(kafka)
    resource = _admin.ConfigResource(_admin.ResourceType.TOPIC, topic, incremental_configs=entries)
    (done,) = client.incremental_alter_configs([resource]).values()
    done.result(ANSWER)


def set_offset(kafka: Kafka, group: str, topic: str, offset: int, partition: int = 0) -> None:
    """Set a group's offset, as kafka-consumer-groups --reset-offsets does; waits until the group
    has no members, without which Kafka refuses."""
    place = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, partition, offset)])

    def changed() -> bool:
        client = admin(kafka)
        (answer,) = client.alter_consumer_group_offsets([place]).values()
        try:
            found = answer.result(ANSWER)
        except KafkaException as error:
            if error.args[0].code() not in (
                KafkaError.NON_EMPTY_GROUP,
                KafkaError.UNKNOWN_MEMBER_ID,
            ):
                raise
            return False
        return all(each.error is None for each in found.topic_partitions)

    wait_until(changed, what=f"a group without members: {group}")


def delete_group(kafka: Kafka, group: str) -> None:
    """Delete a group, once it has no members."""

    def gone() -> bool:
        client = admin(kafka)
        (answer,) = client.delete_consumer_groups([group]).values()
        try:
            answer.result(ANSWER)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NON_EMPTY_GROUP:
                raise
            return False
        return True

    wait_until(gone, what=f"a group without members: {group}")


def allow(kafka: Kafka, user: str, kind: str, name: str, *operations: str) -> None:
    """Give a user permissions; kind: topic or group."""
    bindings = [
        _admin.AclBinding(
            _admin.ResourceType[kind.upper()],
            name,
            _admin.ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            _admin.AclOperation[operation.upper()],
            _admin.AclPermissionType.ALLOW,
        )
        for operation in operations
    ]
    client = admin(kafka)
    for made in client.create_acls(bindings).values():
        made.result(ANSWER)


def set_password(kafka: Kafka, user: str, password: str) -> None:
    """Give a user a password for SCRAM-SHA-512, another one if there was one."""
    scram = _admin.ScramCredentialInfo(_admin.ScramMechanism.SCRAM_SHA_512, 4096)
    change = _admin.UserScramCredentialUpsertion(user, scram, password.encode())
    client = admin(kafka)
    for made in client.alter_user_scram_credentials([change]).values():
        made.result(ANSWER)


def lowest(kafka: Kafka, topic: str, partition: int = 0) -> int:
    """Return the offset of the first record that is still there."""
    return _watermarks(kafka, topic, partition)[0]


def highest(kafka: Kafka, topic: str, partition: int = 0) -> int:
    """Return the offset that the next record gets."""
    return _watermarks(kafka, topic, partition)[1]


def _watermarks(kafka: Kafka, topic: str, partition: int) -> tuple[int, int]:
    consumer = Consumer(_settings(kafka, **{"group.id": unique("looks")}))
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER)
        return int(low), int(high)
    finally:
        consumer.close()


def committed(kafka: Kafka, group: str, topic: str, partitions: int = 1) -> list[int]:
    """Return what a group has committed, by partition; negative for nothing."""
    consumer = Consumer(_settings(kafka, **{"group.id": group}))
    try:
        asked = [TopicPartition(topic, number) for number in range(partitions)]
        return [each.offset for each in consumer.committed(asked, timeout=ANSWER)]
    finally:
        consumer.close()


def read_all(kafka: Kafka, topic: str, count: int) -> list[Any]:
    """Return the first `count` records of a topic."""
    consumer = Consumer(
        _settings(kafka, **{"group.id": unique("reads"), "auto.offset.reset": "earliest"})
    )
    try:
        consumer.subscribe([topic])
        records: list[Any] = []
        while len(records) < count:
            found = consumer.consume(count - len(records), timeout=ANSWER)
            if not found:
                raise TimeoutError(f"{len(records)} of {count} records of {topic}")
            records += found
        return records
    finally:
        consumer.close()


def read_through(kafka: Kafka, topic: str, partition: int = 0) -> list[Any]:
    """Return all records that a partition has now."""
    consumer = Consumer(_settings(kafka, **{"group.id": unique("reads")}))
    try:
        place = TopicPartition(topic, partition)
        low, high = consumer.get_watermark_offsets(place, timeout=ANSWER)
        consumer.assign([TopicPartition(topic, partition, low)])
        records: list[Any] = []
        while low < high:
            found = consumer.consume(100, timeout=1)
            records += found
            low = records[-1].offset() + 1 if found else high
        return records
    finally:
        consumer.close()


class Publisher:
    """confluent's idempotent producer. confirmed: bodies that Kafka has, as it answered."""

    def __init__(self, kafka: Kafka, **settings: Any) -> None:
        self._producer = Producer(
            _settings(
                kafka,
                **{
                    "enable.idempotence": True,
                    "linger.ms": 1,
                    "reconnect.backoff.max.ms": 500,
                    **settings,
                },
            )
        )
        self.confirmed: list[bytes] = []

    def _done(self, error: Any, message: Any) -> None:
        if error is None:
            self.confirmed.append(message.value() or b"")

    def send(
        self,
        topic: str,
        body: bytes | None,
        key: str | bytes | None = None,
        *,
        headers: Mapping[str, bytes | None] | None = None,
        partition: int = -1,
        timestamp: int = 0,
    ) -> None:
        """Queue a record; timestamp in ms."""
        options: dict[str, Any] = {"timestamp": timestamp} if timestamp else {}
        while True:
            try:
                self._producer.produce(
                    topic,
                    body,
                    key,
                    partition,
                    on_delivery=self._done,
                    headers=list((headers or {}).items()),
                    **options,
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                self._producer.poll(0)
                return

    def flush(self) -> None:
        """Return when Kafka has everything."""
        left = self._producer.flush(ANSWER * 2)
        if left:
            raise TimeoutError(f"{left} records without an answer")


def produce(kafka: Kafka, topic: str, bodies: Iterable[bytes], **options: Any) -> None:
    """Publish bodies and return when Kafka has them."""
    publisher = Publisher(kafka)
    for body in bodies:
        publisher.send(topic, body, **options)
    publisher.flush()


class Numbers:
    """Publishes 0, 1, 2 … from a thread until told to stop, `keys` round and round."""

    def __init__(
        self, kafka: Kafka, topic: str, *, keys: tuple[str, ...] = ("",), pause: float = 0.002
    ) -> None:
        self._publisher = Publisher(kafka)
        self._topic = topic
        self._keys = keys
        self._pause = pause
        self._stop = threading.Event()
        self.sent = 0
        self._thread = threading.Thread(target=self._run, name="numbers", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            key = self._keys[self.sent % len(self._keys)]
            self._publisher.send(self._topic, b"%d" % self.sent, key or None)
            self.sent += 1

    @property
    def confirmed(self) -> int:
        return len(self._publisher.confirmed)

    def stop(self) -> list[int]:
        """Stop, and return what Kafka has."""
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self._publisher.flush()
        return [int(body) for body in self._publisher.confirmed]
