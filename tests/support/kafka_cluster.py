"""A Kafka cluster of the tests' own: three KRaft nodes, each broker and controller.

Topics get three replicas and need two in sync, as in production, so that one node may be lost.
Ask for the fixture `kafka_cluster`, or make one:

    cluster = KafkaCluster()          # about 0.4 GB and 8 s of both cores
    cluster.start()                   # all nodes; returns when they serve and know one another
    topic = create(cluster, 6)        # tests.support.confluent works with it as with one node
    cluster.url                       # kafka://127.0.0.1:P1,127.0.0.1:P2,127.0.0.1:P3
    cluster.nodes                     # (1, 2, 3), Kafka's own node ids
    cluster.leader(topic, 0)          # the node to strike
    cluster.coordinator("queuecast.T")
    cluster.kill(n)                   # SIGKILL
    cluster.freeze(n); cluster.thaw(n)  # SIGSTOP, SIGCONT: its sockets stay open, unanswered
    cluster.stop(n)                   # orderly, SIGTERM
    cluster.start(n)                  # returns when it serves; nothing if it runs
    cluster.heal()                    # thaw and start all, and wait for every replica in sync
    cluster.close()

Kafka gives a silent node up after its session's timeout (9 s, Kafka's default) and elects other
leaders then; a stopped or killed one at once or as late. All calls block: from a coroutine use
asyncio.to_thread.
"""

import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from confluent_kafka import KafkaException

from tests.support.confluent import ANSWER, admin
from tests.support.kafka import LOG4J, START, Kafka, installation, java, listens, run_tool
from tests.support.processes import Directory, Process, free_port, wait_until

# Of each node; a few thousand records need no more.
_HEAP = "256m"

_SETTINGS = """process.roles=broker,controller
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
default.replication.factor=3
min.insync.replicas=2
offsets.topic.replication.factor=3
offsets.topic.num.partitions=6
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
transaction.state.log.num.partitions=3
share.coordinator.state.topic.replication.factor=3
share.coordinator.state.topic.min.isr=2
group.initial.rebalance.delay.ms=0
log.retention.check.interval.ms=1000
log.retention.ms=-1
log.initial.task.delay.ms=1000
file.delete.delay.ms=1000
log.cleaner.dedupe.buffer.size=4194304
num.network.threads=2
num.io.threads=4
"""


class _Node:
    """One node: its ports, its directory, its process."""

    def __init__(self, number: int, advertised: int) -> None:
        self.number = number
        self.port, self.controller = free_port(), free_port()
        self.advertised = advertised or self.port
        self.directory = Directory(f"kafka-{number}")
        self.process: Process | None = None
        self.frozen = False
        (self.directory.path / "log4j2.properties").write_text(LOG4J)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.running

    def java(self, heap: str, main: str, *args: str) -> list[Any]:
        return java(heap, self.directory.path / "log4j2.properties", main, *args)

    @property
    def properties(self) -> str:
        return str(self.directory.path / "server.properties")

    def format(self, voters: str, more: Sequence[str]) -> None:
        """Write the settings and make the log directory."""
        here = "127.0.0.1"
        lines = [
            f"node.id={self.number}",
            f"controller.quorum.voters={voters}",
            f"listeners=PLAINTEXT://{here}:{self.port},CONTROLLER://{here}:{self.controller}",
            f"advertised.listeners=PLAINTEXT://{here}:{self.advertised}",
            f"log.dirs={self.directory.path / 'data'}",
            *more,
        ]
        with open(self.properties, "w") as file:
            file.write(_SETTINGS + "\n".join(lines) + "\n")
        options = ("--cluster-id", "queuecast-cluster-000g", "--config", self.properties)
        command = self.java("96m", "kafka.tools.StorageTool", "format", *options)
        run_tool(command, timeout=90)

    def start(self) -> None:
        """Start it and return when it serves; nothing if it runs."""
        if self.running:
            return
        log = self.directory.path / "server.log"
        before = log.stat().st_size if log.exists() else 0
        process = Process(self.java(_HEAP, "kafka.Kafka", self.properties), log=log)
        self.process = process

        def serves() -> bool:
            return b"Kafka Server started" in log.read_bytes()[before:] and listens(self.port)

        process.wait_until(serves, what=f"node {self.number}", timeout=START)


