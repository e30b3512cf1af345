"""The clock that ages are measured by: Unix time that nobody sets.

The system's clock may jump, by hours or by decades, and back again. What is kept by age must not
be destroyed by that. So times are taken from the system's clock once, and go on from there by the
time since the boot, which is a clock that only runs. The store keeps the pair: a process that is
started later in the same boot goes on exactly. After another boot, or on another machine, only the
system's clock could say how long nothing ran, and it may be what is wrong; so that time does not
count, and messages live longer by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Anchor(NamedTuple):
    """What the clock showed in a boot. boot: its id, "" where the system has none.

    since_boot, shown: seconds, at one and the same moment.
    """

    boot: str
    since_boot: float
    shown: float


def boot_id() -> str:
    """Return the name of this boot of the system, "" where there is none."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""  # not Linux: each process counts as a boot of its own


def since_boot() -> float:
    """Return the seconds since the boot, with those in which the system slept where it has them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class AgeClock:
    """Seconds that only grow, near Unix time. May be read from any thread.

    wall: the system's clock, Unix seconds. steady: seconds since the boot. boot: its id.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = since_boot,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._boot = boot
        self._ahead = wall() - steady()

    def now(self) -> float:
        """Return the time, in seconds."""
        return self._steady() + self._ahead

    def of_wall(self, at: float) -> float:
        """Return what this clock showed at a Unix time, or an earlier time.

        Earlier by what this clock did not count since then.
        """
        return at - (self._wall() - self.now())

    def anchor(self) -> Anchor:
        """Return what a later process can go on from."""
        steady = self._steady()
        return Anchor(self._boot(), steady, steady + self._ahead)

    def resume(self, anchor: Anchor | None, newest: float) -> None:
        """Go on from an earlier process; before anything was read from this clock.

        newest: the last time that was stored, 0 for none; the clock never shows an earlier one.
        """
        steady = self._steady()
        shown = newest
        if anchor is not None:
            same = anchor.boot and anchor.boot == self._boot() and steady >= anchor.since_boot
            passed = steady - anchor.since_boot if same else 0.0
            shown = max(newest, anchor.shown + passed)
        if shown:
            self._ahead = shown - steady
