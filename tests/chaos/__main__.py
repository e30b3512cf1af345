"""`make chaos`, or `python -m tests.chaos`: faults for as long as you like, then the verdict."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from pathlib import Path

import pytest

from tests.chaos.clock import now, stamp
from tests.chaos.nodes import embedded_keeps
from tests.chaos.run import chaos
from tests.chaos.schedule import GROUPS
from tests.chaos.sites import open_site
from tests.support.rabbit_installation import VERSIONS

BROKERS = [
    "embedded",
    *(f"rabbitmq-{version}" for version in VERSIONS),
    *(f"rabbitmq-cluster-{version}" for version in VERSIONS),
    "kafka",
    "kafka-cluster",
]

# Names for several of them.
_SEVERAL = {"rabbitmq-cluster": [f"rabbitmq-cluster-{version}" for version in VERSIONS]}


def say(text: str) -> None:
    if text:
        print(f"{stamp()} {text}", flush=True)


def run(broker: str, asked: argparse.Namespace) -> bool:
    say(f"--- {broker}")
    began = now()
    try:
        with open_site(broker, asked.duration) as site:
            verdict = asyncio.run(
                chaos(
                    site,
                    seed=asked.seed,
                    duration=asked.duration,
                    clients=asked.clients,
                    interval=asked.interval,
                    faults=asked.faults,
                    logs=asked.logs,
                    say=say,
                )
            )
    except pytest.skip.Exception as missing:
        say(f"not run: {missing}")
        return not asked.broker  # A broker that was named is wanted.
    say(f"{broker}, seed {asked.seed}, {now() - began:.0f} s in all")
    for name, count in sorted(verdict.counts.items()):
        say(f"{count:10} {name}")
    for failure in verdict.failures[:50]:
        say(f"FAILED {failure}")
    say("ok" if not verdict.failures else f"{len(verdict.failures)} failures")
    return not verdict.failures


def groups(text: str) -> list[str]:
    """Return the groups of faults that a command line names."""
    named = text.split(",")
    for name in named:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(GROUPS)}")
    return named


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument(
        "--broker", choices=[*BROKERS, *_SEVERAL], action="append", help="default: each in turn"
    )
    parser.add_argument(
        "--faults",
        type=groups,
        default=list(GROUPS),
        help=f"which, with commas: {','.join(GROUPS)}; default: all",
    )
    parser.add_argument("--duration", type=float, default=120.0, help="seconds of faults")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--interval", type=float, default=0.2, help="between two publishes, s")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--logs", type=Path, help="a folder for the gateways' logs")
    asked = parser.parse_args()
    named = asked.broker or BROKERS
    brokers = [each for name in named for each in _SEVERAL.get(name, [name])]
    if "embedded" in brokers and not embedded_keeps():
        print("this gateway's embedded broker keeps nothing: no --data", file=sys.stderr)
        return 2
    done = [run(broker, asked) for broker in brokers]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
