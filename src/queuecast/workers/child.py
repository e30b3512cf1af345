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
from ..gateway import STOP_PATIENCE, Gateway, collect_rarely, fastest_loop, log_failure
from ..server.siblings import Place
from .words import DRAIN, STOP, Failed, Hello, Report, Said

logger = logging.getLogger(__name__)

Say = Callable[[Said], None]


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

    async def run(self, say: Say) -> int | Failed:
        """Serve until asked to stop."""
        gateway = Gateway(self._hello.config, self._place)
        await self._listen_to_parent(gateway)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked.set)
        loop.add_signal_handler(signal.SIGUSR1, gateway.begin_drain)
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
            return Failed(error.line(), 2 if isinstance(error, ConfigError) else 1)
        except OSError as error:
            stopping.cancel()
            return Failed(f"cannot listen: {error.strerror or error}", 1)
        say(
            Report(
                gateway.url, gateway.stomp_url, gateway.broker.name, gateway.server.sockets.limit
            )
        )
        if self._hello.draining:
            gateway.begin_drain()
        await stopping
        code = await self._stop(gateway)
        if self._orphaned:
            self._tidy()
        return code

    async def _stop(self, gateway: Gateway) -> int:
        server = self._hello.config.server
        limit = server.drain + server.grace + STOP_PATIENCE
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
                    gateway.begin_drain()
                elif line.strip() == STOP:
                    break
            else:
                logger.error("the parent process has ended, so this worker stops")
                self._orphaned = True
            self._asked.set()

        # asyncio keeps only weak references.
        self._listening = asyncio.create_task(listen(), name="listen to the parent")
        self._listening.add_done_callback(log_failure)

    def _tidy(self) -> None:
        """Remove what the parent cannot remove any more; the last worker has the directory."""
        place = self._place
        for path in (place.door(place.number), place.admin(place.number), place.parent):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            place.directory.rmdir()


if __name__ == "__main__":
    sys.exit(main())
