"""A STOMP 1.2 client for tests with very many sessions: one coroutine reads each connection.

Written from the STOMP 1.2 specification and not with the gateway's code.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from tests.support.sinks import eventually

PATIENCE = 120.0  # seconds; what only a broken test waits for


@dataclass(frozen=True, eq=False)
class StompFrame:
    """One frame from the server."""

    command: str
    headers: dict[str, str]
    body: str


class StompRefused(Exception):
    """An ERROR answered what was asked; `frame` is it."""

    def __init__(self, frame: StompFrame) -> None:
        super().__init__(f"{frame.headers} {frame.body}")
        self.frame = frame


class StompClient:
    """One session over plain TCP; `messages` by subscription id, in order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._answers: dict[str, asyncio.Future[StompFrame]] = {}
        self.messages: dict[str, list[StompFrame]] = {}
        # Called with each message of a subscription, as it comes.
        self.on_message: dict[str, Callable[[StompFrame], None]] = {}
        self.errors: list[StompFrame] = []
        self.ended = False
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(
        cls,
        address: tuple[str, int],
        login: tuple[str, str] = ("guest", "guest"),
        host: str | None = None,
    ) -> StompClient:
        """Connect and log in; raises StompRefused."""
        client = cls(*await asyncio.open_connection(*address))
        headers = {"accept-version": "1.2", "login": login[0], "passcode": login[1]}
        if host is not None:
            headers["host"] = host
        answer = client._expect("")
        client.send("CONNECT", headers)
        try:
            await client._answered(answer)
        except BaseException:
            await client.close()
            raise
        return client

    async def __aenter__(self) -> StompClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    # -- to the server --------------------------------------------------------------------

    def send(self, command: str, headers: dict[str, str], body: str = "") -> None:
        """Send a frame and wait for nothing."""
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        self._writer.write(f"{command}\n{lines}\n{body}\0".encode())

    async def ask(self, command: str, headers: dict[str, str], body: str = "") -> StompFrame:
        """Send a frame and return its RECEIPT; raises StompRefused for its ERROR."""
        receipt = f"r{next(self._numbers)}"
        answer = self._expect(receipt)
        self.send(command, {**headers, "receipt": receipt}, body)
        return await self._answered(answer)

    async def subscribe(self, destination: str, id: str = "1", **headers: str) -> StompFrame:
        """Subscribe; underscores in header names stand for hyphens."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.ask("SUBSCRIBE", {"destination": destination, "id": id, **more})

    async def ack(self, message: StompFrame) -> None:
        await self.ask("ACK", {"id": message.headers["ack"]})

    # -- from the server ------------------------------------------------------------------

    def bodies(self, id: str = "1") -> list[str]:
        return [each.body for each in self.messages.get(id, [])]

    async def until(self, body: str, id: str = "1") -> None:
        """Wait for a message with this body."""

        def there() -> bool:
            assert not self.ended, self.errors
            return body in self.bodies(id)

        await eventually(there, f"{body!r} among {self.bodies(id)[-5:]}", PATIENCE)

    def pause(self) -> None:
        """Stop reading: the kernel's buffers fill, and then the server's."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def resume(self) -> None:
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def close(self) -> None:
        """Go without a word."""
        self._writer.transport.abort()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def _expect(self, receipt: str) -> asyncio.Future[StompFrame]:
        made = self._answers[receipt] = asyncio.get_running_loop().create_future()
        return made

    async def _answered(self, answer: asyncio.Future[StompFrame]) -> StompFrame:
        frame = await asyncio.wait_for(answer, PATIENCE)
        if frame.command == "ERROR":
            raise StompRefused(frame)
        return frame

    async def _read(self) -> None:
        try:
            while True:
                self._take(_parse(await self._reader.readuntil(b"\0")))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended = True
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError(f"closed, after {self.errors}"))

    def _take(self, frame: StompFrame) -> None:
        match frame.command:
            case "MESSAGE":
                id = frame.headers["subscription"]
                self.messages.setdefault(id, []).append(frame)
                if id in self.on_message:
                    self.on_message[id](frame)
                return
            case "CONNECTED":
                receipt = ""
            case "RECEIPT":
                receipt = frame.headers["receipt-id"]
            case _:
                self.errors.append(frame)
                receipt = frame.headers.get("receipt-id", "")
        answer = self._answers.pop(receipt, None)
        if answer is not None and not answer.done():
            answer.set_result(frame)


def _parse(data: bytes) -> StompFrame:
    head, _, body = data.lstrip(b"\r\n")[:-1].partition(b"\n\n")
    command, *lines = head.decode().split("\n")
    pairs = [line.partition(":") for line in lines]
    return StompFrame(command, {name: value for name, _, value in pairs}, body.decode())
