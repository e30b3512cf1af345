"""One line that says on what machine the figures were made."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import psutil


def describe() -> str:
    """Return cores, memory, kernel, Python, event loop, load and date."""
    memory = psutil.virtual_memory().total / 2**30
    return ", ".join(
        (
            f"{os.cpu_count()} cores ({_processor()})",
            f"{memory:.0f} GB",
            f"{platform.system()} {platform.release()}",
            f"{platform.python_implementation()} {platform.python_version()}",
            f"uvloop {version('uvloop')}",
            f"load {os.getloadavg()[0]:.1f} at the start",
            time.strftime("%Y-%m-%d %H:%M %Z"),
        )
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
