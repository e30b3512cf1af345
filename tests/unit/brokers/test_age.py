"""Ages by a clock that nobody sets: the system's may jump, and a process or the system restart."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from queuecast.brokers.base import QueueSpec
from queuecast.brokers.embedded.age import AgeClock, Anchor, boot_id, since_boot
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.message import Properties
from queuecast.position import Start
from tests.support.durable import image, on_disk, writer_of
from tests.support.sinks import until
from tests.unit.brokers.hand_clock import HandClock
from tests.unit.brokers.retained_rig import D, bodies, publish, read, reader, rule

HOUR, YEAR = 3600.0, 365 * 86400.0
JUMPS = [10 * YEAR, -10 * YEAR, 2 * HOUR, -2 * HOUR]


class System:
    """A computer: its clock, which may be set, the time since its boot, and the boot's name."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000.0
        self.steady = 1000.0
        self.boot = "first"

    def clock(self) -> AgeClock:
        return AgeClock(lambda: self.wall, lambda: self.steady, lambda: self.boot)

    def pass_time(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def reboot(self, off: float) -> None:
        self.wall += off
        self.steady = 5.0
        self.boot += "+"


class Rig:
    """A broker that keeps messages for an hour, and may be ended and started again."""

    def __init__(self, tmp_path: Path | None) -> None:
        self.system = System()
        self._base = tmp_path
        self._starts = 0
        self.broker = self._make()

    def _make(self) -> EmbeddedBroker:
        rules = (rule(age=HOUR),)
        if self._base is None:
            return EmbeddedBroker(ages=self.system.clock(), retain=rules)
        directory = self._base / str(self._starts)
        return on_disk(directory, rules=rules, ages=self.system.clock())

    async def restart(self, kill: bool = True) -> None:
        assert self._base is not None
        before = self._base / str(self._starts)
        self._starts += 1
        after = self._base / str(self._starts)
        if kill:
            await self.broker.declare()
            image(before, after)
            await self.broker.close()
        else:
            await self.broker.close()
            before.rename(after)
        self.broker = self._make()
        await self.broker.start()

    async def left(self) -> list[bytes]:
        """Return what is kept, after the store has looked at it."""
        if self._base is not None:
            writer_of(self.broker)._maintain()
        history = await reader(self.broker, "/topic/job.#")
        found = bodies(await read(history, await history.locate(Start("first"))))
        await history.close()
        return found


Make = Callable[[], Awaitable[Rig]]


@pytest.fixture(params=["memory", "disk"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
    made = Rig(None if request.param == "memory" else tmp_path)
    await made.broker.start()
    return made


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_jump_destroys_nothing(rig: Rig, jump: float) -> None:
    await publish(rig.broker, "/topic/job.a", b"1")
    rig.system.wall += jump
    await publish(rig.broker, "/topic/job.a", b"2")
    assert await rig.left() == [b"1", b"2"]
    rig.system.wall -= jump
    await publish(rig.broker, "/topic/job.a", b"3")
    assert await rig.left() == [b"1", b"2", b"3"]
    # And they are not kept for longer.
    rig.system.pass_time(HOUR - 1)
    assert await rig.left() == [b"1", b"2", b"3"]
    rig.system.pass_time(2)
    assert await rig.left() == []
    await rig.broker.close()


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_place_in_time_is_found_after_a_jump(rig: Rig, jump: float) -> None:
    await publish(rig.broker, "/topic/job.a", b"1")
    rig.system.pass_time(600)
    rig.system.wall += jump
    await publish(rig.broker, "/topic/job.a", b"2")
    rig.system.pass_time(60)
    history = await reader(rig.broker, "/topic/job.#")
    for ago, expected in ((1.0, []), (120.0, [b"2"]), (700.0, [b"1", b"2"])):
        place = await history.locate(Start("time", time=rig.system.wall - ago))
        assert bodies(await read(history, place)) == expected
    await rig.broker.close()


@pytest.mark.parametrize("kill", [True, False])
@pytest.mark.parametrize("jump", [*JUMPS, 0.0])
async def test_a_jump_while_nothing_runs(tmp_path: Path, jump: float, kill: bool) -> None:
    rig = Rig(tmp_path)
    await rig.broker.start()
    await publish(rig.broker, "/topic/job.a", b"1")
    rig.system.pass_time(HOUR / 2)
    rig.system.wall += jump
    await rig.restart(kill)
    assert await rig.left() == [b"1"]
    rig.system.wall -= jump
    await rig.restart(kill)
    assert await rig.left() == [b"1"]
    # In one boot the time in which no gateway runs counts.
    rig.system.pass_time(HOUR / 2 + 1)
    await rig.restart(kill)
    assert await rig.left() == []
    await rig.broker.close()


@pytest.mark.parametrize("kill", [True, False])
@pytest.mark.parametrize("off", [*JUMPS, 30.0])
async def test_the_time_between_two_boots_does_not_count(
    tmp_path: Path, off: float, kill: bool
) -> None:
    rig = Rig(tmp_path)
    await rig.broker.start()
    await publish(rig.broker, "/topic/job.a", b"1")
    rig.system.reboot(off)
    await rig.restart(kill)
    await publish(rig.broker, "/topic/job.a", b"2")
    assert await rig.left() == [b"1", b"2"]
    rig.system.pass_time(HOUR + 1)
    assert await rig.left() == []
    await rig.broker.close()


async def test_a_store_of_an_earlier_version(tmp_path: Path) -> None:
    """Its times are the system's, and it does not say where the clock stood."""
    rig = Rig(tmp_path)
    await rig.broker.start()
    await publish(rig.broker, "/topic/job.a", b"1")
    for jump in (10 * YEAR, -20 * YEAR):
        writer_of(rig.broker).database.execute("DELETE FROM meta WHERE name LIKE 'age_%'")
        rig.system.wall += jump
        await rig.restart(kill=True)
        assert await rig.left() == [b"1"]
    rig.system.pass_time(HOUR + 1)
    assert await rig.left() == []
    await rig.broker.close()


async def test_the_anchor_is_noted_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    await rig.broker.start()
    await publish(rig.broker, "/topic/job.a", b"1")
    monkeypatch.setattr("queuecast.brokers.embedded.store_writer._ANCHORED", 0.0)
    rig.system.pass_time(HOUR / 2)
    assert await rig.left() == [b"1"]
    rig.system.reboot(10 * YEAR)
    await rig.restart()
    # What it ran for before the boot counts, though nothing was published then.
    rig.system.pass_time(HOUR / 2 + 1)
    assert await rig.left() == []
    await rig.broker.close()


@pytest.mark.parametrize("jump", JUMPS)
async def test_messages_with_a_time_to_live(tmp_path: Path, jump: float) -> None:
    system, clock = System(), HandClock()
    broker = on_disk(tmp_path / "0", ages=system.clock(), clock=clock)
    await broker.start()
    ttl = QueueSpec("q", arguments={"x-message-ttl": 3_600_000})
    await broker.declare(queues=[ttl])
    await broker.publish(D("/queue/q"), b"1", Properties(persistent=True))
    await broker.declare()
    image(tmp_path / "0", tmp_path / "1")
    await broker.close()
    system.wall += jump
    system.pass_time(HOUR / 2)
    broker = on_disk(tmp_path / "1", ages=system.clock(), clock=clock)
    await broker.start()
    assert broker.counts().queues["q"].ready == 1
    clock.turn(HOUR / 2 + 1)
    await until(lambda: broker.counts().queues["q"].ready == 0, "its time is over")
    await broker.close()


@pytest.mark.parametrize("jump", JUMPS)
async def test_streams_keep_by_age(tmp_path: Path, jump: float) -> None:
    system = System()
    arguments = {"x-queue-type": "stream", "x-max-age": "1h"}
    for number, step in enumerate((0.0, jump, -jump)):
        system.wall += step
        broker = on_disk(tmp_path / str(number), ages=system.clock())
        await broker.start()
        await broker.declare(queues=[QueueSpec("s", arguments=arguments)])
        await broker.publish(D("/queue/s"), b"%d" % number)
        assert broker.counts().queues["s"].ready == number + 1
        await broker.declare()
        image(tmp_path / str(number), tmp_path / str(number + 1))
        await broker.close()


def test_the_clock_of_this_system() -> None:
    clock = AgeClock()
    first = clock.now()
    assert clock.now() >= first
    assert clock.anchor().boot == boot_id()
    assert since_boot() > 0


def test_another_system_without_boots() -> None:
    system = System()
    system.boot = ""
    clock = system.clock()
    clock.resume(Anchor("", 10.0, 5000.0), 0.0)
    assert clock.now() == 5000.0
    # Nor is a boot believed in which less time has passed than before.
    system.boot = "first"
    clock.resume(Anchor("first", 2000.0, 7000.0), 0.0)
    assert clock.now() == 7000.0
    clock.resume(Anchor("first", 900.0, 7000.0), 0.0)
    assert clock.now() == 7100.0
