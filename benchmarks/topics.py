"""Many destinations: one subscriber each, ten each, or a hundred subscriptions on a connection.

Behind the embedded broker the null server stands beside: it writes as many messages to as many
connections, but reads no destination. Behind RabbitMQ a backlog of messages goes through the one
queue that all destinations share there.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .bench import Bench
from .child import Child
from .crowd import Crowd
from .figures import Row
from .peers import gateway
from .rig import SERVERS, Rig, Run
from .wire import WIRES

# Messages to each destination in a tick; one to very many, so that the gateway's bound on all its
# logs holds what a run has.
_BATCH = 10
_MANY = 10_000
# Messages to each destination through RabbitMQ.
_MESSAGES = 5
# Subscriptions of a connection: the gateway's own bound.
_SUBSCRIPTIONS = 100


def measure(bench: Bench) -> Iterator[Row]:
    """Measure each way to have many; raises BenchmarkError unless all arrived in order."""
    plan = bench.plan
    many = plan.allowed(plan.many)
    yield from _embedded(bench, f"{many:,} destinations × 1 subscriber", "ws", many, many)
    yield from _embedded(
        bench, f"{plan.tens:,} destinations × 10 subscribers", "ws", plan.tens * 10, plan.tens
    )
    yield from _embedded(
        bench,
        f"{plan.crowded:,} connections × {_SUBSCRIPTIONS} subscriptions, a destination each",
        "stomp",
        plan.crowded,
        plan.crowded * _SUBSCRIPTIONS,
        _SUBSCRIPTIONS,
    )
    if bench.rabbit() is not None:
        yield from _rabbit(bench, many)


def runs(
    bench: Bench, wire: str, count: int, topics: int, subscriptions: int = 1
) -> list[list[Run]]:
    """Return the rounds of null server and gateway, both with as many messages a subscription.

    What another part has measured in this run is not measured again.
    """
    plan = bench.plan
    key = (wire, count, topics, subscriptions)
    if key in bench.rounds:
        return bench.rounds[key]
    made: list[list[Run]] = []
    batch = _BATCH if topics <= _MANY else 1
    with Rig(SERVERS[0]) as null, Rig(SERVERS[1]) as ours:
        for rig in (null, ours):
            rig.open(wire, count, topics=topics, subscriptions=subscriptions)
        # The first sweep of the gateway makes what later ones find.
        ours.fan_out(0.0, 1, plan.size)
        for _ in range(plan.rounds):
            made.append([rig.fan_out(plan.seconds, batch, plan.size) for rig in (null, ours)])
    bench.rounds[key] = made
    return made


def _embedded(
    bench: Bench, what: str, wire: str, count: int, topics: int, subscriptions: int = 1
) -> Iterator[Row]:
    bench.report(f"topics: {what}")
    rounds = runs(bench, wire, count, topics, subscriptions)
    title = WIRES[wire].title
    yield Row(
        "topics",
        f"{what}, {_BATCH} × {bench.plan.size} B per tick, embedded",
        title,
        "deliveries/s",
        "null server",
        median(null.rate for null, _ in rounds),
        median(ours.rate for _, ours in rounds),
    )
    yield Row(
        "topics",
        f"{what}, publishing included",
        title,
        "CPU µs/delivery",
        "null server",
        median(null.cpu for null, _ in rounds) * 1e6,
        median(ours.cpu for _, ours in rounds) * 1e6,
        cost=True,
    )


def _rabbit(bench: Bench, count: int) -> Iterator[Row]:
    rabbit = bench.rabbit()
    assert rabbit is not None
    what = f"{count:,} destinations × 1 subscriber"
    bench.report(f"topics: {what}, {rabbit.name}")
    with (
        gateway(rabbit.url) as port,
        Crowd() as crowd,
        Child("amqp_publisher", rabbit.url) as publisher,
    ):
        publisher.answer()
        took = crowd.open(port, "ws", count, topics=count)
        crowd.begin()
        made = publisher.do("fill", messages=_MESSAGES, size=bench.plan.size, topics=count)
        done = crowd.finish(_MESSAGES, _MESSAGES)
    yield Row(
        "topics",
        f"{what}, one queue with {count:,} bindings, {rabbit.name}",
        "WebSocket",
        "deliveries/s",
        "",
        None,
        count * _MESSAGES / (done.last - made["started"]),
    )
    yield Row(
        "topics",
        "the same: from the first connection to the last one live",
        "WebSocket",
        "s",
        "",
        None,
        took,
    )
