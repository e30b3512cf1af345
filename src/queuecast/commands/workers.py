"""`queuecast serve --workers N`: the parent of N gateways on one port, until a signal comes."""

from __future__ import annotations

import asyncio
import logging
import signal

from ..config import Config
from ..workers.supervisor import Supervisor
from ..workers.worker import WorkerFailed
from .failure import Failure, complain
from .pidfile import PidFile
from .serve import banner, on_signals, why_not

logger = logging.getLogger(__name__)


async def serve_workers(config: Config, log_level: str, file: PidFile | None) -> int:
    """Run all workers; returns the exit code, raises Failure and ConfigError."""
    supervisor = Supervisor(config, log_level)
    asked = asyncio.Event()
    on_signals(asked, supervisor.abandon)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _drain, supervisor)
    stopping = asyncio.create_task(asked.wait())
    starting = asyncio.create_task(supervisor.start())
    orderly = False
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            try:
                report = await starting
            except WorkerFailed as failed:
                raise Failure(str(failed), failed.exit_code) from None
            except OSError as error:
                raise Failure(why_not(error, config)) from None
            text = banner(
                config,
                report.url,
                report.broker,
                report.connections * config.server.workers,
                report.stomp_url,
                supervisor.admin_url,
            )
            print(f"{text}\n  workers    {config.server.workers} processes", flush=True)
            if file is not None:
                file.write(report.url)
            await stopping
            logger.info("stopping")
    finally:
        for task in (starting, stopping):
            task.cancel()
        await asyncio.gather(starting, stopping, return_exceptions=True)
        orderly = await supervisor.stop()
    if not orderly:
        complain("not all workers stopped in order")
        return 1
    return 0


def _drain(supervisor: Supervisor) -> None:
    logger.info("draining: clients are told to reconnect elsewhere")
    supervisor.drain()
