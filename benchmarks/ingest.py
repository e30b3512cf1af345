"""Ingest: how fast messages come in, from each broker and from clients.

From a broker a backlog is taken: the gateway is stopped (SIGSTOP) while it is published, so that
the publisher is no part of the figure, and one subscriber reads what then comes. From clients,
each of many waits for its answer before it publishes again; the subscriber has exactly what was
answered. A work queue's messages are acked one by one through WebSockets.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median

from . import message
from .bench import Bench
from .child import Answer, BenchmarkError, Child
from .crowd import Crowd
from .figures import Row

_QUEUE = "benchmark-work"
_PREFETCH = 100
_CONSUMERS = 10
# Messages that are there before, so that what happens once is not measured.
_WARM_UP = 500
_GOALS = {"classic": 40_000.0, "stream": 40_000.0, "kafka": 100_000.0}
_GOAL_POST = 0.5


def measure(bench: Bench) -> Iterator[Row]:
    """Measure each way in; raises BenchmarkError unless everything arrived."""
    yield from _posts(bench)
    yield from _sends(bench)
    yield from _work(bench)
    kafka, rabbit = bench.kafka(), bench.rabbit()
    if rabbit is not None:
        yield from _backlog(bench, "classic", f"{rabbit.name}, classic queue", rabbit.url)
    if kafka is not None:
        yield from _backlog(bench, "kafka", "Kafka", kafka.url)
    # Last: from here on the broker keeps what is published in a stream as well.
    if rabbit is not None:
        yield from _backlog(bench, "stream", f"{rabbit.name}, stream", rabbit.url)


# -- from brokers ---------------------------------------------------------------------------


def _backlog(bench: Bench, kind: str, name: str, url: str) -> Iterator[Row]:
    plan = bench.plan
    bench.report(f"ingest: {plan.backlog:,} messages of {name}")
    retain = ("--retain", message.DESTINATION) if kind == "stream" else ()
    publisher_name = "kafka_publisher" if kind == "kafka" else "amqp_publisher"
    rates, costs = [], []
    with Child(publisher_name, url.removeprefix("kafka://")) as publisher:
        publisher.answer()
        if kind == "kafka":
            publisher.do("create")
        with Child("gateway_server", url, *retain) as server, Crowd(1) as crowd:
            crowd.open(int(server.answer()["port"]), "ws", 1)
            for messages in (min(_WARM_UP, plan.backlog), *[plan.backlog] * min(2, plan.rounds)):
                crowd.begin()
                with _stopped(server):
                    publisher.do("fill", messages=messages, size=plan.size)
                    before = server.cpu()
                    started = time.monotonic()
                done = crowd.finish(messages, messages)
                rates.append(messages / (done.last - started))
                costs.append((server.do("usage")["cpu"] - before) / messages)
    yield Row(
        "ingest",
        f"{plan.backlog:,} × {plan.size} B into one feed",
        name,
        "messages/s",
        "",
        None,
        median(rates[1:]),
        bound=_GOALS[kind],
    )
    yield Row(
        "ingest",
        "the same, with one WebSocket delivery",
        name,
        "CPU µs/message",
        "",
        None,
        median(costs[1:]) * 1e6,
    )


@contextmanager
def _stopped(server: Child) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


# -- from clients ---------------------------------------------------------------------------


def _posts(bench: Bench) -> Iterator[Row]:
    """POST /publish with its confirm, beside a handler of aiohttp that does nothing."""
    plan = bench.plan
    rabbit = bench.rabbit()
    clients = plan.publishers
    bench.report(f"ingest: POST from {clients} clients")
    servers = {"bare": ("aiohttp_server",), "embedded": ("gateway_server", "embedded:")}
    if rabbit is not None:
        servers[rabbit.name] = ("gateway_server", rabbit.url)
    rates: dict[str, list[float]] = {name: [] for name in servers}
    with ExitStack() as stack:
        started = {name: stack.enter_context(Child(*server)) for name, server in servers.items()}
        ports = {name: int(server.answer()["port"]) for name, server in started.items()}
        # All in turns: what else the machine does befalls everyone.
        for _ in range(plan.rounds):
            for name, port in ports.items():
                counted = name != "bare"
                rates[name].append(answered(bench, port, "http_publisher", "load", counted=counted))
    bare = median(rates.pop("bare"))
    for name, found in rates.items():
        yield Row(
            "ingest", f"POST with confirm, {clients} keep-alive connections, {name}", "HTTP",
            "publishes/s", "bare aiohttp handler", bare, median(found),
            goal=_GOAL_POST if name == "embedded" else None,
        )  # fmt: skip


def answered(bench: Bench, port: int, module: str, command: str, *, counted: bool) -> float:
    """Return the answers/s; counted: a subscriber has to get what was answered."""
    plan = bench.plan
    seconds = plan.seconds * 4
    with Child(module, str(port)) as clients, Crowd(1) as crowd:
        clients.answer()
        if counted:
            crowd.open(port, "ws", 1)
            crowd.begin()
        made: Answer = clients.do(command, seconds=seconds, clients=plan.publishers, size=plan.size)
        if counted:
            crowd.finish(made["answered"], made["answered"], ordered=False)
    return float(made["answered"] / made["elapsed"])


def _sends(bench: Bench) -> Iterator[Row]:
    """SEND with a receipt, beside RabbitMQ's plugin where there is one."""
    plan = bench.plan
    rabbit = bench.rabbit()
    what = f"SEND with receipt, {plan.publishers} connections"
    bench.report(f"ingest: {what}")
    for broker in ("embedded:", *([rabbit.url] if rabbit is not None else [])):
        rates, theirs = [], []
        with Child("gateway_server", broker) as server:
            port = int(server.answer()["port"])
            for _ in range(plan.rounds):
                rates.append(answered(bench, port, "stomp_clients", "sends", counted=True))
                if rabbit is not None and broker != "embedded:":
                    theirs.append(
                        answered(bench, rabbit.web_stomp, "stomp_clients", "sends", counted=False)
                    )
        yield Row(
            "ingest",
            f"{what}, {rabbit.name if rabbit and theirs else 'embedded'}",
            "STOMP/WebSocket",
            "publishes/s",
            "Web STOMP plugin" if theirs else "",
            median(theirs) if theirs else None,
            median(rates),
        )


