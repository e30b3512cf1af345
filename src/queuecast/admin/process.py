"""What the system says of this process, under the names that Prometheus' own clients use."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from ..metrics import Family, counter, gauge

_STATM = Path("/proc/self/statm")
_STARTED = time.time()


def process_families() -> list[Family]:
    """Return CPU time, memory and the time of the start."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return [
        counter(
            "process_cpu_seconds_total",
            "Processor time used, in seconds.",
            usage.ru_utime + usage.ru_stime,
        ),
        gauge("process_resident_memory_bytes", "Memory in use.", _memory(usage.ru_maxrss)),
        gauge("process_start_time_seconds", "When the process started, Unix time.", _STARTED),
    ]


def _memory(most: int) -> int:
    """Return resident bytes; where the system does not tell, the most there ever were."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return most if sys.platform == "darwin" else most * 1024
