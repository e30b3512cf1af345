"""`make chaos`, or `python -m tests.chaos`: faults for as long as you like, then the verdict."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

import pytest

from tests.chaos.clock import now, stamp
from tests.chaos.nodes import Server, embedded_keeps
from tests.chaos.run import chaos
from tests.support.kafka import KafkaServer
from tests.support.processes import free_port
from tests.support.rabbit_installation import VERSIONS
from tests.support.servers import RabbitServer

BROKERS = ["embedded", *(f"rabbitmq-{version}" for version in VERSIONS), "kafka"]


def say(text: str) -> None:
    if text:
        print(f"{stamp()} {text}", flush=True)


def run(broker: str, asked: argparse.Namespace) -> bool:
    server: Server | None = None
    say(f"--- {broker}")
    if broker == "kafka":
        try:
            server = KafkaServer(advertised=free_port())
        except pytest.skip.Exception as missing:
            say(f"not run: {missing}")
            return asked.broker is None  # who named it wanted it
    elif broker != "embedded":
        server = RabbitServer(broker.removeprefix("rabbitmq-"))
    if server is not None:
        server.start()
    began = now()
    try:
        verdict = asyncio.run(
            chaos(
                server,
                seed=asked.seed,
                duration=asked.duration,
                clients=asked.clients,
                interval=asked.interval,
                logs=asked.logs,
                say=say,
            )
        )
    finally:
        if server is not None:
            server.close()
    say(f"{broker}, seed {asked.seed}, {now() - began:.0f} s in all")
    for name, count in sorted(verdict.counts.items()):
        say(f"{count:10} {name}")
    for failure in verdict.failures[:50]:
        say(f"FAILED {failure}")
    say("ok" if not verdict.failures else f"{len(verdict.failures)} failures")
    return not verdict.failures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--broker", choices=BROKERS, action="append", help="default: each in turn")
    parser.add_argument("--duration", type=float, default=120.0, help="seconds of faults")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--interval", type=float, default=0.2, help="between two publishes, s")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--logs", type=Path, help="a folder for the gateways' logs")
    asked = parser.parse_args()
    brokers = asked.broker or BROKERS
    if "embedded" in brokers and not embedded_keeps():
        print("this gateway's embedded broker keeps nothing: no --data", file=sys.stderr)
        return 2
    done = [run(broker, asked) for broker in brokers]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
