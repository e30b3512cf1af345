"""A connection whose request is answered at once: whoever takes a socket over has a session."""

from __future__ import annotations

from ..disconnect import Disconnect
from ..sessions.services import Transport


class Refusal:
    """A session that writes one answer and closes."""

    __slots__ = ("_answer", "_transport")

    kind = "refusal"

    def __init__(self, transport: Transport, answer: bytes) -> None:
        self._transport = transport
        self._answer = answer

    def start(self) -> None:
        self._transport.write(self._answer)
        self._transport.close()

    def receive_data(self, data: bytes) -> None:
        """Nothing that the client says now matters."""

    def eof_received(self) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
    def heartbeat(self, now: float) -> None: ...
    def disconnect(self, reason: Disconnect) -> None: ...
    def connection_lost(self) -> None: ...
