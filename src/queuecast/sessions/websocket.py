"""Plain WebSocket sessions, bare and enveloped (docs/protocols.md).

Bare (`/ws/topic/prices`): each frame in is published to the destination, each message out is a
frame. Enveloped (`?envelope=json`, or several destinations): JSON objects both ways; one that
comes in has exactly one of `publish`, `ack`, `nack`, `subscribe`, `unsubscribe`.

A browser cannot read the status of a failed handshake, so refusals are accepted and at once
closed with a code and a reason (disconnect.py).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial

from ..codecs import websocket as frames
from ..codecs.deflate import DeflateParser
from ..codecs.websocket_handshake import handshake_response
from ..destination import Destination
from ..disconnect import BAD_REQUEST, PROTOCOL_ERROR, TIMEOUT, Disconnect, for_error
from ..errors import BadRequest, QueuecastError, Unavailable
from ..message import Properties
from ..position import LIVE, Position, Start
from .commands import Commands
from .encodings import WebSocketEncoding
from .envelope import encode_json
from .publisher import PublishingSession
from .request import SubscribeRequest
from .services import Services, Transport

logger = logging.getLogger(__name__)

# Seconds that a client has to answer our close frame before the socket is closed (RFC 6455,
# section 7.1.1: a server should close first, but a reset would destroy the frame on its way).
CLOSE_WITHIN = 2.0


class WebSocketSession(PublishingSession):
    """One plain WebSocket.

    With permessage-deflate the messages of feeds are compressed, once per cohort. Those of queues
    and our answers are not, as the RFC allows: each would be compressed for one client alone.
    """

    __slots__ = (
        "_alive",
        "_closing",
        "_commands",
        "_events",
        "_leaving",
        "_open",
        "_parser",
        "_reading",
        "_request",
        "_target",
        "busy",
    )

    def __init__(
        self,
        services: Services,
        transport: Transport,
        request: SubscribeRequest,
        *,
        key: str,
        extension: str | None = None,
    ) -> None:
        """extension: what deflate.negotiate answers to the client's offers."""
        super().__init__(services, transport, request.identity)
        limits = services.limits
        bare = request.in_path and not request.envelope
        # An envelope is larger than the body in it.
        parser = frames.WebSocketParser if extension is None else DeflateParser
        self._parser = parser(limits.message if bare else limits.frame)
        # Events not handled yet: those of one read at the most, because reading pauses.
        self._events: deque[frames.Event] | None = None
        self._request: tuple[SubscribeRequest, str, str | None] | None = (request, key, extension)
        self._target = request.destinations[0]
        self._commands: Commands | None = None
        # The reason to close with, once the publishes under way are answered.
        self._leaving: Disconnect | None = None
        self._alive = 2
        self._open = False
        self._closing = False
        self._reading = True
        self.busy = False

    @property
    def deflate(self) -> bool:
        """Whether permessage-deflate was negotiated."""
        return isinstance(self._parser, DeflateParser)

    def start(self) -> None:
        assert self._request is not None
        (request, key, extension), self._request = self._request, None
        self._hold_reading()
        self.spawn(partial(self._begin, request, key, extension), "WebSocket")

    async def _begin(self, request: SubscribeRequest, key: str, extension: str | None) -> None:
        services = self.services
        opening = handshake_response(key, headers=request.cors, extension=extension)
        bare = request.in_path and not request.envelope
        try:
            if bare and request.ack:
                raise BadRequest("ack=client needs the envelope", "add envelope=json")
            if not bare:
                self._commands = Commands(self)
            await services.runtime.within(
                services.limits.live_within, self._subscribe_all(request, bare)
            )
        except (TimeoutError, QueuecastError) as error:
            if isinstance(error, TimeoutError):
                error = Unavailable("the subscription is not live yet: the broker does not answer")
            self.write(opening)
            self._open = True
            self.disconnect(for_error(error))
            return
        self.write(opening)
        self._open = True
        if self._commands is not None:
            self._commands.announce()
        for subscription in self.subscriptions:
            subscription.flow()
        for work in self.work:
            work.flow()
        # Frames that came right behind the handshake: their sender's own echo is not missed.
        self.process()

    async def _subscribe_all(self, request: SubscribeRequest, bare: bool) -> None:
        starts = _starts(request)
        for destination in request.destinations:
            if self._commands is not None:
                await self._commands.open(
                    destination,
                    starts.get(destination, LIVE),
                    ack=request.ack,
                    prefetch=request.prefetch,
                )
            elif destination.is_shared:
                encoding = WebSocketEncoding(deflate=self.deflate)
                await self.subscribe((destination,), encoding, request.start)
            else:
                await self.consume(
                    destination, WebSocketEncoding(), ack=False, prefetch=request.prefetch
                )

    # -- frames in ------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        self._alive = 2
        events = self._parser.receive_data(data)
        if self._closing:
            ended = any(isinstance(event, (frames.Close, frames.Fault)) for event in events)
            # Large messages instead of the answer to our close are not worth inflating.
            if ended or self._parser.pending:
                self.transport.close()
            return
        if self._events is None:
            self._events = deque(events)
            self.process()
        else:
            self._events.extend(events)

    def process(self) -> None:
        """Handle what has come, in order, until something must wait."""
        events = self._events
        while events and self._takes(events[0]):
            self._handle(events.popleft())
        if not events or self.closed:
            self._events = None
            if self._parser.pending and not self.closed:
                # In a turn of its own: others' bytes are not kept waiting while we inflate.
                self.services.runtime.call_soon(self._go_on)
        self.update_reading()

    def _go_on(self) -> None:
        """Parse what a read left; some other call may have done it already."""
        if self._parser.pending and self._events is None and not self.closed:
            self._events = deque(self._parser.receive_data(b""))
            self.process()

    def _takes(self, event: frames.Event) -> bool:
        # Not while it does not read either: the answers would gather here.
        if not self._open or self.busy or self.paused or self.closed:
            return False
        if isinstance(event, frames.Close):
            # Our answer to it says that what was sent before it has been published.
            return self.publishing == 0
        return not self.full

    def _handle(self, event: frames.Event) -> None:
        match event:
            case frames.Text() | frames.Binary():
                self._message(event)
            case frames.Ping():
                self.write(frames.pong_frame(event.data))
            case frames.Pong():
                pass
            case frames.Close():
                self._answer_close(event.code)
            case frames.Fault():
                reason = PROTOCOL_ERROR._replace(code=event.code, text=event.reason)
                self.disconnect(reason)

    def _message(self, event: frames.Text | frames.Binary) -> None:
        data = event.data
        if self._commands is not None:
            try:
                self._commands.receive(data)
            except BadRequest as error:
                self.disconnect(for_error(error))
            except RecursionError:
                # Parsed at the last level of depth that the stack has, and then repeated to it.
                self.disconnect(BAD_REQUEST.because("an envelope is not nested that deeply"))
            return
        body = data.encode() if isinstance(data, str) else data
        self.publish(self._target, body, Properties(persistent=True), self._published)

    def _published(self, error: QueuecastError | None) -> None:
        if error is not None:
            self.disconnect(for_error(error))

    def publish_answered(self) -> None:
        if self._leaving is not None and self.publishing == 0:
            self._close_with(self._leaving)
        else:
            self.process()

    def _answer_close(self, code: int) -> None:
        self._closing = True
        self.end()
        # Our close frame repeats the client's code (RFC 6455 section 5.5.1).
        self.write(frames.close_frame(code))
        self.transport.close()

    # -- backpressure ---------------------------------------------------------------------

    def update_reading(self) -> None:
        """Read from the client only while it reads from us and we are not behind with it.

        Otherwise one that sends and never reads would fill the memory with answers.
        """
        wanted = self._closing or not (
            not self._open or self.busy or self.paused or self._parser.pending or self.full
        )
        if wanted == self._reading or self.transport.is_closing():
            return
        if wanted:
            self._reading = True
            self.transport.resume_reading()
        else:
            self._hold_reading()

    def _hold_reading(self) -> None:
        self._reading = False
        self.transport.pause_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.update_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.process()

    # -- the rest of the connection's calls -----------------------------------------------

    def send_json(self, notice: object) -> None:
        """Write one JSON object as a text frame; nothing after a close frame."""
        if not self._closing and not self.transport.is_closing():
            self.write(frames.text_frame(encode_json(notice)))

    def heartbeat(self, now: float) -> None:
        if self._leaving is not None:
            # The broker has not confirmed for so long: the client shall try elsewhere.
            self._close_with(self._leaving)
            return
        if not self._open or self.paused or self._closing:
            return
        if self._alive == 0 and self._reading:
            self.disconnect(TIMEOUT)
            return
        self._alive = max(0, self._alive - 1)
        self.write(frames.ping_frame())
        if self._commands is not None:
            self._commands.tell_positions()

    def disconnect(self, reason: Disconnect) -> None:
        if self._closing or self._leaving is not None:
            return
        stalled = self.paused
        self.end()
        if not self._open or stalled or self.transport.is_closing():
            self._closing = True
            self.transport.abort()
            return
        self._leaving = reason
        if self.publishing == 0:
            self._close_with(reason)

    def _close_with(self, reason: Disconnect) -> None:
        if self._closing:
            return
        self._closing = True
        if self.transport.is_closing():
            return
        _close(self.write, reason)
        self.services.runtime.call_later(CLOSE_WITHIN, self.transport.close)
        self.update_reading()

    def feed_failed(self, subscription: object, error: QueuecastError) -> None:
        if self._commands is None or not self._commands.failed(subscription, error):
            self.disconnect(for_error(error))

    def work_cancelled(self, work: object, error: QueuecastError) -> None:
        if self._commands is None or not self._commands.failed(work, error):
            self.disconnect(for_error(error))


def _starts(request: SubscribeRequest) -> dict[Destination, Start]:
    """Return each shared destination's own start: a composite position is split."""
    shared = request.shared
    position = request.start.position
    if position is None or len(shared) == 1:
        return dict.fromkeys(shared, request.start)
    if len(position) != len(shared):
        raise BadRequest(
            f"the position is of {len(position)} destinations, this request has {len(shared)}",
            "resume with the same list of destinations",
        )
    return {
        destination: Start("since", position=Position((mark,)))
        for destination, mark in zip(shared, position, strict=True)
    }


def refuse(
    transport: Transport,
    key: str,
    error: QueuecastError,
    cors: tuple[tuple[str, str], ...] = (),
) -> None:
    """Accept a WebSocket and close it at once with the reason."""
    transport.write(handshake_response(key, headers=cors))
    _close(transport.write, for_error(error))
    transport.close()


def _close(write: Callable[[bytes], None], reason: Disconnect) -> None:
    write(frames.close_frame(reason.code, reason.text))
