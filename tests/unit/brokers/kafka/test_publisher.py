"""Throwing a producer away: whoever published learns of it, and the log stays clean."""

import asyncio
import gc

import pytest
from aiokafka import TopicPartition
from aiokafka import errors as kafka
from aiokafka.cluster import ClusterMetadata
from aiokafka.producer.message_accumulator import MessageAccumulator

from queuecast.brokers.kafka.publisher import fail_all


async def test_what_waits_for_another_attempt_fails_without_noise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # What other tests of this process left behind is no noise of this one.
    gc.collect()
    caplog.clear()
    accumulator = MessageAccumulator(ClusterMetadata(), 1000, 0, 60)
    futures = []
    for partition in range(4):
        place = TopicPartition("t", partition)
        futures.append(await accumulator.add_message(place, None, b"x", 1))
    # The first has not been sent, the second is under way, …
    accumulator._pop_batch(TopicPartition("t", 1))
    # … the third waits to be sent again, and the fourth is under way for the second time.
    for partition in (2, 3):
        accumulator.reenqueue(accumulator._pop_batch(TopicPartition("t", partition)))
    accumulator._pop_batch(TopicPartition("t", 3))
    fail_all(accumulator)
    for future in futures:
        with pytest.raises(kafka.ProducerClosed):
            await future
    del accumulator, futures, future
    await asyncio.sleep(0)
    gc.collect()
    assert not caplog.records
