"""The benchmark's smoke test: each part runs, checks what it received, and gives its figures."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import __main__ as command
from benchmarks import message, picture, receiver
from benchmarks.bench import Bench, OutOfTime
from benchmarks.child import Child
from benchmarks.figures import Curve, Figures, Point, Row
from benchmarks.latencies import Latencies, merged
from benchmarks.parts import PARTS, Part
from benchmarks.plan import QUICK
from benchmarks.producer import most
from benchmarks.streams import check
from benchmarks.table import table
from benchmarks.wire import WIRES
from tests.support.rabbit_installation import RabbitInstallation

ROOT = Path(__file__).parent.parent.parent
# Parts that start brokers of their own.
WITH_BROKERS = ("ceiling", "latency", "topics", "ingest", "workers")


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
    assert {row["transport"] for row in connections} == titles | {""}
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
    units = {row["unit"] for row in rows(found, "workers")}
    assert units >= {"deliveries/s", "CPU µs/delivery", "connects/s", "publishes/s", "ms", "MB"}
    assert {row["beside"] for row in rows(found, "workers")} == {"one process"}


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


def test_what_a_resume_costs() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/cpu_cost.py", "resume", "--count", "20", "--rounds", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}/src:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "resume, gateway: " in done.stdout


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


def test_a_command_may_be_longer_than_a_pipe() -> None:
    with Child("receiver") as child:
        names = [f"/topic/{number:07}" for number in range(20_000)]
        answer = child.do("open", port=1, wire="ws", count=0, destinations=names)
        assert answer["started"] <= answer["ended"]


@pytest.mark.parametrize("wire", list(WIRES))
def test_a_run_is_short_enough_to_be_checked(wire: str) -> None:
    for size in (16, 100, 1_000_000):
        each = len(WIRES[wire].ready_made([message.body(0, size)]))
        assert most(size) * each <= receiver.KEPT


def test_a_part_that_fails_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(bench: Bench) -> Iterator[Row]:
        yield Row("fails", "what was found", "", "s", "", None, 1.0)
        raise RuntimeError("the broker is gone")

    def works(bench: Bench) -> Iterator[Row]:
        yield Row("works", "what follows", "", "s", "", None, 2.0)

    page = tmp_path / "page.md"
    page.write_text(f"{command.BEGIN}\n{command.END}\n")
    parts = (Part("fails", "", fails, 60), Part("works", "", works, 60))
    monkeypatch.setattr(command, "PARTS", parts)
    monkeypatch.setattr(command, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--write", "--only", "fails,works"])
    assert command.main() == 1
    assert "fails: RuntimeError: the broker is gone" in capsys.readouterr().err
    text = page.read_text()
    for found in ("what was found", "what follows", "- fails: RuntimeError: the broker is gone"):
        assert found in text


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
        assert "150% | ≥ 3 × | **no** |" in text
        assert " 25% |" in text
        assert "12,345" in text
        assert "- Peer: how" in text

    @pytest.mark.parametrize(
        ("row", "met"),
        [
            (Row("p", "", "", "", "peer", 10.0, 20.0, goal=2.0), True),
            (Row("p", "", "", "", "peer", 10.0, 19.0, goal=2.0), False),
            (Row("p", "", "", "", "peer", 10.0, 30.0, cost=True, goal=1 / 3), True),
            (Row("p", "", "", "", "peer", 10.0, 31.0, cost=True, goal=1 / 3), False),
            (Row("p", "", "", "", "", None, 3.0, cost=True, bound=3.0), True),
            (Row("p", "", "", "", "peer", 1.0, 3.1, cost=True, bound=3.0), False),
            (Row("p", "", "", "", "", None, 40_000.0, bound=40_000.0), True),
            (Row("p", "", "", "", "", None, 39_999.0, bound=40_000.0), False),
            (Row("p", "", "", "", "peer", 10.0, 20.0), None),
            (Row("p", "", "", "", "peer", None, 20.0, goal=2.0), None),
        ],
    )
    def test_knows_what_was_met(self, row: Row, met: bool | None) -> None:
        assert row.met is met
        text = table(Figures("a machine", [row]))
        assert ("1 of 1 goals" in text) == (met is True)
        assert ("**no**" in text) == ("0 of 1 goals" in text) == (met is False)

    def test_has_the_ends_of_a_curve(self) -> None:
        curve = Curve("growth", "Cost", "subscribers", "µs", {"gateway": [(1, 2.0), (1000, 3.0)]})
        text = table(Figures("a machine", curves=[curve]))
        assert "Cost, subscribers 1 " in text
        assert "Cost, subscribers 1,000" in text

    def test_keeps_the_gateway_apart_from_the_null_server(self) -> None:
        of: dict[str, list[Point]] = {
            "gateway p50": [(1, 2.0)],
            "gateway p99": [(1, 5.0)],
            "null server p99": [(1, 7.0)],
        }
        text = table(Figures("a machine", curves=[Curve("growth", "L", "x", "ms", of)]))
        cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
        found = [line[1:7] for line in cells if line[1:2] and line[1].startswith("**growth**")]
        assert found == [
            ["**growth** L, x 1: p50", "", "ms", "", "", "2"],
            ["**growth** L, x 1: p99", "", "ms", "null server", "7", "5"],
        ]

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

    def test_gives_the_null_server_one_colour(self) -> None:
        for series in (
            ["gateway", "null server"],
            ["gateway p50", "gateway p99", "null server p9"],
        ):
            curve = Curve("growth", "t", "x", "y", {name: [(1, 1.0)] for name in series})
            svg = ElementTree.fromstring(picture.draw([curve]))
            lines = svg.iter("{http://www.w3.org/2000/svg}polyline")
            assert [line.get("class") for line in lines] == [*("s0", "s2")[: len(series) - 1], "s1"]

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
