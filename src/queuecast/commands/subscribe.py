"""`queuecast subscribe DEST`: prints messages as they arrive, over Server-Sent Events.

After a cut it comes again by itself and goes on after the last message that it printed. The
envelope is always asked for, so that a body that is no text is printed byte by byte.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import random
import signal
import sys
from typing import Any

import aiohttp
import msgspec
from yarl import URL

from ..codecs.sse import EventStreamParser, EventTooLong, ServerSentEvent
from .client import Refusal, base_of, path_of, refusal_of, unreachable
from .failure import Failure, complain

# Bytes of one event; it stops a stranger's server whose event never ends.
_MAX_EVENT = 256 << 20
# Seconds without a byte after which a connection counts as dead; heartbeats come every 25 s.
_SILENCE = 90.0
_FIRST_WAIT, _LAST_WAIT = 1.0, 15.0


def subscribe(arguments: argparse.Namespace) -> int:
    """Print until a signal, `--count` or a final refusal; raises Failure for that one."""
    subscription = _Subscription(arguments)
    try:
        asyncio.run(subscription.run())
    except BrokenPipeError:
        # Whoever read has gone (`| head`). Python flushes stdout once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _Done(Exception):
    """As many messages as were asked for are printed."""


class _Subscription:
    """One subscription over as many connections as it takes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._base = base_of(arguments.url)
        self._path = f"{self._base}/sse{path_of(arguments.destination)}"
        self._since: str | None = arguments.since
        self._last: int | None = arguments.last
        self._envelope: bool = arguments.envelope
        self._left: int | None = arguments.count
        self._last_id = ""
        self._connected = False  # ever: the first attempt's failure is final
        self._wait = _FIRST_WAIT
        self._least_wait = _FIRST_WAIT

    async def run(self) -> None:
        """Print until done or cancelled by a signal."""
        if self._left == 0:
            return
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        stopped = False

        def stop() -> None:
            nonlocal stopped
            stopped = True
            task.cancel()

        for number in (signal.SIGTERM, signal.SIGINT):
            # Without it (Windows, or not in the main thread) Ctrl-C is a KeyboardInterrupt.
            with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                loop.add_signal_handler(number, stop)
        try:
            await self._follow()
        except _Done:
            return
        except asyncio.CancelledError:
            if not stopped:
                raise

    async def _follow(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=_SILENCE)
        # A body arrives as it was sent: compressed streams would be held back in blocks.
        headers = {"Accept": "text/event-stream", "Accept-Encoding": "identity"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            while True:
                reason = await self._attempt(session)
                complain(f"{reason}; trying again")
                await asyncio.sleep(self._wait * random.uniform(0.5, 1.0))
                self._wait = min(max(self._wait * 2, self._least_wait), _LAST_WAIT)

    async def _attempt(self, session: aiohttp.ClientSession) -> str:
        """Read one connection to its end and say why it ended; raises Failure when for good."""
        try:
            async with session.get(
                self._target(),
                headers={"Last-Event-ID": self._last_id} if self._last_id else {},
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    refusal = await refusal_of(response)
                    if refusal.retry and self._connected:
                        return str(refusal)
                    raise Failure(str(refusal))
                if response.content_type != "text/event-stream":
                    raise Failure(f"{self._base} is no Queuecast: it sent {response.content_type}")
                self._connected = True
                return await self._read(response)
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            if isinstance(error, BrokenPipeError):
                raise  # our own stdout
            if not self._connected:
                raise Failure(unreachable(self._base, error)) from None
            if isinstance(error, aiohttp.ClientConnectorError):
                return unreachable(self._base, error)
            return f"connection lost ({error or type(error).__name__})"

    def _target(self) -> URL:
        query = {"envelope": "json"}
        # From the first id on, that says where to go on.
        if not self._last_id and self._since:
            query["since"] = self._since
        if not self._last_id and self._last is not None:
            query["last"] = str(self._last)
        return URL(self._path, encoded=True).with_query(query)

    async def _read(self, response: aiohttp.ClientResponse) -> str:
        parser = EventStreamParser(_MAX_EVENT, self._last_id)
        async for chunk in response.content.iter_any():
            try:
                events = parser.receive_data(chunk)
            except EventTooLong as error:
                raise Failure(str(error)) from None
            for event in events:
                reason = self._take(event)
                if reason is not None:
                    return reason
            # Only now: what is printed is what the id covers.
            self._last_id = parser.last_event_id
            if parser.retry is not None:
                self._least_wait = min(parser.retry / 1000, _LAST_WAIT)
            if events:
                self._wait = min(_FIRST_WAIT, self._least_wait)
                sys.stdout.flush()
        return "connection closed"

    def _take(self, event: ServerSentEvent) -> str | None:
        """Print an event; returns a reason when the gateway says that it closes."""
        self._last_id = event.id
        if event.event == "gap":
            gap = _decode(event.data)
            complain(f"gap: messages are missing here ({gap.get('reason', 'unknown')})")
            return None
        if event.event == "disconnect":
            refusal = _refusal(event.data)
            if not refusal.retry:
                sys.stdout.flush()
                raise Failure(str(refusal))
            return str(refusal)
        if event.event != "message":
            return None
        _print(event.data, self._envelope)
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                sys.stdout.flush()
                raise _Done
        return None


def _print(data: str, as_envelope: bool) -> None:
    out = sys.stdout.buffer
    if as_envelope:
        out.write(data.encode() + b"\n")
        return
    envelope = _decode(data)
    if "base64" in envelope:
        out.write(base64.b64decode(str(envelope["base64"])) + b"\n")
    else:
        out.write(str(envelope.get("body", "")).encode() + b"\n")


def _decode(data: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError:
        raise Failure(f"the gateway sent no envelope but {data[:80]!r}") from None


def _refusal(data: str) -> Refusal:
    try:
        return msgspec.json.decode(data, type=Refusal)
    except msgspec.DecodeError:
        return Refusal(data[:200] or "disconnected", retry=True)
