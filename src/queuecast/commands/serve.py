"""`queuecast serve` and `queuecast demo`: a gateway until a signal comes."""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from .. import __version__, options
from ..advice import advice, misspelt
from ..config import Config, load
from .failure import Failure, complain
from .pidfile import PidFile

_LOG_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

logger = logging.getLogger(__name__)


def serve(arguments: argparse.Namespace) -> int:
    """Run the gateway; raises QueuecastError and Failure for what stops it."""
    config = load(flags_of(arguments), file=arguments.config)
    logging.basicConfig(
        level=arguments.log_level.upper(), format=_LOG_FORMAT, stream=sys.stderr, force=True
    )
    for line in (*advice(config), *misspelt(os.environ)):
        logger.warning("%s", line)
    # aiohttp's access log would repeat what stands in query strings, tokens among it.
    logging.getLogger("aiohttp.access").disabled = True
    file = PidFile(config.server.pid_file) if config.server.pid_file else None
    if file is not None:
        file.take()
    try:
        if config.server.workers > 1:
            from .workers import serve_workers

            return asyncio.run(serve_workers(config, arguments.log_level, file))
        # Here, not above: the other commands need none of it.
        from ..gateway import collect_rarely, fastest_loop

        collect_rarely()
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            return runner.run(_serve(config, file))
    finally:
        if file is not None:
            file.leave()


def flags_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the flags that were given, as texts by option path."""
    flags: dict[str, str] = {}
    for each in options.options(Config):
        value = getattr(arguments, each.path, None) if each.flag else None
        if value is not None:
            flags[each.path] = str(value).lower() if isinstance(value, bool) else value
    if arguments.command == "demo":
        flags.setdefault("server.demo", "true")
    return flags


async def _serve(config: Config, file: PidFile | None) -> int:
    from ..gateway import STOP_PATIENCE, Gateway

    gateway = Gateway(config)
    asked = asyncio.Event()
    on_signals(asked)
    number = getattr(signal, "SIGUSR1", None)
    if number is not None:  # Windows has none
        asyncio.get_running_loop().add_signal_handler(number, gateway.begin_drain)
    stopping = asyncio.create_task(asked.wait())
    starting = asyncio.create_task(gateway.start())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return 0
        try:
            await starting
        except OSError as error:
            raise Failure(why_not(error, config)) from None
        print(
            banner(
                config,
                gateway.url,
                gateway.broker.name,
                gateway.server.sockets.limit,
                gateway.stomp_url,
                gateway.admin_url,
            ),
            flush=True,
        )
        if file is not None:
            file.write(gateway.url)
        await stopping
        logger.info("stopping")
    finally:
        stopping.cancel()
    limit = config.server.drain + config.server.grace + STOP_PATIENCE
    try:
        await asyncio.wait_for(gateway.stop(), limit)
    except TimeoutError:
        complain(f"not stopped within {limit:g} s, leaving")
        return 1
    return 0


def on_signals(asked: asyncio.Event, at_once: Callable[[], object] = lambda: None) -> None:
    """Set `asked` at the first SIGTERM or SIGINT, exit at once at the second.

    at_once: what is to be done before that.
    """
    loop = asyncio.get_running_loop()

    def stop(number: int) -> None:
        if asked.is_set():
            at_once()
            os._exit(128 + number)
        asked.set()

    def from_handler(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(stop, number)

    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop, number)
        except NotImplementedError:  # Windows
            signal.signal(number, from_handler)


def why_not(error: OSError, config: Config) -> str:
    server = config.server
    where = f"{server.host} port {server.port}"
    if error.errno == errno.EADDRINUSE:
        holder = "RabbitMQ's Web STOMP plugin usually has 15674; " if server.port == 15674 else ""
        return f"{where} is taken: {holder}choose another with --port, or 0 for a free one"
    if error.errno == errno.EACCES:
        return f"may not listen on {where}: ports below 1024 need privileges; choose with --port"
    return f"cannot listen on {where}: {error.strerror or error}"


def banner(
    config: Config,
    url: str,
    broker: str,
    connections: int,
    stomp_url: str = "",
    admin_url: str = "",
) -> str:
    """Return what a start prints: where it listens, which broker, URLs to paste."""
    socket_url = "ws" + url.removeprefix("http")
    lines = [
        f"queuecast {__version__} listens on {url}",
        f"  broker     {broker}",
        f"  clients    up to {connections:,} connections",
        f"  subscribe  curl -N {url}/sse/topic/hello",
        f"  WebSocket  {socket_url}/ws/topic/hello",
        f"  STOMP      {socket_url}/ws" + (f" and {stomp_url}" if stomp_url else ""),
        f"  publish    curl -d 'Hello World!' {url}/publish/topic/hello",
    ]
    if admin_url:
        lines.append(f"  admin      {admin_url}/admin and {admin_url}/metrics")
    if config.server.demo:
        lines.append(f"  demo       {url}/")
    if config.server.allow_anyone and not config.allow:
        lines.append("  everybody who reaches it may read and publish everything")
    return "\n".join(lines)
