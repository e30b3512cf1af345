"""`python -m tests.crash [--kills N] [--seed S]`: the crash test, as long as you like."""

from __future__ import annotations

import argparse
import random
import sys

from tests.crash.kills import kill


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    try:
        kill(arguments.kills, arguments.seed, lambda text: print(text, flush=True))
    except AssertionError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
