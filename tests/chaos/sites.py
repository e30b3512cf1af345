"""The sites by name: each with a broker of its own that is started for it and ends with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.chaos.kafka import KafkaClusterSite, KafkaSite
from tests.chaos.rabbitmq import RabbitClusterSite, RabbitSite
from tests.chaos.site import Site
from tests.support.kafka import KafkaServer
from tests.support.kafka_cluster import KafkaCluster
from tests.support.processes import free_port
from tests.support.rabbit_cluster import RabbitCluster
from tests.support.servers import RabbitServer

# Of a run's duration, how long a cluster's node is held down; and the least and most seconds.
_HELD = (0.25, 8.0, 180.0)

# A producer that goes on would create a topic that an operator has deleted, with one partition.
_NO_MORE = "auto.create.topics.enable=false"


@contextlib.contextmanager
def open_site(name: str, duration: float) -> Iterator[Site]:
    """Start a broker of __main__.BROKERS for a run of this many seconds; skips where there is
    none."""
    share, least, most = _HELD
    held = min(most, max(least, share * duration))
    with contextlib.ExitStack() as stack:
        if name == "embedded":
            yield Site()
        elif name == "kafka":
            kafka = KafkaServer(_NO_MORE, advertised=free_port())
            stack.callback(kafka.close)
            kafka.start()
            yield KafkaSite(kafka)
        elif name == "kafka-cluster":
            brokers = KafkaCluster(_NO_MORE)
            stack.callback(brokers.close)
            brokers.start()
            yield KafkaClusterSite(brokers, held)
        elif name.startswith("rabbitmq-cluster-"):
            cluster = RabbitCluster(name.removeprefix("rabbitmq-cluster-"))
            stack.callback(cluster.close)
            cluster.start()
            yield RabbitClusterSite(cluster, held)
        else:
            server = RabbitServer(name.removeprefix("rabbitmq-"))
            stack.callback(server.close)
            server.start()
            yield RabbitSite(server)
