"""A connection that begins with a small publish, served without aiohttp as long as such follow.

The law of a connection: one request after another, each answered when the broker has taken it
and before the next one is published, so that the order of messages is that of the requests
(RFC 9112 section 9.3.2). Requests that came in one read are answered with one write, as far as
publishes end at once. The first request that has no plan goes to aiohttp with everything behind
it, for good.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import TYPE_CHECKING

from ..auth.identity import ANONYMOUS
from ..codecs.http1 import HeadError, HeadParser
from ..errors import BadRequest, QueuecastError
from . import answers
from .answers import Answer
from .plan import Plan, Request
from .publish import Wanted

if TYPE_CHECKING:
    from .posts import Posts

logger = logging.getLogger(__name__)

# Bytes kept for a client whose turn it is not: its publish is not confirmed yet, or it does not
# read its answers. Beyond them it is read no more.
_AHEAD = 64 * 1024
_POST = b"POST "
_END = b"\r\n\r\n"


class State(enum.IntEnum):
    """What is waited for: a request, the rest of its head or body, our own doing, the end."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    BUSY = 3
    CLOSING = 4


class Poster(asyncio.Protocol):
    """One connection."""

    __slots__ = (
        "_at",
        "_counted",
        "_data",
        "_ended",
        "_gone",
        "_more",
        "_needed",
        "_paused",
        "_posts",
        "_request",
        "_stopped",
        "_transport",
        "state",
    )

    def __init__(self, posts: Posts, transport: asyncio.Transport, request: Request) -> None:
        """request: what the first one is known to be."""
        self.state = State.IDLE
        self._posts = posts
        self._transport = transport
        # The last one: the next is likely to begin with the same bytes. None after a refusal.
        self._request: Request | None = request
        # What came: from _at on not served yet, with _more behind it; and how much is needed to
        # go on. Bounded by one request, or _AHEAD, and one read.
        self._data = b""
        self._at = 0
        self._more = bytearray()
        self._needed = 0
        # Of it, what Uploads knows of.
        self._counted = 0
        # The client: does not read, is read no more, has sent all it will, is served no more.
        self._paused = False
        self._stopped = False
        self._ended = False
        self._gone = False

    # -- the transport's calls ------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._gone:
            return
        if self._at == len(self._data) and not self._more:
            self._data, self._at = data, 0
        else:
            self._more += data
        if self._is_held:
            self._hold()
        elif len(self._data) - self._at + len(self._more) >= self._needed:
            self._serve()
        elif not self._hold():
            self._hand_over()

    def eof_received(self) -> bool:
        # Who has said all may still listen: what it asked for is answered first.
        self._ended = True
        return self._is_held

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self.state is not State.BUSY and not self._gone:
            self._serve()

    def connection_lost(self, exc: Exception | None) -> None:
        self._posts.sockets.leave()
        self._leave()

    # -- requests -------------------------------------------------------------------------

    @property
    def _is_held(self) -> bool:
        """Whether nothing more may be served now."""
        return self._paused or self.state is State.BUSY

    def _serve(self) -> None:
        """Serve what came, as far as that goes, and write all answers at once."""
        if self._more:
            self._data = self._data[self._at :] + bytes(self._more)
            self._at = 0
            self._more.clear()
        found: list[bytes] = []
        following = self._advance(found)
        if found:
            self._transport.write(found[0] if len(found) == 1 else b"".join(found))
        if following is State.CLOSING:
            self.close()
        elif self._paused and following is not State.BUSY:
            # Whatever follows has to wait; aiohttp would not even know that the client does not
            # read, nor can the client say the rest of a request while we do not.
            self._wait(State.IDLE, afresh=True)
        elif following is None:
            self._hand_over()
        else:
            self._wait(following, afresh=bool(found))

    def _advance(self, found: list[bytes]) -> State | None:
        """Publish request after request; their answers are added to `found`.

        Returns what is to be waited for then, None when what follows is not for us.
        """
        posts = self._posts
        publish_at_once = posts.services.publish_at_once
        data, size = self._data, len(self._data)
        for _ in range(posts.turn):
            start = self._at
            if start == size:
                return State.IDLE
            request = self._request
            if request is None or not data.startswith(request.head, start):
                read = self._read(data, start)
                if not isinstance(read, Request):
                    return read
                request = self._request = read
            head, length, plan = request
            end = start + length
            if end > size:
                self._needed = length
                return State.BODY
            if not posts.uploads.has_room(length - self._counted):
                return None  # there it is said
            self._at = end
            wanted = plan.wanted
            if isinstance(wanted, Answer):
                found.append(posts.answer(wanted, plan))
                # The same once more is a refusal of its own, with its line in the log.
                self._request = None
            else:
                body = data[start + len(head) : end]
                try:
                    if not publish_at_once(
                        ANONYMOUS,
                        wanted.destination,
                        body,
                        wanted.properties,
                        mandatory=wanted.mandatory,
                    ):
                        work = self._publish(plan, wanted, body)
                        posts.services.runtime.spawn(work, "publish")
                        return State.BUSY
                    found.append(posts.published(plan, wanted))
                except QueuecastError as error:
                    found.append(posts.answer(answers.refusal(error), plan))
                except Exception:
                    logger.exception("publishing to %s failed", wanted.destination)
                    found.append(posts.answer(answers.internal(), plan))
            if plan.last or posts.closed:
                return State.CLOSING
        posts.loop.call_soon(self._go_on)
        return State.BUSY

    def _read(self, data: bytes, start: int) -> Request | State | None:
        """Return the request that begins there, what it lacks, or None when it is not for us."""
        limits, plans = self._posts.limits, self._posts.plans
        if not data.startswith(_POST, start) and not _POST.startswith(data[start : start + 5]):
            return None
        end = data.find(_END, start, start + limits.head)
        if end < 0:
            if data.count(b"\n", start) != data.count(b"\r\n", start):
                return None  # lines that end in LF alone never end a head: it is said at once
            held = len(data) - start
            self._needed = held + 1
            return State.HEAD if held < limits.head else None
        raw = data[start : end + len(_END)]
        if (known := plans.known(raw)) is not None:
            return known
        try:
            head = HeadParser(limits.head, limits.headers).receive_data(raw)
            if head is None or head.rest:
                return None  # it ends elsewhere for others
            return plans.read(head, raw, self._transport)
        except HeadError:
            return None  # there it is explained
        except Exception:
            logger.exception("reading the head of a publish failed")
            return None

    async def _publish(self, plan: Plan, wanted: Wanted, body: bytes) -> None:
        """Publish where the broker has to be waited for; it does not end with the connection."""
        posts = self._posts
        try:
            await posts.services.publish_once(
                ANONYMOUS, wanted.destination, body, wanted.properties, mandatory=wanted.mandatory
            )
            answer = posts.published(plan, wanted)
        except QueuecastError as error:
            answer = posts.answer(answers.refusal(error), plan)
        except Exception:
            logger.exception("publishing to %s failed", wanted.destination)
            answer = posts.answer(answers.internal(), plan)
        if self._gone:
            return
        self._transport.write(answer)
        if plan.last or posts.closed:
            self.close()
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take the next request, after a publish or a turn of the loop."""
        if self._gone:
            return
        try:
            if self._paused:
                self._wait(State.IDLE, afresh=True)
            else:
                self._serve()
        except Exception:
            # Nobody else would end a connection that waits for us.
            logger.exception("serving a publisher failed, its connection is closed")
            self.abort()

    # -- waiting --------------------------------------------------------------------------

    def _wait(self, state: State, *, afresh: bool) -> None:
        """Wait for what comes. afresh: for something else than before."""
        if self._ended and state is not State.BUSY and not self._paused:
            # It sends nothing more, so that what is not whole now will never be.
            self.close()
            return
        if afresh or state is not self.state:
            self._posts.wait(self, state)
        if self._at == len(self._data):
            self._data, self._at = b"", 0
            self._needed = 0
        elif state is State.HEAD or state is State.BODY:
            # A short rest must not keep a long read in memory.
            self._data, self._at = self._data[self._at :], 0
        if not self._hold() and not self._is_held:
            self._hand_over()

    def _hold(self) -> bool:
        """Count what is kept here, and stop reading a client that is far ahead.

        Returns whether there is room for more.
        """
        held = len(self._data) + len(self._more)
        if held == self._counted == 0 and not self._stopped:
            return True
        has_room = self._posts.uploads.hold(held - self._counted)
        self._counted = held
        is_ahead = self._is_held and (held > _AHEAD or not has_room)
        if is_ahead is not self._stopped:
            self._stopped = is_ahead
            self._read_on(not is_ahead)
        return has_room or not held

    def _read_on(self, on: bool) -> None:
        transport = self._transport
        if self._ended or transport.is_closing():
            return
        if on:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _hand_over(self) -> None:
        posts = self._posts
        transport = self._transport
        if posts.closed or transport.is_closing():
            self.close()
            return
        rest = self._data[self._at :] + bytes(self._more)
        if self._stopped:
            self._read_on(True)
        self._leave()
        handler = posts.hand_over()
        transport.set_protocol(handler)
        handler.connection_made(transport)
        handler.begin_within(posts.limits.head_seconds)
        handler.data_received(rest)

    def _leave(self) -> None:
        self._posts.left(self)
        self._end()

    def _end(self) -> None:
        """Serve nothing more, and keep nothing."""
        self._gone = True
        self._posts.uploads.hold(-self._counted)
        self._counted = 0
        self._data, self._at = b"", 0
        self._more.clear()

    # -- ends -----------------------------------------------------------------------------

    def expire(self) -> None:
        """The time is over: between requests, or for the rest of one."""
        posts = self._posts
        if self._paused or self.state is State.CLOSING:
            # Who does not read would keep what is written to it for ever.
            self.abort()
            return
        if self.state is State.IDLE:
            self.close()
            return
        limits = posts.limits
        if self.state is State.HEAD:
            late = f"the request head was not complete after {limits.head_seconds:g} s"
            answer = posts.answer(answers.problem(408, "timeout", late), last=True)
        else:
            error = BadRequest(f"the body was not complete after {limits.body_seconds:g} s")
            plan = self._request.plan if self._request is not None else None
            answer = posts.answer(answers.refusal(error), plan, last=True)
        self._transport.write(answer)
        self.close()

    def close(self) -> None:
        """End the connection once what is written is sent."""
        if self._gone:
            return
        self._end()
        self._posts.wait(self, State.CLOSING)
        self._transport.close()

    def abort(self) -> None:
        """Cut the client off."""
        self._gone = True
        self._transport.abort()
