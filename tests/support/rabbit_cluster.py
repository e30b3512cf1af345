"""A RabbitMQ cluster of three nodes that the tests start, kill, freeze and start again.

How to use it:

    def test_it(rabbit_cluster: RabbitCluster) -> None:      # once for each version; whole again
        cluster = rabbit_cluster                             # when the test begins
        connect(cluster.urls[0])                             # or cluster.nodes[0].url
        cluster.kill(1)                                      # SIGKILL; its data and port stay
        cluster.start_node(1)                                # back when it is in the cluster again
        cluster.freeze(2)                                    # SIGSTOP: sockets open, no answers
        cluster.thaw(2)
        cluster.ctl(0, "list_queues", "name", "leader")      # rabbitmqctl at node 0
        cluster.nodes[0].list_queues()                       # all that a RabbitServer can

    async with FailoverProxy(cluster.ports, preferred=1) as proxy:   # tests.support.proxy
        connect(through(proxy, cluster.urls[0]))             # node 1, or the first that accepts

Without pytest: `RabbitCluster("4.0")`, then start() and close(). The calls block: from a coroutine
use `await asyncio.to_thread(cluster.kill, 0)`.

Nodes handle partitions with pause_minority: of three nodes the last one alone closes its port. A
frozen node counts as dead after TICK seconds. The two nodes of a majority must be started together
(`start_node(1, 2)`) when two are down, because each waits for the other.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex

import psutil

from tests.support.erlang import find_erl_call
from tests.support.processes import Process, free_port, listens, wait_until
from tests.support.servers import RabbitServer

SIZE = 3

# Seconds of silence after which nodes give up a node; RabbitMQ's default is 60. Erlang asks four
# times in that span, so it takes between 3/4 and 5/4 of it.
TICK = 8

_TRANSIENT = "transient_nonexcl_queues"

# What a node says of the nodes that run RabbitMQ, itself included; 3.10 has an older function.
_RUNNING = """length(case erlang:function_exported(rabbit_nodes, list_running, 0) of
    true -> rabbit_nodes:list_running();
    false -> rabbit_nodes:all_running()
end)"""


class RabbitNode(RabbitServer):
    """One node; the port mapper and the cookie are the cluster's."""

    def __init__(self, version: str, cookie: str, epmd_port: int) -> None:
        super().__init__(version)
        self._epmd_port = epmd_port
        shared = self.directory / "home" / ".erlang.cookie"
        shared.write_text(cookie)
        shared.chmod(0o400)

    def join(self, names: list[str]) -> None:
        """Have it form a cluster with the nodes of these names, when it starts with no data."""
        settings = [
            "cluster_partition_handling = pause_minority",
            f"net_ticktime = {TICK}",
            "cluster_formation.peer_discovery_backend = classic_config",
            "cluster_formation.discovery_retry_limit = 120",
            "cluster_formation.discovery_retry_interval = 500",
            *(
                f"cluster_formation.classic_config.nodes.{number} = {name}"
                for number, name in enumerate(names, 1)
            ),
        ]
        with (self.directory / "rabbitmq.conf").open("a") as file:
            file.write("".join(f"{line}\n" for line in settings))

    def start(self) -> None:
        super().start()
        # A node that returns to its cluster looks for transient queues while it still loads the
        # list of queues, and mostly gives up (see _checked_too_early). It denies them once.
        configuration = self.directory / "rabbitmq.conf"
        lines = configuration.read_text().splitlines(keepends=True)
        configuration.write_text("".join(each for each in lines if _TRANSIENT not in each))

    def start_epmd(self) -> Process:
        """Start the cluster's port mapper."""
        command = [*self._installation.epmd(self.directory), "-port", str(self._epmd_port)]
        command += ["-address", "127.0.0.1"]
        epmd = Process(command, log=self.directory / "epmd.log", env=self._environment())
        epmd.wait_until(lambda: listens(self._epmd_port), what="epmd")
        return epmd

    def use_epmd(self, epmd: Process | None) -> None:
        """Start none of its own."""
        self._epmd = epmd

    def running_nodes(self) -> int:
        """Return how many nodes of the cluster run, as this one sees it."""
        erl_call = find_erl_call()
        if erl_call is None:
            return int(self.ctl("eval", f"{_RUNNING}."))
        return int(self._evaluate(erl_call, f"rabbit_json:encode({_RUNNING})"))

    def signal(self, number: signal.Signals) -> None:
        """Signal the node and all of its programs."""
        assert self._process is not None
        node = psutil.Process(self._process.pid)
        for each in [node, *node.children(recursive=True)]:
            each.send_signal(number)

    def close(self) -> None:
        self.use_epmd(None)  # The cluster ends it.
        super().close()


