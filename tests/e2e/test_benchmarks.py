"""The benchmark's smoke test: each part runs, checks what it received, and gives its figures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as command
from benchmarks import message, picture
from benchmarks.bench import Bench, OutOfTime
from benchmarks.figures import Curve, Figures, Row
from benchmarks.latencies import Latencies, merged
from benchmarks.parts import PARTS
from benchmarks.plan import QUICK
from benchmarks.streams import check
from benchmarks.table import table
from benchmarks.wire import WIRES
from tests.support.rabbit_installation import RabbitInstallation

ROOT = Path(__file__).parent.parent.parent
# Parts that start brokers of their own.
WITH_BROKERS = ("ceiling", "latency", "topics", "ingest")


def run(tmp_path: Path, only: Iterable[str]) -> dict[str, Any]:
    """Run parts of the benchmark quickly; returns their figures."""
    figures, drawn = tmp_path / "figures.json", tmp_path / "picture.svg"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick", "--only", ",".join(only)),
            *("--json", str(figures), "--picture", str(drawn)),
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/src"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert "| measurement" in done.stdout
    found: dict[str, Any] = json.loads(figures.read_text())
    assert all(row["ours"] >= 0 for row in found["rows"])
    if found["curves"]:
        ElementTree.parse(drawn)
    return found


def rows(found: dict[str, Any], part: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["part"] == part]


@pytest.mark.timeout(420)
def test_quick_parts_without_brokers(tmp_path: Path) -> None:
    wires = ("ws", "stomp")
    found = run(tmp_path, [*(part.name for part in PARTS if part.name not in WITH_BROKERS), *wires])
    titles = {WIRES[name].title for name in wires}
    assert {row["transport"] for row in rows(found, "fanout")} == titles
    assert {row["transport"] for row in rows(found, "idle")} == titles
    connections = rows(found, "connections")
    assert {row["transport"] for row in connections} == titles
    assert {row["beside"] for row in connections} >= {"null server", "aiohttp"}
    assert len(found["curves"]) >= 6
    for curve in found["curves"]:
        assert any(name.startswith("gateway") for name in curve["series"])


@pytest.mark.rabbitmq
@pytest.mark.timeout(420)
def test_quick_parts_with_brokers(tmp_path: Path) -> None:
    RabbitInstallation.find("3.10")
    found = run(tmp_path, [*WITH_BROKERS, "ws", "stomp"])
    beside = {row["beside"] for row in rows(found, "ceiling")}
    assert "Web STOMP plugin" in beside
    for peer in ("Nchan", "Node.js"):
        there = any(peer in name or "amqplib" in name for name in beside)
        assert there or any(peer in text for text in found["missing"])
    assert {row["unit"] for row in rows(found, "latency")} == {"ms"}
    assert any("one queue with" in row["what"] for row in rows(found, "topics"))
    ways = {row["transport"].partition(", ")[2] for row in rows(found, "ingest")}
    assert {"classic queue", "stream"} <= ways


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
    one, other = Latencies(), Latencies()
    one.add(0.001, 98)
    other.add(3.0, 2)
    found = merged([one.summary(), other.summary()])
    assert found.p50 == pytest.approx(0.001, rel=0.02)
    assert found.p99 == pytest.approx(3.0, rel=0.02)
    assert found.max == pytest.approx(3.0, rel=0.02)


def test_nothing_is_no_latency() -> None:
    with pytest.raises(ValueError, match="no latency"):
        merged([Latencies().summary()])


def test_a_part_that_takes_too_long_ends() -> None:
    bench = Bench(QUICK)
    with pytest.raises(OutOfTime, match=r"sleeper took longer than 0\.05 s"):  # noqa: SIM117
        with bench.within(0.05, "sleeper"):
            subprocess.run(["sleep", "30"], check=True)


class TestTable:
    def test_says_how_many_times_as_good(self) -> None:
        fast = Row("fanout", "speed", "WebSocket", "deliveries/s", "peer", 100.0, 150.0, goal=3.0)
        dear = Row("fanout", "cost", "WebSocket", "ms", "peer", 1.0, 4.0, cost=True)
        alone = Row("fanout", "alone", "", "messages/s", "", None, 12_345.0)
        text = table(Figures("a machine", [fast, dear, alone], missing=["Peer: how"]))
        assert "a machine" in text
        assert "150% | ≥ 3.00 × |" in text
        assert " 25% |" in text
        assert "12,345" in text
        assert "- Peer: how" in text

    def test_has_the_ends_of_a_curve(self) -> None:
        curve = Curve("growth", "Cost", "subscribers", "µs", {"gateway": [(1, 2.0), (1000, 3.0)]})
        text = table(Figures("a machine", curves=[curve]))
        assert "Cost, subscribers 1.00" in text
        assert "Cost, subscribers 1,000" in text

    def test_takes_the_place_of_the_last_one(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text(f"# Head\n{command.BEGIN}\nold\n{command.END}\ntail\n")
        command.write(page, "| new |")
        assert page.read_text() == f"# Head\n{command.BEGIN}\n| new |\n{command.END}\ntail\n"
        assert command.END in command.PAGE.read_text("utf-8").partition(command.BEGIN)[2]


class TestPicture:
    def test_has_every_curve(self) -> None:
        curves = [
            Curve("growth", f"<{n}>", "x", "y", {"gateway": [(1, 1.0), (10, n)], "null": [(1, 2)]})
            for n in (1, 5, 7000)
        ]
        svg = ElementTree.fromstring(picture.draw(curves))
        texts = {each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")}
        assert {"<1>", "<5>", "<7000>", "gateway", "null"} <= texts
        assert "prefers-color-scheme: dark" in picture.draw(curves)

    @pytest.mark.parametrize("curves", [[], [Curve("growth", "t", "x", "y", {"s": [(1, 0.0)]})]])
    def test_refuses_what_it_cannot_draw(self, curves: list[Curve]) -> None:
        with pytest.raises(ValueError, match=r"nothing to draw|positive"):
            picture.draw(curves)


@pytest.mark.parametrize("wire", list(WIRES))
class TestCheck:
    def test_takes_all_messages_in_order(self, wire: str) -> None:
        split = WIRES[wire].split
        bodies = [message.body(number, 200) for number in range(3)]
        check(split, WIRES[wire].ready_made(bodies), 3, 3)
        check(split, WIRES[wire].ready_made(bodies) * 2, 6, 3)

    @pytest.mark.parametrize("numbers", [[0, 2], [0, 1], [0, 2, 1], [0, 1, 1], [0, 1, 2, 3]])
    def test_refuses_anything_else(self, wire: str, numbers: list[int]) -> None:
        stream = WIRES[wire].ready_made([message.body(number, 100) for number in numbers])
        with pytest.raises(ValueError, match="in order"):
            check(WIRES[wire].split, stream, 3, 3)

    def test_keeps_destinations_apart(self, wire: str) -> None:
        split = WIRES[wire].split
        bodies = [message.body(number, 100, topic=topic) for number in (0, 1) for topic in (4, 7)]
        stream = WIRES[wire].ready_made(bodies)
        check(split, stream, 2, 2, (4, 7))
        with pytest.raises(ValueError, match="not a message of this subscriber"):
            check(split, stream, 2, 2, (4,))
        with pytest.raises(ValueError, match="in order"):
            check(split, stream, 2, 2, (4, 7, 9))

    def test_takes_any_order_only_where_there_is_none(self, wire: str) -> None:
        split = WIRES[wire].split
        stream = WIRES[wire].ready_made([message.body(number, 100) for number in (1, 0)])
        check(split, stream, 2, 2, ordered=False)
        with pytest.raises(ValueError, match="in order"):
            check(split, stream, 2, 2)

    def test_refuses_what_is_no_message(self, wire: str) -> None:
        stream = WIRES[wire].ready_made([message.body(0, 100)])
        for extra in (b"\x89\x00", b":\n\n", stream[:50]):
            with pytest.raises(ValueError, match="not a"):
                check(WIRES[wire].split, stream + extra, 1, 1)
