"""The benchmark's smoke test: it runs, checks what it received, and prints its table."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import message
from benchmarks.latencies import Latencies
from benchmarks.wire import WIRES, check
from tests.support.rabbit_installation import RabbitInstallation

ROOT = Path(__file__).parent.parent.parent


def run(tmp_path: Path, only: str) -> tuple[str, dict[str, Any]]:
    """Run the benchmark quickly; returns its table and its figures."""
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick", "--only", only),
            *("--json", str(figures)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/src"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "| measurement" in done.stdout
    return done.stdout, json.loads(figures.read_text())


def test_quick_fan_out(tmp_path: Path) -> None:
    table, found = run(tmp_path, "fanout")
    assert {row["wire"] for row in found["fan_out"]} == set(WIRES)
    for row in found["fan_out"]:
        assert row["per_write"] == row["batch"]
        assert row["bytes"] > 100
    assert "STOMP/WebSocket" in table


def test_quick_latency_and_idle(tmp_path: Path) -> None:
    _, found = run(tmp_path, "latency,idle,stomp")
    assert [row["wire"] for row in found["latency"]] == ["stomp"]
    assert [row["wire"] for row in found["idle"]] == ["stomp"]
    assert not found["fan_out"]


@pytest.mark.rabbitmq
def test_quick_comparison_with_the_plugin(tmp_path: Path) -> None:
    RabbitInstallation.find("3.10")
    _, found = run(tmp_path, "webstomp")
    (row,) = found["webstomp"]
    for side in ("plugin", "gateway"):
        assert row[side]["held"]
        assert row[side]["rate"] > 0


def test_what_durability_costs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.durable", "--quick"],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}/src"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    for kind in ("memory", "normal", "full"):
        assert f"| {kind} | 1,000 |" in done.stdout


def test_a_read_counts_by_its_messages() -> None:
    latencies = Latencies()
    latencies.add(0.001, 98)
    latencies.add(3.0, 2)
    assert latencies.summary() == {"p50": 0.001, "p99": 3.0, "max": 3.0}


def test_a_new_table_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Head\n{command.BEGIN}\nold\n{command.END}\ntail\n")
    command.write(page, "| new |")
    assert page.read_text() == f"# Head\n{command.BEGIN}\n| new |\n{command.END}\ntail\n"
    assert command.END in command.PAGE.read_text("utf-8").partition(command.BEGIN)[2]


@pytest.mark.parametrize("wire", list(WIRES))
class TestCheck:
    def test_takes_all_messages_in_order(self, wire: str) -> None:
        bodies = [message.body(number, 200) for number in range(3)]
        check(WIRES[wire], WIRES[wire].ready_made(bodies), 3, 3)
        check(WIRES[wire], WIRES[wire].ready_made(bodies) * 2, 6, 3)

    @pytest.mark.parametrize("numbers", [[0, 2], [0, 1], [0, 2, 1], [0, 1, 1], [0, 1, 2, 3]])
    def test_refuses_anything_else(self, wire: str, numbers: list[int]) -> None:
        stream = WIRES[wire].ready_made([message.body(number, 100) for number in numbers])
        with pytest.raises(ValueError, match="in order"):
            check(WIRES[wire], stream, 3, 3)

    def test_refuses_what_is_no_message(self, wire: str) -> None:
        stream = WIRES[wire].ready_made([message.body(0, 100)])
        for extra in (b"\x89\x00", b":\n\n", stream[:50]):
            with pytest.raises(ValueError, match="not a"):
                check(WIRES[wire], stream + extra, 1, 1)