class RabbitCluster:
    """Three nodes on private ports; `version` is one of rabbit_installation.VERSIONS."""

    def __init__(self, version: str) -> None:
        self.version = version
        cookie, epmd_port = token_hex(16).upper(), free_port()
        self.nodes = [RabbitNode(version, cookie, epmd_port) for _ in range(SIZE)]
        self._epmd: Process | None = None
        self._frozen: set[int] = set()
        # Thawed nodes, which may be cut off from the others still, until they are killed.
        self._thawed: set[int] = set()
        # RabbitMQ 3.10 takes a minute for three new nodes that look for each other.
        self._first_alone = version == "3.10"
        names = [node.name for node in self.nodes]
        for node in self.nodes:
            node.join(names[:1] if self._first_alone else names)

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def ports(self) -> list[int]:
        return [node.port for node in self.nodes]

    @property
    def alive(self) -> list[int]:
        """The nodes that run and are not frozen."""
        return [i for i, node in enumerate(self.nodes) if node.running and i not in self._frozen]

    def ctl(self, i: int, *args: str) -> str:
        """Run rabbitmqctl at a node; raises RuntimeError with its output when it fails."""
        return self.nodes[i].ctl(*args)

    def start(self) -> None:
        """Return when all nodes run and are one cluster; those that were frozen are killed for it,
        because RabbitMQ may take minutes to mend a partition."""
        if self._epmd is None:
            self._epmd = self.nodes[0].start_epmd()
            for node in self.nodes:
                node.use_epmd(self._epmd)
            if self._first_alone:
                self.nodes[0].start()
        for i in self._frozen | self._thawed:
            self.kill(i)
        self.start_node(*range(SIZE))

    def start_node(self, *which: int) -> None:
        """Start nodes side by side; return when all nodes that live see each other."""
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(lambda i: self.nodes[i].start(), which))
        self.until_whole()

    def until_whole(self, *, timeout: float = 120.0) -> None:
        """Return when every node that lives counts as many running nodes as there are, that is,
        also when those that were killed or frozen are given up; TimeoutError after `timeout` s
        of one."""
        for i in self.alive:
            wait_until(self._sees(i), what=f"node {i} sees the others", timeout=timeout)

    def _sees(self, i: int) -> Callable[[], bool]:
        def sees() -> bool:
            try:
                return self.nodes[i].running_nodes() == len(self.alive)
            except RuntimeError:  # A node that pauses does not answer this.
                return False

        return sees

    def stop(self, i: int) -> None:
        """Stop a node as an operator would."""
        self.nodes[i].stop()

    def kill(self, i: int) -> None:
        """Kill a node at once, also a frozen one."""
        self.nodes[i].kill()
        self._frozen.discard(i)
        self._thawed.discard(i)

    def freeze(self, i: int) -> None:
        """Have a node stand still: its sockets stay open, and it answers nothing."""
        self._frozen.add(i)
        self.nodes[i].signal(signal.SIGSTOP)

    def thaw(self, i: int) -> None:
        """Let a frozen node go on; it may find that the others gave it up."""
        self.nodes[i].signal(signal.SIGCONT)
        self._frozen.discard(i)
        self._thawed.add(i)

    def close(self) -> None:
        """Kill all nodes and the port mapper, and remove their directories."""
        for node in self.nodes:
            node.close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None
