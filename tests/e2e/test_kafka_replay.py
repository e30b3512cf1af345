"""A topic replayed from its first record to many clients at once, in bounded memory.

100,000 records here; `python -m benchmarks.kafka_replay` does it with a million.
"""

import asyncio
import os

import pytest

from benchmarks.kafka_replay import measure
from tests.support.kafka import Kafka

RECORDS = int(os.environ.get("QUEUECAST_TEST_RECORDS", "100000"))


@pytest.mark.kafka
@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_twenty_clients_replay_a_topic(kafka: Kafka) -> None:
    figures = await asyncio.to_thread(measure, kafka.bootstrap, RECORDS, 20)
    print(figures)
    # Pages in the hub, runs in the reader, what is fetched at a time: none grows with the topic.
    assert figures.most - figures.before < 250
