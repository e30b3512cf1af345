"""What a worker process runs: a whole gateway, told by its parent what to be and when to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from ..errors import ConfigError, QueuecastError
from ..gateway import Gateway, collect_rarely, fastest_loop
from ..server.siblings import Place
from .words import DRAIN, STOP, Failed, Hello, Report, Said

logger = logging.getLogger(__name__)

Say = Callable[[Said], None]

# Seconds beyond drain and grace after which a stop that hangs is given up.
PATIENCE = 5.0


def main() -> int:
    """Run until told to stop; returns the exit code."""
    # Byte by byte: what the parent says next is the event loop's to read.
    line = os.fdopen(0, "rb", buffering=0, closefd=False).readline()
    if not line:
        return 0  # the parent has ended, or was stopped, in this very moment
    hello = msgspec.json.decode(line, type=Hello)
    # The parent reads the output: nothing that anybody prints may stand among our words.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    logging.basicConfig(
        level=hello.log_level.upper(),
        format=f"%(asctime)s %(levelname)-7s [{hello.number}] %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
    logging.getLogger("aiohttp.access").disabled = True

    def say(said: Said) -> None:
        with contextlib.suppress(BrokenPipeError):  # the parent has ended, as stdin tells as well
            output.write(msgspec.json.encode(said) + b"\n")
            output.flush()

    collect_rarely()
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        said = runner.run(_Child(hello).run(say))
    if isinstance(said, Failed):
        say(said)
        return said.exit_code
    return said


class _Child:
    """One worker's life."""

    def __init__(self, hello: Hello) -> None:
        self._hello = hello
        self._place = Place(
            hello.number,
            hello.count,
            hello.node,
            Path(hello.directory),
            [socket.socket(fileno=each) for each in hello.http],
            [socket.socket(fileno=each) for each in hello.stomp],
        )
        self._asked = asyncio.Event()
        self._orphaned = False
        self._draining: set[asyncio.Task[None]] = set()

    async def run(self, say: Say) -> int | Failed:
        """Serve until asked to stop."""
        gateway = Gateway(self._hello.config, self._place)
        await self._listen_to_parent(gateway)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked.set)
        loop.add_signal_handler(signal.SIGUSR1, self._drain, gateway)
        stopping = asyncio.create_task(self._asked.wait())
        starting = asyncio.create_task(gateway.start())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return 0
        try:
            await starting
        except QueuecastError as error:
            stopping.cancel()
            text = f"{error.text}: {error.hint}" if error.hint else error.text
            return Failed(" ".join(text.split()), 2 if isinstance(error, ConfigError) else 1)
        except OSError as error:
            stopping.cancel()
            return Failed(f"cannot listen: {error.strerror or error}", 1)
        say(
            Report(
                gateway.url, gateway.stomp_url, gateway.broker.name, gateway.server.sockets.limit
            )
        )
        if self._hello.draining:
            self._drain(gateway)
        await stopping
        code = await self._stop(gateway)
        if self._orphaned:
            self._tidy()
        return code

    async def _stop(self, gateway: Gateway) -> int:
        server = self._hello.config.server
        limit = server.drain + server.grace + PATIENCE
        try:
            await asyncio.wait_for(gateway.stop(), limit)
        except TimeoutError:
            logger.error("not stopped within %g s, leaving", limit)
            return 1
        return 0

    async def _listen_to_parent(self, gateway: Gateway) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )

        async def listen() -> None:
            while line := await reader.readline():
                if line.strip() == DRAIN:
                    self._drain(gateway)
                elif line.strip() == STOP:
                    break
            else:
                logger.error("the parent process has ended, so this worker stops")
                self._orphaned = True
            self._asked.set()

        self._keep(asyncio.create_task(listen(), name="listen to the parent"))

    def _drain(self, gateway: Gateway) -> None:
        self._keep(asyncio.create_task(gateway.drain(), name="drain"))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._draining.add(task)  # asyncio keeps only weak references
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._draining.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("%s failed", task.get_name(), exc_info=task.exception())

    def _tidy(self) -> None:
        """Remove what the parent cannot remove any more; the last worker has the directory."""
        place = self._place
        for path in (place.door(place.number), place.admin(place.number), place.parent):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            place.directory.rmdir()


if __name__ == "__main__":
    sys.exit(main())
