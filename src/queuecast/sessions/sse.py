"""Server-Sent Events: one request, one endless response (WHATWG HTML section 9.2).

The response has no length and ends with the connection (RFC 9112 section 6.3), so that its bytes
carry no framing of their own and all members of a cohort share them.

An EventSource stops for good on any final status other than 200. So only what trying again
cannot mend is answered with a status; while the broker is away the stream is opened and
dropped, and the browser comes back by itself.
"""

from __future__ import annotations

import random
from functools import partial

from ..codecs import sse
from ..codecs.http1 import error_body, response
from ..destination import Destination
from ..disconnect import Disconnect, for_error
from ..errors import BadRequest, QueuecastError, Unavailable
from .base import Session
from .binary import BinaryRules
from .encodings import SseEncoding, naming
from .envelope import encode_json
from .request import SubscribeRequest
from .services import Services, Transport

_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-store\r\n"
    b"X-Accel-Buffering: no\r\n"
    b"Connection: close\r\n"
)


class SseSession(Session):
    """One EventSource."""

    __slots__ = ("_enveloped", "_request", "_streaming")

    kind = "sse"

    def __init__(self, services: Services, transport: Transport, request: SubscribeRequest) -> None:
        super().__init__(services, transport, request.identity)
        self._request: SubscribeRequest | None = request
        self._enveloped = request.envelope
        self._streaming = False

    def start(self) -> None:
        request, self._request = self._request, None
        assert request is not None
        if not self._begin_at_once(request):
            self.spawn(partial(self._begin, request), "SSE")

    def _begin_at_once(self, request: SubscribeRequest) -> bool:
        """Answer what nearly everybody asks for, without a task; returns whether it could."""
        shared = request.shared
        if request.ack or request.verdict or len(shared) != len(request.destinations):
            return False
        subscription = self.subscribe_at_once(
            shared, _encoding(self.services.binary, request, shared), request.start
        )
        if subscription is None:
            return False
        answer = self._head(request) + self._positions() + subscription.begin()
        self._streaming = True
        self.write(answer)
        return True

    async def _begin(self, request: SubscribeRequest) -> None:
        services = self.services
        try:
            check_acks(request)
            await services.runtime.within(services.live_within, self._open(request))
        except (TimeoutError, Unavailable) as error:
            if request.verdict:
                self._refuse(_unavailable(error), request)
                return
            self._streaming = True
            self.write(self._head(request))
            self.disconnect(for_error(_unavailable(error)))
            return
        except QueuecastError as error:
            self._refuse(error, request)
            return
        if request.verdict:
            self._grant(request)
            return
        self._streaming = True
        self.write(self._head(request) + self._positions())
        for subscription in self.subscriptions:
            subscription.flow()
        for work in self.work:
            work.flow()

    async def _open(self, request: SubscribeRequest) -> None:
        if request.shared:
            encoding = _encoding(self.services.binary, request, request.shared)
            await self.subscribe(request.shared, encoding, request.start)
        # A verdict takes nothing; what the broker hands over meanwhile goes back.
        prefetch = 1 if request.verdict else request.prefetch
        for destination in request.work:
            encoding = _encoding(self.services.binary, request, (destination,))
            await self.consume(
                destination, encoding, ack=request.ack, prefetch=prefetch, lease=request.lease
            )

    # -- bytes ----------------------------------------------------------------------------

    def _head(self, request: SubscribeRequest) -> bytes:
        lines = [_HEAD]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in request.cors]
        return b"".join(lines) + b"\r\n" + sse.retry(self.services.retry)

    def _positions(self) -> bytes:
        """Return what gives the client its position before, and between, messages.

        An empty data line and an event type of its own: a bare id would do for browsers, but
        not for every EventSource. With the envelope the data has each destination's own position
        and the seconds to the next event: scripts see no comments. Where a gap is still to be
        told, its event is the first with a position.
        """
        data, position = b"", None
        told = [subscription for subscription in self.subscriptions if subscription.told]
        for subscription in told:  # one, if any: queues have no positions
            position = str(subscription.position())
        if self._enveloped:
            data = encode_json(
                {
                    "heartbeat": self.services.heartbeat,
                    "positions": [
                        str(each) for subscription in told for each in subscription.positions()
                    ],
                }
            )
        if not data and position is None:
            return b""
        return sse.event(data, id=position, event="position")

    def _refuse(self, error: QueuecastError, request: SubscribeRequest) -> None:
        self.write(refusal(error, request.cors))
        self.end()
        self.transport.close()

    def _grant(self, request: SubscribeRequest) -> None:
        positions = [str(each.position()) for each in self.subscriptions if each.told]
        body = encode_json({"code": "ok", "position": positions[0] if positions else None})
        self.write(response(200, _json_headers(request.cors), body))
        self.end()
        self.transport.close()

    # -- the connection's calls -----------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """An EventSource sends nothing after its request; whatever comes is ignored."""

    def heartbeat(self, now: float) -> None:
        if not self._streaming or self.paused:
            return
        live = all(subscription.live for subscription in self.subscriptions)
        self.write(sse.comment() + (self._positions() if live else b""))

    def disconnect(self, reason: Disconnect) -> None:
        if self.closed:
            return
        stalled, streaming = self.paused, self._streaming
        self.end()
        if not streaming or stalled:
            self.transport.abort()
            return
        notice = {"code": reason.name, "text": reason.text, "hint": "", "retry": reason.retry}
        retry = None
        if reason.retry:
            # Each its own: those that are sent away together must not come back together.
            retry = round(self.services.retry * random.uniform(1.0, 2.0))
        self.write(sse.event(encode_json(notice), event="disconnect", retry=retry))
        self.transport.close()


def check_acks(request: SubscribeRequest) -> None:
    """Raise BadRequest where `ack=client` cannot be."""
    if not request.ack:
        return
    if not request.envelope:
        raise BadRequest("ack=client needs the envelope", "add envelope=json")
    if request.shared:
        raise BadRequest(
            f"ack=client is for queues, {request.shared[0].shown} is not one",
            "use a connection of its own for queues",
        )


def refusal(error: QueuecastError, cors: tuple[tuple[str, str], ...] = ()) -> bytes:
    """Return the whole HTTP response that refuses an SSE request, readable by scripts."""
    body = error_body(error.code, error.text, error.hint, error.retry)
    return response(for_error(error).status, _json_headers(cors), body)


def _json_headers(cors: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return (("Content-Type", "application/json"), ("Cache-Control", "no-store"), *cors)


def _unavailable(error: BaseException) -> QueuecastError:
    if isinstance(error, QueuecastError):
        return error
    return Unavailable("the subscription is not live yet: the broker does not answer")


def _encoding(
    rules: BinaryRules, request: SubscribeRequest, destinations: tuple[Destination, ...]
) -> SseEncoding:
    binary = rules.of(*destinations, always=request.binary)
    if not request.envelope:
        return SseEncoding(binary=binary)
    return SseEncoding(naming(*destinations), envelope=True, binary=binary)
