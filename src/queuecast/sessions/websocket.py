"""Plain WebSocket sessions, bare and enveloped (docs/protocols.md).

Bare (`/ws/topic/prices`): each frame in is published to the destination, each message out is a
frame. Enveloped (`?envelope=json`, or several destinations): JSON objects both ways; one that
comes in has exactly one of `publish`, `ack`, `nack`, `subscribe`, `unsubscribe`.

A browser cannot read the status of a failed handshake, so refusals are accepted and at once
closed with a code and a reason (disconnect.py).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from itertools import groupby

from ..codecs import websocket as frames
from ..codecs.deflate import DeflateParser
from ..codecs.websocket_handshake import handshake_response
from ..destination import Destination
from ..disconnect import BAD_REQUEST, PROTOCOL_ERROR, Disconnect, for_error
from ..errors import BadRequest, QueuecastError, Unavailable
from ..message import Properties
from ..position import LIVE, Position, Start
from .commands import Commands
from .encodings import WebSocketEncoding
from .envelope import encode_json
from .ordered import OrderedSession
from .request import SubscribeRequest
from .services import Services, Transport

logger = logging.getLogger(__name__)


class WebSocketSession(OrderedSession[frames.Event]):
    """One plain WebSocket.

    With permessage-deflate the messages of feeds are compressed, once per cohort. Those of queues
    and our answers are not, as the RFC allows: each would be compressed for one client alone.
    """

    __slots__ = (
        "_commands",
        "_open",
        "_parser",
        "_request",
        "_target",
    )

    kind = "websocket"

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
        self._request: tuple[SubscribeRequest, str, str | None] | None = (request, key, extension)
        self._target = request.destinations[0] if bare else None
        self._commands: Commands | None = None
        self._open = False

    @property
    def deflate(self) -> bool:
        """Whether permessage-deflate was negotiated."""
        return isinstance(self._parser, DeflateParser)

    def start(self) -> None:
        assert self._request is not None
        (request, key, extension), self._request = self._request, None
        opening = handshake_response(key, headers=request.cors, extension=extension)
        if self._begin_at_once(request, opening):
            return
        # What comes right behind the handshake waits until the subscriptions are live.
        self.busy = True
        self.update_reading()
        self.spawn(partial(self._begin, request, opening), "WebSocket")

    def _begin_at_once(self, request: SubscribeRequest, opening: bytes) -> bool:
        """Answer what nearly everybody asks for, without a task; returns whether it could."""
        destination = self._target
        if destination is None or request.ack or not destination.is_shared:
            return False
        binary = self.services.binary.of(destination, always=request.binary)
        encoding = WebSocketEncoding(deflate=self.deflate, binary=binary)
        subscription = self.subscribe_at_once((destination,), encoding, request.start)
        if subscription is None:
            return False
        answer = opening + subscription.begin()
        self._open = True
        self.write(answer)
        return True

    async def _begin(self, request: SubscribeRequest, opening: bytes) -> None:
        services = self.services
        bare = request.in_path and not request.envelope
        try:
            if bare and request.ack:
                raise BadRequest("ack=client needs the envelope", "add envelope=json")
            if not bare:
                self._commands = Commands(self)
            await services.runtime.within(services.live_within, self._subscribe_all(request, bare))
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
            if not request.destinations:
                self._commands.beat()  # it needs an answer too: it is open
        for subscription in self.subscriptions:
            subscription.flow()
        for work in self.work:
            work.flow()
        self.busy = False
        # Frames that came right behind the handshake: their sender's own echo is not missed.
        self.process()

    async def _subscribe_all(self, request: SubscribeRequest, bare: bool) -> None:
        starts = _starts(request.shared, request.start)
        for destination in request.destinations:
            binary = self.services.binary.of(destination, always=request.binary)
            if self._commands is not None:
                await self._commands.open(
                    destination,
                    starts.get(destination, LIVE),
                    ack=request.ack,
                    prefetch=request.prefetch,
                    lease=request.lease,
                    binary=request.binary,
                )
            elif destination.is_shared:
                encoding = WebSocketEncoding(deflate=self.deflate, binary=binary)
                await self.subscribe((destination,), encoding, request.start)
            else:
                encoding = WebSocketEncoding(binary=binary)
                await self.consume(destination, encoding, ack=False, prefetch=request.prefetch)

    # -- frames in ------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        return self._parser.pending

    def parse(self, data: bytes) -> list[frames.Event]:
        return self._parser.receive_data(data)

    def receive_parting(self, data: bytes) -> None:
        events = self._parser.receive_data(data)
        ended = any(isinstance(event, (frames.Close, frames.Fault)) for event in events)
        # Large messages instead of the answer to our close are not worth inflating.
        if ended or self._parser.pending:
            self.transport.close()

    def is_barrier(self, event: frames.Event) -> bool:
        # Our answer to it says that what was sent before it has been published.
        return isinstance(event, frames.Close)

    def handle(self, event: frames.Event) -> None:
        match event:
            case frames.Text() | frames.Binary():
                self._message(event)
            case frames.Ping():
                self.write(frames.pong_frame(event.data))
            case frames.Pong():
                pass
            case frames.Close():
                # Our close frame repeats the client's code (RFC 6455 section 5.5.1).
                self.answer_leave(frames.close_frame(event.code))
            case frames.Fault():
                reason = PROTOCOL_ERROR._replace(code=event.code, text=event.reason)
                self.disconnect(reason)

    def _message(self, event: frames.Text | frames.Binary) -> None:
        data = event.data
        # Not a pong: a browser sends those for a page that sleeps.
        self.alive()
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
        assert self._target is not None
        self.publish(self._target, body, Properties(persistent=True), self._published)

    def _published(self, error: QueuecastError | None) -> None:
        if error is not None:
            self.disconnect(for_error(error))

    # -- the rest of the connection's calls -----------------------------------------------

    def send_json(self, notice: object) -> None:
        """Write one JSON object as a text frame; nothing after a close frame."""
        if not self.closing and not self.transport.is_closing():
            self.write(frames.text_frame(encode_json(notice)))

    def ping(self) -> bytes:
        return frames.ping_frame()

    def heartbeat(self, now: float) -> None:
        if not self._open:
            return
        super().heartbeat(now)
        if self._commands is not None and not (self.leaving or self.paused):
            self._commands.beat()
            self._commands.tell_positions()

    def disconnect(self, reason: Disconnect) -> None:
        if self._open:
            self.leave(_close_frame(reason))
        elif not self.leaving:
            self.end()
            self.cut_off()

    def feed_failed(self, subscription: object, error: QueuecastError) -> None:
        if self._commands is None or not self._commands.failed(subscription, error):
            self.disconnect(for_error(error))

    def work_cancelled(self, work: object, error: QueuecastError) -> None:
        if self._commands is None or not self._commands.failed(work, error):
            self.disconnect(for_error(error))


def _starts(shared: tuple[Destination, ...], start: Start) -> dict[Destination, Start]:
    """Return each shared destination's own start: a composite position is split."""
    position = start.position
    if position is None or len(shared) == 1:
        return dict.fromkeys(shared, start)
    parts = position.parts() if position.bounds else [Position((mark,)) for mark in position]
    if len(parts) != len(shared) and not position.bounds:
        # Some have several lanes, which are of one epoch.
        groups = groupby(position, key=lambda mark: mark.epoch)
        parts = [Position(marks) for _, marks in groups]
    if len(parts) != len(shared) and start.otherwise is not None:
        return _starts(shared, start.otherwise)
    if len(parts) != len(shared):
        raise BadRequest(
            f"the position is of {len(parts)} destinations, this request has {len(shared)}",
            "resume with the same list of destinations",
        )
    return {
        destination: replace(start, position=part)
        for destination, part in zip(shared, parts, strict=True)
    }


def refuse(
    transport: Transport,
    key: str,
    error: QueuecastError,
    cors: tuple[tuple[str, str], ...] = (),
) -> None:
    """Accept a WebSocket and close it at once with the reason."""
    transport.write(handshake_response(key, headers=cors))
    transport.write(_close_frame(for_error(error)))
    transport.close()


def _close_frame(reason: Disconnect) -> bytes:
    return frames.close_frame(reason.code, reason.text)
