"""The client that sleeps, with the `websockets` package: prints its story as it grows.

Run as `python -m benchmarks.sleeper.client URL DESTINATION`. It resumes by its position when its
connection ends, as queuecast.js does. A line on its standard output is the whole story so far.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any
from urllib.parse import quote, urlencode

import websockets
from websockets.asyncio.client import connect

# Seconds between two lines, and before a connection that ended is made again.
_PAUSE = 0.1


class Client:
    """One subscription that goes on where it was."""

    def __init__(self, url: str, destination: str) -> None:
        self._url = f"ws{url.removeprefix('http')}/ws{quote(destination)}"
        self._position = ""
        self._run: list[int] | None = None
        self.connections = 0
        self.story: list[list[int] | str] = []

    async def follow(self) -> None:
        """Read for ever."""
        while True:
            since = {"since": self._position} if self._position else {}
            query = urlencode({"envelope": "json", **since})
            try:
                async with connect(f"{self._url}?{query}", compression=None, proxy=None) as ws:
                    self.connections += 1
                    async for text in ws:
                        self._take(json.loads(text))
            except (websockets.WebSocketException, OSError):
                await asyncio.sleep(_PAUSE)

    def _take(self, said: dict[str, Any]) -> None:
        if "error" in said:
            raise RuntimeError(said["error"])
        self._position = said.get("position", self._position)
        if "gap" in said:
            self._run = None
            self.story.append(said["gap"]["reason"])
        elif "body" in said:
            number = int(said["body"][1:12])
            if self._run is not None and number == self._run[1] + 1:
                self._run[1] = number
            else:
                self._run = [number, number]
                self.story.append(self._run)

    async def tell(self) -> None:
        """Print the story whenever it has grown."""
        told = ""
        while True:
            text = json.dumps({"connections": self.connections, "story": self.story})
            if text != told:
                print(text, flush=True)
                told = text
            await asyncio.sleep(_PAUSE)


async def main() -> None:
    client = Client(sys.argv[1], sys.argv[2])
    async with asyncio.TaskGroup() as group:
        group.create_task(client.follow())
        group.create_task(client.tell())


if __name__ == "__main__":
    asyncio.run(main())
