"""What an enveloped WebSocket's client may say, and what it is answered.

    {"publish": "/topic/chat", "body": "hi", "headers": {…}, "id": 7}  → {"published": 7}
    {"subscribe": "/topic/a", "since": "…", "last": 1}
                                                  → {"subscribed": "/topic/a", "position": "…"}
    {"subscribe": "/queue/b", "ack": "client", "prefetch": 10, "lease": "30s"}
                                                  → {"subscribed": "/queue/b"}
    {"unsubscribe": "/topic/a"}                   → {"unsubscribed": "/topic/a"}
    {"ack": ID}   {"ack": [ID, …]}   {"nack": ID, "requeue": false}    → nothing

What fails is answered {"error": {code, text, hint, retry}, …} together with the words it
answers; only an object that cannot be understood at all closes the connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from ..aliases import concealed
from ..destination import Destination
from ..errors import BadRequest, QueuecastError
from ..hub.subscription import Subscription
from ..position import Start
from .acks import parse_command, settle_all
from .binary import parse_binary
from .encodings import WebSocketEncoding, naming
from .envelope import error_notice
from .lease import parse_lease
from .publishing import body_of, properties_of
from .request import parse_prefetch
from .work import WorkSubscription

if TYPE_CHECKING:
    from .websocket import WebSocketSession

_VERBS = ("publish", "ack", "nack", "subscribe", "unsubscribe")
_FIELDS = {
    "publish": {"publish", "body", "base64", "headers", "id"},
    "ack": {"ack"},
    "nack": {"nack", "requeue"},
    "subscribe": {"subscribe", "since", "last", "ack", "prefetch", "lease", "binary"},
    "unsubscribe": {"unsubscribe"},
}


class Commands:
    """The enveloped side of one WebSocket session."""

    __slots__ = ("_named", "_published", "_session")

    def __init__(self, session: WebSocketSession) -> None:
        self._session = session
        # Bounded by limits.subscriptions.
        self._named: dict[Destination, Subscription | WorkSubscription] = {}
        self._published = 0

    # -- subscriptions --------------------------------------------------------------------

    async def open(
        self,
        destination: Destination,
        start: Start,
        *,
        ack: bool,
        prefetch: int | None,
        lease: float | None = None,
        binary: bool = False,
    ) -> Subscription | WorkSubscription:
        """Subscribe to one destination; raises what the broker raises."""
        if destination in self._named:
            raise BadRequest(f"this connection is subscribed to {destination.shown} already")
        encoding = WebSocketEncoding(
            naming(destination),
            envelope=True,
            deflate=self._session.deflate and destination.is_shared,
            binary=self._session.services.binary.of(destination, always=binary),
        )
        subscription: Subscription | WorkSubscription
        if destination.is_shared:
            if ack or lease is not None:
                raise BadRequest(
                    f"ack=client and lease are for queues, {destination.shown} is not one"
                )
            subscription = await self._session.subscribe((destination,), encoding, start)
        else:
            subscription = await self._session.consume(
                destination, encoding, ack=ack, prefetch=prefetch, lease=lease
            )
        self._named[destination] = subscription
        return subscription

    def announce(self) -> None:
        """Answer the subscriptions of the URL."""
        for destination, subscription in self._named.items():
            self._answer_subscribed(destination, subscription)

    def beat(self) -> None:
        """Give a sign of life that scripts can see, which pings are not, and say when to expect
        the next: seconds."""
        self._session.send_json({"heartbeat": self._session.services.heartbeat})

    def tell_positions(self) -> None:
        """Give the client its present positions (the heartbeat's part)."""
        for destination, subscription in self._named.items():
            if isinstance(subscription, Subscription) and subscription.live:
                self._session.send_json(
                    {"subscription": destination.shown, "position": str(subscription.position())}
                )

    def failed(self, subscription: object, error: QueuecastError) -> bool:
        """Tell that one subscription is over; returns whether it was one of ours."""
        for destination, each in list(self._named.items()):
            if each is subscription:
                del self._named[destination]
                error = concealed(error, (destination,))
                self._session.send_json(
                    {"error": error_notice(error), "unsubscribed": destination.shown}
                )
                return True
        return False

    def _answer_subscribed(
        self, destination: Destination, subscription: Subscription | WorkSubscription
    ) -> None:
        answer = {"subscribed": destination.shown}
        if isinstance(subscription, Subscription) and subscription.told:
            answer["position"] = str(subscription.position())
        self._session.send_json(answer)

    # -- what comes in --------------------------------------------------------------------

    def receive(self, text: str | bytes) -> None:
        """Handle one object; raises BadRequest when it cannot be understood."""
        command = _parse(text)
        verb = _verb(command)
        if verb == "publish":
            # Every one counts, so that a client without ids can count along.
            self._published += 1
            command.setdefault("id", self._published)
        try:
            unknown = set(command) - _FIELDS[verb]
            if unknown:
                allowed = ", ".join(sorted(_FIELDS[verb]))
                raise BadRequest(
                    f"{sorted(unknown)[0]!r} does not belong to {verb}", f"allowed are {allowed}"
                )
            match verb:
                case "publish":
                    self._publish(command)
                case "subscribe":
                    self._subscribe(command)
                case "unsubscribe":
                    self._unsubscribe(command)
                case _:
                    self._settle(command, verb)
        except QueuecastError as error:
            self._answer_error(error, command, verb)

    def _answer_error(self, error: QueuecastError, command: Mapping[str, Any], verb: str) -> None:
        answer = {"error": error_notice(error), verb: command[verb]}
        if verb == "publish":
            answer["id"] = command["id"]
        self._session.send_json(answer)

    def _publish(self, command: dict[str, Any]) -> None:
        destination = self._destination(command, "publish")
        body, is_json = body_of(command)
        headers = command.get("headers", {})
        if not isinstance(headers, dict):
            raise BadRequest("headers is not an object")
        properties = properties_of(headers)
        if is_json and properties.content_type is None:
            properties.content_type = "application/json"

        def answer(error: QueuecastError | None) -> None:
            if error is None:
                self._session.send_json({"published": command["id"]})
            else:
                self._answer_error(error, command, "publish")

        self._session.publish(destination, body, properties, answer)

    def _subscribe(self, command: dict[str, Any]) -> None:
        destination = self._destination(command, "subscribe")
        ack = command.get("ack", "auto")
        if ack not in ("auto", "client"):
            raise BadRequest(f"ack {ack!r} is unknown", "allowed are auto and client")
        start = Start.parse(_text(command, "since"), _text(command, "last"))
        prefetch = parse_prefetch(_text(command, "prefetch"))
        lease = parse_lease(_text(command, "lease"))
        binary = parse_binary(_text(command, "binary"))

        async def subscribe() -> None:
            session = self._session
            try:
                subscription = await self.open(
                    destination,
                    start,
                    ack=ack == "client",
                    prefetch=prefetch,
                    lease=lease,
                    binary=binary,
                )
            except QueuecastError as error:
                self._answer_error(error, command, "subscribe")
            else:
                self._answer_subscribed(destination, subscription)
                subscription.flow()
            finally:
                session.busy = False
                session.process()

        # What the client says after it waits until this is answered.
        self._session.busy = True
        self._session.spawn(subscribe, "subscribe")

    def _unsubscribe(self, command: Mapping[str, Any]) -> None:
        destination = self._destination(command, "unsubscribe")
        subscription = self._named.pop(destination, None)
        if subscription is None:
            raise BadRequest(f"this connection has no subscription to {destination.shown}")
        if isinstance(subscription, Subscription):
            self._session.drop_subscription(subscription)
        else:
            self._session.drop_work(subscription)
        self._session.send_json({"unsubscribed": destination.shown})

    def _settle(self, command: Mapping[str, Any], verb: str) -> None:
        session = self._session
        services = session.services
        asked = parse_command(command, services.limits.settle)
        for id, error in settle_all(services.acks, session.identity, asked):
            self._answer_error(error, {verb: id}, verb)

    def _destination(self, command: Mapping[str, Any], verb: str) -> Destination:
        name = command[verb]
        if not isinstance(name, str):
            raise BadRequest(f"{verb} does not name a destination")
        return self._session.services.resolve(name)


def _parse(text: str | bytes) -> dict[str, Any]:
    try:
        command = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"an envelope is a JSON object: {error}") from None
    if not isinstance(command, dict):
        raise BadRequest("an envelope is a JSON object")
    return command


def _verb(command: Mapping[str, Any]) -> str:
    # `subscribe` has a field called ack as well, so it is asked for first.
    verbs = [verb for verb in _VERBS if verb in command]
    if verbs == ["ack", "subscribe"]:
        return "subscribe"
    if len(verbs) != 1:
        raise BadRequest(
            f"an envelope has exactly one of {', '.join(_VERBS)}, this has {len(verbs)}"
        )
    return verbs[0]


def _text(command: Mapping[str, Any], name: str) -> str | None:
    value = command.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRequest(f"{name} is neither text nor a number")
