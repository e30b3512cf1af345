"""Killing a broker process over and over: a schedule made from one seed, the victim, the judge."""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.crash import victim
from tests.crash.judge import Judge

# Numbers that one life may use; a life lasts a fraction of a second.
_LIFE = 1_000_000
# The longest that a life may last which is to end by itself: its way did not come about.
_PATIENCE = 5.0


def _wait_for(notes: Path, process: BaseProcess) -> None:
    """Wait until the process has noted what it found."""
    end = time.monotonic() + _PATIENCE
    while not notes.stat().st_size and process.is_alive() and time.monotonic() < end:
        time.sleep(0.001)


def kill(count: int, seed: int, report: Callable[[str], None]) -> Judge:
    """Kill so many processes on one directory and judge after each; raises AssertionError.

    The message of the error has what replays it.
    """
    # Each life is a fork of a process that has everything imported, and no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.crash.victim"])
    rng = random.Random(seed)
    judge = Judge()
    ways: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="queuecast-crash-") as base:
        data = Path(base) / "data"
        for life in range(count):
            notes = Path(base) / f"notes-{life}"
            notes.touch()
            way = rng.choice(victim.WAYS)
            arguments = (str(data), str(notes), rng.randrange(1 << 30), way, life * _LIFE)
            process = context.Process(target=victim.run, args=arguments, daemon=True)
            delay = rng.uniform(0, 0.15 if way == "starting" else 0.05)
            process.start()
            if way == "running":
                _wait_for(notes, process)
            # The other ways come about by themselves.
            process.join(delay if way in ("starting", "running") else _PATIENCE)
            process.kill()
            process.join()
            process.close()
            try:
                is_started = judge.judge(notes)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, life {life} ({way}): {error}") from error
            ways[way if is_started else "unstarted"] += 1
            notes.unlink()
            if life % 50 == 49:
                report(f"{life + 1} of {count} kills, {judge.answered} answered publishes")
    report(
        f"{count} kills ({', '.join(f'{number} {way}' for way, number in sorted(ways.items()))}): "
        f"{judge.answered} answered publishes, {judge.seen_again} deliveries again"
    )
    return judge
