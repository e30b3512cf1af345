"""STOMP sessions: the connection's side of the conversation (docs/protocols.md).

Frames are handled in the client's order. One that must wait for the broker (CONNECT, SUBSCRIBE)
holds those behind it back; SUBSCRIBE and DISCONNECT themselves wait until what was sent before
them is confirmed. While something waits, or the client does not read, nothing more is read from
it. What each command does is in stomp_commands.py, what errors become in stomp_errors.py.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import NamedTuple

from .. import __version__
from ..auth.identity import ANONYMOUS, Identity
from ..codecs.stomp import COMMANDS, Frame, Heartbeat
from ..codecs.stomp_encode import encode_frame
from ..codecs.stomp_values import (
    Beats,
    StompError,
    negotiate_heart_beat,
    negotiate_version,
)
from ..disconnect import NORMAL, PROTOCOL_ERROR, TIMEOUT, Disconnect
from ..errors import QueuecastError, Refused
from ..runtime import Timer
from .ordered import OrderedSession
from .services import Account, Services, Transport
from .stomp_commands import Commands
from .stomp_errors import Answer, answer_of, error_headers
from .stomp_framing import Framing
from .stomp_link import Broken, Incoming, Left, Link, Reply

# Who logs in without a login from this very machine, as RabbitMQ has it from the start.
DEFAULT_USER = ("guest", "guest")

# They wait until everything that was sent before them is confirmed.
_BARRIERS = frozenset(("SUBSCRIBE", "DISCONNECT"))
_LF = b"\n"
# Heart-beats of the client that may be missing: RabbitMQ closes after two to three.
_MISSED = 3
# Names longer than that are no AMQP names; the broker's client could not even send them.
_LONGEST_NAME = 255


class HttpLogin(NamedTuple):
    """The login of a client's HTTP request, None when it had none; not valid: unreadable."""

    login: tuple[str, str] | None
    valid: bool = True


class Peer(NamedTuple):
    """Where a client is. loopback: on this machine. names: what it may have called us.

    A `host` header that is one of the names (lower case) means the default virtual host.
    login: what counts instead of the frames' login and passcode, if they are to be ignored.
    """

    loopback: bool
    names: frozenset[str] = frozenset()
    login: HttpLogin | None = None


