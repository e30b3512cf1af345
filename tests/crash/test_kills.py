"""The durable broker survives SIGKILL at any point: 200 kills on one directory, all judged.

`python -m tests.crash --kills 5000` does more of the same; `--seed` replays a schedule.
"""

import os
import random

import pytest

from tests.crash.kills import kill


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_answered_is_lost_or_doubled_by_200_kills(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = int(os.environ.get("QUEUECAST_CRASH_SEED", "0")) or random.randrange(1, 1 << 30)
    with capsys.disabled():
        print(f"\ncrash test: seed {seed}")
        judge = kill(200, seed, lambda text: print(f"crash test: {text}", flush=True))
    # It did something: most lives came far enough to publish, and messages came again.
    assert judge.lives > 100
    assert judge.answered > 1000
    assert judge.seen_again > 0
