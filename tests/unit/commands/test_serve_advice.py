"""`queuecast serve` warns of what can never take effect, before it listens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "src"


def test_serve_warns_once_for_each(tmp_path: Path) -> None:
    (tmp_path / "queuecast.toml").write_text(
        '[[allow]]\nwho = "alice"\nsubscribe = ["/exchange/x/#"]\n', encoding="utf-8"
    )
    env = {name: text for name, text in os.environ.items() if not name.startswith("QUEUECAST_")}
    env |= {
        "PYTHONPATH": str(SOURCE),
        "QUEUECAST_SERVER_PORT": "80",
        "QUEUECAST_PORT": "tcp://10.0.0.1:15674",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "queuecast", "serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=env,
    )
    assert process.stdout is not None
    try:
        assert "listens on" in process.stdout.readline()
    finally:
        process.terminate()
        _, log = process.communicate(timeout=60)
    warnings = [line for line in log.splitlines() if " WARNING " in line]
    assert len(warnings) == 3, log
    assert "allow[0].who" in warnings[0]
    assert "allow[0].subscribe[0]" in warnings[1]
    assert "QUEUECAST_SERVER__PORT" in warnings[2]