class StompSession(OrderedSession[Incoming]):
    """One STOMP conversation."""

    __slots__ = (
        "_account",
        "_commands",
        "_expect",
        "_expecting",
        "_heard",
        "_link",
        "_login_timer",
        "_peer",
        "_sending",
        "_silent",
        "id",
        "version",
    )

    def __init__(self, services: Services, transport: Transport, link: Link, peer: Peer) -> None:
        super().__init__(services, transport, ANONYMOUS)
        self.id = f"session-{secrets.token_urlsafe(12)}"
        self.version = ""
        self._link = link
        self._peer = peer
        self._commands = Commands(self)
        self._account: Account | None = None
        self._login_timer: Timer | None = None
        self._sending: Timer | None = None
        self._expecting: Timer | None = None
        self._expect = 0.0
        self._heard = False
        self._silent = 0

    @property
    def kind(self) -> str:
        return self._link.kind

    @property
    def framing(self) -> Framing:
        """How frames lie on this connection."""
        return self._link.framing

    def start(self) -> None:
        opening = self._link.opening()
        if opening:
            self.write(opening)
        runtime = self.services.runtime
        self._login_timer = runtime.call_later(self.services.limits.login, self._login_late)

    # -- frames in ------------------------------------------------------------------------

    @property
    def pending(self) -> bool:
        return self._link.pending

    def parse(self, data: bytes) -> list[Incoming]:
        self._heard = True
        return self._link.receive_data(data)

    def receive_parting(self, data: bytes) -> None:
        if self._link.bare:
            return
        events = self._link.receive_data(data)
        # Large messages instead of the answer to our ending are not worth inflating.
        if self._link.pending or any(isinstance(event, (Left, Broken)) for event in events):
            self.transport.close()

    def is_barrier(self, event: Incoming) -> bool:
        return isinstance(event, Left) or (isinstance(event, Frame) and event.command in _BARRIERS)

    def handle(self, event: Incoming) -> None:
        match event:
            case Frame():
                self._frame(event)
            case Heartbeat():
                pass
            case Reply():
                self.write(event.data)
            case Left():
                self.answer_leave(event.data)
            case Broken():
                # As at RabbitMQ without an ERROR: on a WebSocket the reason can be read.
                self._leave(b"", event.code, event.reason)

    def _frame(self, frame: Frame) -> None:
        # Not a heart-beat: libraries send those whatever becomes of the messages.
        self.alive()
        if self.version == "1.0":
            frame = frame.trimmed()
        try:
            if frame.command in ("CONNECT", "STOMP"):
                self._connect(frame)
            elif self._account is None and self._is_foreign(frame):
                self._leave(b"", PROTOCOL_ERROR.code, "this is no STOMP")
            elif self._account is None:
                raise StompError("Illegal command", "You must log in using CONNECT first\n")
            else:
                self._commands.handle(frame)
        except (StompError, QueuecastError) as error:
            self.answer_error(error, frame)

    def _is_foreign(self, frame: Frame) -> bool:
        """Tell whether another protocol speaks: a browser's HTTP, for one.

        Any web page can make its visitor's browser post to a port on the visitor's own machine,
        with a body of its choice: what follows such a head must not be taken for a conversation.
        """
        return self._link.bare and frame.command not in COMMANDS

    # -- logging in -----------------------------------------------------------------------

    def _connect(self, frame: Frame) -> None:
        if self._account is not None:
            raise StompError("Illegal command", "You are logged in already\n")
        version = negotiate_version(frame.headers.get("accept-version"))
        if version == "1.0":
            frame = frame.trimmed()
        beats = negotiate_heart_beat(frame.headers.get("heart-beat"))
        user, passcode = self._credentials(frame)
        host = frame.headers.get("host") or None
        if host is not None and plain_host(host) in self._peer.names:
            host = None
        if host is not None and len(host.encode()) > _LONGEST_NAME:
            raise StompError("Bad CONNECT", "The virtual host's name is too long\n")
        account = self.services.recall(user, passcode, host, loopback=self._peer.loopback)
        if account is not None:
            self._logged_in(account, version, beats)
            return
        # What the client says after it waits until this is answered.
        self.busy = True
        self.spawn(partial(self._log_in, frame, version, beats, user, passcode, host), "log in")

    def _credentials(self, frame: Frame) -> tuple[str, str]:
        user, passcode = frame.headers.get("login"), frame.headers.get("passcode")
        http = self._peer.login
        if http is not None:
            if not http.valid:
                raise StompError("Bad CONNECT", "The Authorization header is not HTTP Basic\n")
            user, passcode = http.login or (None, None)
        if user is None and passcode is None and self._peer.loopback:
            return DEFAULT_USER
        if user is None or passcode is None:
            raise StompError("Bad CONNECT", "Missing login or passcode header(s)\n")
        if len(user.encode()) > _LONGEST_NAME:
            raise StompError("Bad CONNECT", "The login is too long\n")
        return user, passcode

    async def _log_in(
        self,
        frame: Frame,
        version: str,
        beats: Beats,
        user: str,
        passcode: str,
        host: str | None,
    ) -> None:
        try:
            account = await self.services.login(user, passcode, host, loopback=self._peer.loopback)
        except Refused as error:
            self.answer_error(StompError("Bad CONNECT", f"{error.text}\n"), frame)
        except QueuecastError as error:
            self.answer_error(error, frame)
        else:
            self._logged_in(account, version, beats)
        finally:
            self.busy = False
            self.process()

    def _logged_in(self, account: Account, version: str, beats: Beats) -> None:
        if self.closed:
            account.leave()
            return
        self._account = account
        self.services = account.services
        self.identity = Identity(account.user)
        self.version = version
        self._link.authenticated()
        self._cancel(self._login_timer)
        headers = [
            ("version", version),
            ("session", self.id),
            ("heart-beat", str(beats)),
            ("server", f"Queuecast/{__version__}"),
        ]
        self.send("CONNECTED", headers)
        self._start_beats(beats)

    def _login_late(self) -> None:
        # Silently, as at RabbitMQ; one whose login is under way had its time too.
        if self._account is None:
            self._leave(b"", NORMAL.code, "nobody logged in")

    # -- frames out -----------------------------------------------------------------------

    def send(self, command: str, headers: list[tuple[str, str]], body: bytes = b"") -> None:
        """Write a frame; nothing once the connection is closing."""
        self.write_open(self._wrapped(command, headers, body))

    def write_open(self, data: bytes) -> None:
        """Write whole frames, if there are any; nothing once the connection is closing."""
        if data and not self.closing and not self.transport.is_closing():
            self.write(data)

    def _wrapped(self, command: str, headers: list[tuple[str, str]], body: bytes = b"") -> bytes:
        return self.framing.wrap_any(encode_frame(command, headers, body))

    def receipt(self, frame: Frame, *more: tuple[str, str]) -> None:
        """Answer a frame that asked for a receipt."""
        self.write_open(self.receipt_of(frame, *more))

    def receipt_of(self, frame: Frame, *more: tuple[str, str]) -> bytes:
        """Return the answer of a frame that asked for a receipt, b"" for others."""
        receipt = frame.headers.get("receipt")
        if receipt is None:
            return b""
        return self._wrapped("RECEIPT", [("receipt-id", receipt), *more])

    def answer_error(self, error: StompError | QueuecastError, frame: Frame) -> None:
        """Answer a frame that failed; what AMQP closes a channel for ends the connection."""
        answer = answer_of(error)
        self._send_error(answer, frame.headers.get("receipt"))

    def subscription_failed(self, id: str | None, error: QueuecastError) -> None:
        """Tell that one subscription is over; the connection goes on."""
        answer = Answer("Server cancelled subscription", f"{error}\n", False)
        self._send_error(answer, subscription=id)

    def _send_error(
        self, answer: Answer, receipt: str | None = None, subscription: str | None = None
    ) -> None:
        headers = error_headers(answer.message, receipt, subscription)
        body = answer.text.encode("utf-8", "replace")
        if not answer.closes:
            self.send("ERROR", headers, body)
        elif not self.closed:
            self._leave(self._wrapped("ERROR", headers, body), NORMAL.code, answer.message)

    # -- heart-beats ----------------------------------------------------------------------

    def _start_beats(self, beats: Beats) -> None:
        """Begin what was agreed on, in milliseconds."""
        runtime = self.services.runtime
        if beats.send:
            # Twice as often as promised: a beat that is late for a moment is still in time.
            self._sending = runtime.call_later(beats.send / 2000, self._beat, beats.send / 2000)
        if beats.expect:
            self._expect = beats.expect / 1000
            self._expecting = runtime.call_later(self._expect, self._look)

    def _beat(self, interval: float) -> None:
        if self.closed:
            return
        self._sending = self.services.runtime.call_later(interval, self._beat, interval)
        # A client that does not read has bytes of ours waiting for it.
        if not self.paused and not self.transport.is_closing():
            self.write(self.framing.wrap(_LF))

    def _look(self) -> None:
        """See whether the client gave a sign of life."""
        if self.closed:
            return
        # While we do not read, it cannot give one.
        self._silent = 0 if self._heard or not self.reading else self._silent + 1
        self._heard = False
        if self._silent >= _MISSED:
            self._leave(b"", TIMEOUT.code, TIMEOUT.text)
            return
        self._expecting = self.services.runtime.call_later(self._expect, self._look)

    def ping(self) -> bytes:
        return self._link.ping()

    # -- the end --------------------------------------------------------------------------

    @property
    def half_closes(self) -> bool:
        return self._link.bare

    def disconnected(self, frame: Frame) -> None:
        """The client leaves in order: everything that it sent is done."""
        self._leave(self.receipt_of(frame), NORMAL.code, NORMAL.text)

    def disconnect(self, reason: Disconnect) -> None:
        last = b""
        if self._account is not None:
            headers = error_headers(reason.name)
            last = self._wrapped("ERROR", headers, f"{reason.text}\n".encode("utf-8", "replace"))
        self._leave(last, reason.code, reason.text)

    def _leave(self, last: bytes, code: int, reason: str) -> None:
        """End the conversation: answer what is under way, then write `last` and close."""
        self.leave(last + self._link.closing(code, reason))

    def end(self) -> None:
        if self.closed:
            return
        super().end()
        for timer in (self._login_timer, self._sending, self._expecting):
            self._cancel(timer)
        self._login_timer = self._sending = self._expecting = None
        self._commands.clear()
        if self._account is not None:
            self._account.leave()

    @staticmethod
    def _cancel(timer: Timer | None) -> None:
        if timer is not None:
            timer.cancel()

    # -- what can befall a subscription ---------------------------------------------------

    def feed_failed(self, subscription: object, error: QueuecastError) -> None:
        self._commands.failed(subscription, error)

    def work_cancelled(self, work: object, error: QueuecastError) -> None:
        self._commands.failed(work, error)


def plain_host(host: str) -> str:
    """Return a host without its port, in lower case and without a last dot."""
    name = host.lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    return name.removesuffix(".")