def _work(bench: Bench) -> Iterator[Row]:
    """A queue's messages through WebSockets, each acked, beside RabbitMQ's plugin."""
    plan = bench.plan
    messages = max(_CONSUMERS, plan.backlog // 5)
    what = f"{messages:,} messages of a queue, {_CONSUMERS} consumers, each message acked"
    bench.report(f"ingest: {what}")
    with Child("gateway_server") as server:
        port = int(server.answer()["port"])
        server.do("fill", queue=_QUEUE, messages=messages, size=plan.size)
        elapsed = _consumed(port, f"/queue/{_QUEUE}", messages)
    yield _worked(f"{what}, embedded", messages, elapsed, None)
    rabbit = bench.rabbit()
    if rabbit is None:
        return
    with Child("amqp_publisher", rabbit.url) as publisher:
        publisher.answer()
        times = []
        with Child("gateway_server", rabbit.url) as server:
            for port in (int(server.answer()["port"]), rabbit.web_stomp):
                publisher.do(
                    "fill", queue=_QUEUE, messages=messages, size=plan.size, persistent=False
                )
                times.append(_consumed(port, f"/amq/queue/{_QUEUE}", messages))
    left = rabbit.server.queue(_QUEUE)
    if left is None or left.messages:
        raise BenchmarkError(f"{_QUEUE} is not empty although all was acked: {left}")
    yield _worked(f"{what}, {rabbit.name}", messages, *times)


def _consumed(port: int, queue: str, messages: int) -> float:
    with Child("stomp_clients", str(port)) as clients:
        clients.answer()
        done = clients.do(
            "work", queue=queue, messages=messages, clients=_CONSUMERS, prefetch=_PREFETCH
        )
    return float(done["elapsed"])


def _worked(what: str, messages: int, ours: float, theirs: float | None) -> Row:
    return Row(
        "ingest",
        what,
        "STOMP/WebSocket",
        "messages/s",
        "" if theirs is None else "Web STOMP plugin",
        None if theirs is None else messages / theirs,
        messages / ours,
    )
