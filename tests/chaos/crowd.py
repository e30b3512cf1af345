"""The clients of a run: kinds, transports and destinations mixed, the same for the same seed."""

from __future__ import annotations

from tests.chaos import transports
from tests.chaos.clients import Client, Transport, Worker
from tests.chaos.nodes import House
from tests.chaos.sources import KEPT, LIVE, WORK

_SINGLE: dict[str, list[Transport]] = {
    "sse": [transports.sse],
    "websocket": [transports.websocket],
    "poll": [transports.poll],
    "stomp": [transports.stomp],
    "sockjs": [transports.sockjs],
    "hopper": [
        transports.sse,
        transports.websocket,
        transports.poll,
        transports.stomp,
        transports.sockjs,
    ],
}


def make_clients(count: int, seed: int, made: House) -> list[Client]:
    """Return feed clients: kinds, transports and destinations in turn, large messages rarer."""
    clients: list[Client] = []
    names = [*_SINGLE, "several"]
    for number in range(count):
        kind = (KEPT, KEPT, LIVE)[number % 3]
        name = names[number // 3 % len(names)]
        choices, pair = made.site.destinations(kind)
        if name == "several":
            # One composite position, on the transports that have them.
            destinations, ways = pair, [transports.sse]
        else:
            destinations, ways = [choices[number // 3 // 2 % len(choices)]], _SINGLE[name]
        label = f"{number}-{name}-{'+'.join(destinations)}"
        clients.append(
            Client(
                label,
                made.url,
                made.web.gateway_of,
                f"{seed}-{number}",
                kind,
                destinations,
                ways,
            )
        )
    return clients


def make_workers(count: int, seed: int, made: House) -> list[Worker]:
    """Return consumers of the work queues, on the transports that have acks."""
    queues = [source.queue for source in made.site.sources if source.kind == WORK]
    ways = [transports.websocket_work, transports.stomp_work]
    return [
        Worker(
            f"worker-{number}-{ways[number // 2 % 2].__name__}",
            made.url,
            made.web.gateway_of,
            f"{seed}-w{number}",
            queues[number % 2],
            ways[number // 2 % 2],
        )
        for number in range(count)
    ]
