"""The parent of the workers: starts them, starts them again when they die, stops them together.

It serves no client itself. It holds the port, shows metrics and health of all workers, and passes
on what it is told: to drain, and to stop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shutil
import tempfile
from pathlib import Path

import msgspec

from ..admin.api import Admin
from ..config import Config
from ..errors import ConfigError
from ..gateway import STOP_PATIENCE
from ..hostport import host_port
from ..server.siblings import Place
from ..settings import AdminConfig
from .reservation import Reservation
from .view import WorkersView
from .words import DRAIN, STOP, Hello, Report
from .worker import Worker, WorkerFailed, how

logger = logging.getLogger(__name__)

# Seconds before a worker that died is started again; doubled up to the second value, and from the
# beginning once one has lived as long as the third.
FIRST_DELAY, LAST_DELAY = 0.5, 30.0
_GOOD = 10.0
# A worker that serves is asked for a sign of life every so many seconds. One that has answered none
# of this many questions in a row hangs: it is killed and started again. By questions, not by the
# clock: a suspended machine is nobody's fault.
ASK, MOST_MISSED = 5.0, 5


class Supervisor:
    """All workers of a configuration.

    shared: see Reservation; None: as the system has it. ask: seconds between two questions.
    """

    def __init__(
        self,
        config: Config,
        log_level: str = "info",
        *,
        shared: bool | None = None,
        ask: float = ASK,
    ) -> None:
        self.config = config
        self.admin_url = ""
        self._log_level = log_level
        self._count = config.server.workers
        self._shared = shared
        self._every = ask
        self._ports: dict[str, Reservation] = {}
        self._workers: dict[int, Worker] = {}
        self._keeping: list[asyncio.Task[None]] = []
        self._restarts = [0] * self._count
        self._admins: list[Admin] = []
        self._view: WorkersView | None = None
        self._draining = False
        self._stopping = False
        self._directory: Path | None = None

    @property
    def processes(self) -> dict[int, int]:
        """The process numbers of the workers that run, by worker."""
        return {number: each.pid for number, each in self._workers.items() if each.is_running}

    async def start(self) -> Report:
        """Start all workers; returns the first one's report.

        Raises OSError (port taken), WorkerFailed, ConfigError.
        """
        config = self.config
        ports = {"http": (config.server.host, config.server.port)}
        stomp = config.server.stomp_address()
        if stomp is not None:
            ports["stomp"] = stomp
        for use, address in ports.items():
            port = Reservation() if self._shared is None else Reservation(shared=self._shared)
            self._ports[use] = port
            try:
                await port.take(*address)
            except OSError as error:
                if use == "http":
                    raise
                host, number = address
                raise ConfigError(
                    f"server.stomp_tcp: cannot listen on {host} port {number}: {error.strerror}",
                    "choose another, or 0 for a free one",
                ) from None
        self._directory = Path(tempfile.mkdtemp(prefix="queuecast-workers-"))
        # Each worker's is its own: node and number.
        node = config.server.node or f"n{secrets.token_hex(3)}"
        self._place = Place(0, self._count, node, self._directory)
        if not self._place.fits():
            raise WorkerFailed(f"{self._directory} is too long for Unix sockets: set TMPDIR", 2)
        self._view = WorkersView(self._place, lambda: [*self.processes], self._restarts)
        inner = Admin(self._view)
        self._admins.append(inner)
        await inner.listen_unix(self._place.parent)
        admin = config.admin.address()
        if admin is not None:
            outer = Admin(self._view, host=admin[0], token=config.admin.token)
            self._admins.append(outer)
            self.admin_url = await outer.listen(*admin)
        # One first: what is wrong is said once, and what is declared is there for the others.
        await self._spawn(0)
        report = await self._workers[0].up()
        for number in range(1, self._count):
            await self._spawn(number)
        await asyncio.gather(*(each.up() for each in self._workers.values()))
        for number in range(self._count):
            keeping = asyncio.create_task(self._keep(number), name=f"keep worker {number}")
            self._keeping.append(keeping)
        return report

    def drain(self) -> None:
        """Have every worker drain; see Gateway.drain."""
        self._draining = True
        for worker in self._workers.values():
            worker.tell(DRAIN)

    async def stop(self) -> bool:
        """Stop all workers; returns whether all of them ended in order, and in time."""
        self._stopping = True
        for task in self._keeping:
            task.cancel()
        # One of them may be starting a process.
        await asyncio.gather(*self._keeping, return_exceptions=True)
        workers = [each for each in self._workers.values() if each.is_running]
        for worker in workers:
            worker.tell(STOP)
        server = self.config.server
        # Each has its own limit, which is shorter.
        limit = server.drain + server.grace + 2 * STOP_PATIENCE
        orderly = True
        try:
            async with asyncio.timeout(limit):
                codes = await asyncio.gather(*(each.ended() for each in workers))
            orderly = not any(codes)
        except TimeoutError:
            orderly = False
        self.kill()
        await asyncio.gather(*(each.ended() for each in workers), return_exceptions=True)
        await self._tidy()
        return orderly

    def kill(self) -> None:
        """End all workers at once."""
        for worker in self._workers.values():
            worker.kill()

    def abandon(self) -> None:
        """End all workers at once, and leave nothing behind."""
        self.kill()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    async def _tidy(self) -> None:
        for admin in self._admins:
            await admin.close()
        if self._view is not None:
            await self._view.close()
        for port in self._ports.values():
            port.close()
        if self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    # -- one worker -----------------------------------------------------------------------

    async def _spawn(self, number: int) -> None:
        self._workers[number] = await Worker.start(self._hello(number))

    def _hello(self, number: int) -> Hello:
        server = msgspec.structs.replace(
            self.config.server, port=self._ports["http"].port, pid_file=""
        )
        stomp = self._ports.get("stomp")
        address = server.stomp_address()
        if stomp is not None and address is not None:
            taken = host_port(address[0], stomp.port)
            server = msgspec.structs.replace(server, stomp_tcp=taken)
        return Hello(
            msgspec.structs.replace(self.config, server=server, admin=AdminConfig()),
            self._log_level,
            number,
            self._count,
            self._place.node,
            str(self._directory),
            self._ports["http"].descriptors,
            stomp.descriptors if stomp is not None else (),
            self._draining,
        )

    async def _keep(self, number: int) -> None:
        """Start a worker again whenever it has died."""
        loop = asyncio.get_running_loop()
        delay = FIRST_DELAY
        since = loop.time()
        while True:
            worker = self._workers[number]
            watching = asyncio.create_task(self._watch(worker), name=f"watch worker {number}")
            try:
                code = await worker.ended()
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            if self._stopping:
                return
            if loop.time() - since >= _GOOD:
                delay = FIRST_DELAY
            logger.error(
                "worker %d (process %d) %s%s; it is started again in %.1f s",
                number,
                worker.pid,
                how(code),
                await worker.why(),
                delay,
            )
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_DELAY)
            since = loop.time()
            self._restarts[number] += 1
            try:
                await self._spawn(number)
            except OSError as error:
                # Out of memory, processes or descriptors: it may be better in a moment.
                logger.error("worker %d cannot be started: %s", number, error)

    async def _watch(self, worker: Worker) -> None:
        """Kill a worker that serves, but gives no sign of life: its clients go to others."""
        assert self._view is not None
        try:
            await worker.up()
        except WorkerFailed:
            return
        missed = 0
        while missed < MOST_MISSED:
            await asyncio.sleep(self._every)
            missed = 0 if await self._view.answers(worker.number) else missed + 1
        logger.error(
            "worker %d (process %d) has not answered %d questions in a row: it hangs, it is killed",
            worker.number,
            worker.pid,
            missed,
        )
        worker.kill()
