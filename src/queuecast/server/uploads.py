"""Bodies on their way in: bounded one by one, in time, and all together."""

from __future__ import annotations

import asyncio

from aiohttp import HttpVersion11, web

from ..errors import BadRequest, LimitExceeded, TooLarge
from .limits import ServerLimits


class Uploads:
    """Reads the bodies of requests."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._uploading = 0

    async def read(self, request: web.BaseRequest, limit: int, setting: str) -> bytes:
        """Return a request's body; it is never held beyond `limit`, nor longer than its time.

        setting: the one that raises the limit. Raises TooLarge, LimitExceeded, BadRequest.
        """
        too_large = TooLarge(f"the body has more than {limit} bytes", f"{setting} raises it")
        announced = request.content_length
        if announced is not None and announced > limit:
            raise too_large
        if "Expect" in request.headers:
            await _continue(request)
        if (whole := self._at_once(request)) is not None:
            if len(whole) > limit:
                raise too_large
            if not self.has_room(len(whole)):
                raise _full()
            return whole
        size = 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                parts = []
                async for part in request.content.iter_any():
                    # What has come counts, not what was announced: else a few hundred clients
                    # that announce much and send nothing would keep everybody from publishing.
                    size += len(part)
                    self._uploading += len(part)
                    if size > limit:
                        raise too_large
                    if not self.has_room(0):
                        raise _full()
                    parts.append(part)
                return b"".join(parts)
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise BadRequest(f"the body was not complete after {seconds:g} s") from None
        except web.RequestPayloadError as error:
            raise BadRequest(f"malformed body: {error}") from None
        except RuntimeError as error:
            if request.transport is not None:
                raise
            # aiohttp's word for it, where the body had not begun to come.
            raise ConnectionResetError("the client went") from error
        finally:
            self._uploading -= size

    def hold(self, change: int) -> bool:
        """Count bytes that others hold until their request is whole, or no more (negative).

        Returns whether they are within the limit.
        """
        self._uploading += change
        return self.has_room(0)

    def has_room(self, size: int) -> bool:
        """Tell whether so many bytes more may be on their way."""
        return self._uploading + size <= self._limits.uploads

    def _at_once(self, request: web.BaseRequest) -> bytes | None:
        """Return a body that came with its head, as small ones do, None for any other."""
        content = request.content
        announced = request.content_length
        if announced is None or content.total_bytes != announced or content.exception():
            return None
        # Nothing is waited for, so it needs no limit in time.
        return content.read_nowait() if content.is_eof() else None


def _full() -> LimitExceeded:
    return LimitExceeded("too many bodies are on their way in", "try again in a moment")


async def _continue(request: web.BaseRequest) -> None:
    """Tell a client that waits for it to send its body (RFC 9110 section 10.1.1)."""
    if request.headers["Expect"].lower() != "100-continue":
        raise BadRequest("this Expect cannot be met", "only 100-continue is known")
    if request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # It is not the answer: aiohttp asks this whether one has begun.
        request.writer.output_size = 0