class KafkaCluster(Kafka):
    """Three nodes; see the module on how to use it."""

    replication = 3

    def __init__(self, *settings: str, advertised: Sequence[int] = (0, 0, 0)) -> None:
        """settings: more lines for server.properties. advertised: by node, the port where it tells
        clients and the other nodes to find it, a proxy's; its own by default."""
        installation()  # else the test is skipped, before anything is made
        self._nodes = {
            number: _Node(number, port) for number, port in enumerate(advertised, start=1)
        }
        voters = ",".join(
            f"{node.number}@127.0.0.1:{node.controller}" for node in self._nodes.values()
        )
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.format(voters, settings), self._nodes.values()))
        super().__init__(",".join(self.address(number) for number in self._nodes))

    @property
    def nodes(self) -> tuple[int, ...]:
        """Kafka's ids of the nodes."""
        return tuple(self._nodes)

    def address(self, node: int) -> str:
        """Return a node's "host:port", as it tells it to clients."""
        return f"127.0.0.1:{self._nodes[node].advertised}"

    def port(self, node: int) -> int:
        """Return the port on which a node listens."""
        return self._nodes[node].port

    def pid(self, node: int) -> int:
        """Return a running node's process id."""
        process = self._nodes[node].process
        assert process is not None, f"node {node} does not run"
        return process.pid

    # -- nodes ----------------------------------------------------------------------------

    def start(self, node: int | None = None) -> None:
        """Start a node, or all; return when it serves, or all know one another."""
        if node is not None:
            self._nodes[node].start()
            return
        with ThreadPoolExecutor() as pool:
            list(pool.map(_Node.start, self._nodes.values()))
        wait_until(self._complete, what="all nodes in the cluster", timeout=START)

    def kill(self, node: int) -> None:
        """End a node with SIGKILL, frozen or not."""
        struck = self._nodes[node]
        if struck.process is not None:
            struck.process.kill()
            struck.process, struck.frozen = None, False
            wait_until(lambda: not listens(struck.port), what=f"the port of killed node {node}")

    def stop(self, node: int) -> None:
        """Stop a node as an operator would: its leaders move first."""
        struck = self._nodes[node]
        if struck.process is not None:
            struck.process.terminate(timeout=START)
            struck.process = None

    def freeze(self, node: int) -> None:
        """Stop a node's process where it is (SIGSTOP)."""
        process = self._nodes[node].process
        assert process is not None, f"node {node} does not run"
        process.signal(signal.SIGSTOP)
        self._nodes[node].frozen = True

    def thaw(self, node: int) -> None:
        """Let a frozen node go on (SIGCONT); nothing if it is not frozen."""
        struck = self._nodes[node]
        if struck.frozen and struck.process is not None:
            struck.process.signal(signal.SIGCONT)
        struck.frozen = False

    def heal(self) -> None:
        """Thaw and start all nodes, and return when every partition has its replicas in sync."""
        for number in self._nodes:
            self.thaw(number)
        self.start()
        wait_until(self._in_sync, what="every replica in sync", timeout=START)

    def log(self, node: int) -> str:
        """Return what a node printed."""
        return (self._nodes[node].directory.path / "server.log").read_text(errors="replace")

    def close(self) -> None:
        """Kill all nodes and remove their directories."""
        for number, node in self._nodes.items():
            self.kill(number)
            node.directory.remove()

    # -- what the cluster says ------------------------------------------------------------

    def leader(self, topic: str, partition: int = 0) -> int:
        """Return the node that leads a partition; waits until there is one."""
        found: list[int] = []

        def led() -> bool:
            about = admin(self).list_topics(topic, timeout=ANSWER).topics[topic]
            here = about.partitions.get(partition)
            found[:] = [here.leader] if here is not None and here.leader > 0 else []
            return bool(found)

        wait_until(led, what=f"a leader of {topic}-{partition}", timeout=START)
        return found[0]

    def coordinator(self, group: str) -> int:
        """Return the node that coordinates a group."""
        client = admin(self)
        (answer,) = client.describe_consumer_groups([group], request_timeout=ANSWER).values()
        return int(answer.result(ANSWER).coordinator.id)

    def tool(self, main: str, *args: str, stdin: str | None = None, timeout: float = 90) -> str:
        """Run one of Kafka's own programs by its class and return what it prints.

        Raises RuntimeError with its output when it fails.
        """
        command = self._nodes[1].java("128m", main, *args)
        return run_tool(command, stdin=stdin, timeout=timeout)

    def _complete(self) -> bool:
        try:
            return len(admin(self).list_topics(timeout=5).brokers) == len(self._nodes)
        except KafkaException:
            return False

    def _in_sync(self) -> bool:
        try:
            about = admin(self).list_topics(timeout=5)
        except KafkaException:
            return False
        return len(about.brokers) == len(self._nodes) and all(
            len(part.isrs) == len(part.replicas)
            for topic in about.topics.values()
            for part in topic.partitions.values()
        )
