"""Publishing with confirms, so that an error concerns only the message that caused it.

Messages go through one confirm channel, in order. RabbitMQ answers a missing exchange or a
refused one by closing the channel, under all messages that are unconfirmed there. So the first
message to an exchange goes through a throw-away channel of its own, and only after its confirm
the others follow through the shared one; messages of one lane (an exchange, or a queue) wait for
it in order. When the shared channel is closed nevertheless (an exchange was deleted, a topic
permission refused), RabbitMQ has ignored everything after the message it names: that is sent
again; those before it have an unknown outcome.
"""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pika.exceptions

from ...destination import Destination, Kind
from ...errors import (
    BadRequest,
    Conflict,
    OutcomeUnknown,
    PublishFailed,
    QueuecastError,
    Refused,
    Unavailable,
    Unroutable,
    Unsupported,
)
from ...message import Properties
from ..background import Background
from .away import AwayQueues
from .confirms import ConfirmChannel, Outgoing, unknown, where
from .connection import Link
from .content import to_amqp
from .failures import ACCESS_REFUSED, NOT_FOUND, Away, away, of_channel, reason
from .lanes import Lane, Lanes
from .probes import PROBES
from .supervisor import Supervisor
from .topology import Topology, ensure_queue

log = logging.getLogger(__name__)

# Unconfirmed messages and bytes: what a broker that stops confirming may cost us.
MAX_UNCONFIRMED = 10_000
MAX_UNCONFIRMED_BYTES = 64 << 20
# Lanes known to be good; clients choose queue names, so this must not grow for ever.
MAX_VERIFIED = 10_000
_IDLE_SENDERS = 4
# Seconds without a confirm after which a queue is looked at, and takes nothing meanwhile.
_SLOW = 10.0

_EXCHANGE_IN_TEXT = re.compile(r"exchange '([^']*)'")
_TOPIC_IN_TEXT = re.compile(r"access to topic '(.*)' in exchange '([^']*)'")


class Publisher:
    """Publishes for the whole gateway over one connection.

    patience: seconds a publish waits for the broker before it is Unavailable.
    confirm_timeout: seconds after which a confirm that has not come is an unknown outcome.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        topology: Topology,
        away: AwayQueues,
        *,
        patience: float,
        confirm_timeout: float,
        max_unconfirmed: int,
        max_unconfirmed_bytes: int,
    ) -> None:
        self._supervisor = supervisor
        self._topology = topology
        self._away = away
        self._patience = patience
        self._confirm_timeout = confirm_timeout
        self._max_unconfirmed = max_unconfirmed
        self._max_bytes = max_unconfirmed_bytes
        self._shared: ConfirmChannel | None = None
        self._link: Link | None = None
        self._background = Background(log)
        self._lanes = Lanes(self._send_head, self._wake)
        self._verified: dict[Lane, None] = {}
        # Exchanges where RabbitMQ has refused a key (topic permissions): each key is a lane.
        self._by_key: set[str] = set()
        # Channels for first messages: in use, and kept for the next.
        self._alone: set[ConfirmChannel] = set()
        self._idle: list[ConfirmChannel] = []
        self._probes = asyncio.Semaphore(PROBES)
        self._unconfirmed = 0
        self._unconfirmed_bytes = 0
        self._changed = asyncio.Event()
        self._draining = False
        self._closing = False

    # The link's life

    async def on_up(self, link: Link) -> None:
        """Open the shared channel on a new link."""
        self._verified.clear()
        self._idle.clear()
        self._link = link
        link.on_blocked = lambda _why: self._wake()
        await self._open_shared(link)
        self._wake()

    async def _open_shared(self, link: Link) -> None:
        shared = await ConfirmChannel.open(link)
        shared.channel.on_closed = lambda why: self._on_shared_closed(shared, why)
        self._shared = shared

    def _on_shared_closed(self, shared: ConfirmChannel, why: BaseException) -> None:
        if self._shared is shared:
            self._shared = None
        items = list(shared.unconfirmed.values())
        shared.unconfirmed.clear()
        culprit = self._culprit(items, why)
        again: list[Outgoing] = []
        for at, item in enumerate(items):
            if item.done.done():
                continue
            if culprit is not None and at > culprit:
                # RabbitMQ ignores what follows on a channel that it closes: never taken.
                again.append(item)
            elif at == culprit:
                item.done.set_exception(of_channel(why, item.exchange))
            else:
                item.done.set_exception(unknown(item, why))
        for item in reversed(again):
            item.returned = None
            self._lanes.add_first(self._lane(item), item)
        link = self._link
        if link is not None and link.is_open and not self._closing:
            log.warning("RabbitMQ closed the publishing channel: %s", reason(why))
            self._background.spawn(self._reopen(link), "reopening the publishing channel")
        self._wake()

    async def _reopen(self, link: Link) -> None:
        try:
            await self._open_shared(link)
        except (QueuecastError, pika.exceptions.AMQPError):
            # Without its channel the connection is of no use: the supervisor makes a new one.
            await link.close()
        self._wake()

    def _culprit(self, items: list[Outgoing], why: BaseException) -> int | None:
        if not isinstance(why, pika.exceptions.ChannelClosedByBroker):
            return None
        if why.reply_code not in (ACCESS_REFUSED, NOT_FOUND):
            return None
        topic = _TOPIC_IN_TEXT.search(why.reply_text)
        exchange = _EXCHANGE_IN_TEXT.search(why.reply_text)
        if topic is not None:
            self._by_key.add(topic[2])
            name, key = topic[2], topic[1]
        elif exchange is not None:
            name, key = exchange[1], None
            if name == "amq.default":
                name = ""
        else:
            return None
        for lane in [lane for lane in self._verified if lane[0] == name]:
            del self._verified[lane]
        for at, item in enumerate(items):
            if item.exchange == name and key in (None, item.key):
                return at
        return None

    # Publishing

    async def publish(
        self, destination: Destination, body: bytes, properties: Properties, mandatory: bool | None
    ) -> None:
        """Publish one message; see the broker interface."""
        if destination.kind is Kind.TEMP_QUEUE:
            raise Unsupported(f"nothing can be published to {destination}")
        exchange, key = destination.exchange, destination.pattern
        # The queue to declare first.
        declare = key if destination.kind is Kind.QUEUE else None
        wanted = destination.names_queue if mandatory is None else mandatory
        attributes = to_amqp(properties)
        user = self._supervisor.user
        if properties.user_id not in (None, user):
            # RabbitMQ would close the channel under everybody.
            raise Refused(f"user_id {properties.user_id!r}", f"the gateway's login is {user!r}")
        if exchange:
            await self._publish(exchange, key, body, attributes, wanted, declare)
            return
        self._away.check(key)
        try:
            await self._publish(exchange, key, body, attributes, wanted, declare)
        except OutcomeUnknown:
            raise
        except PublishFailed as error:
            await self._diagnose(key, error)
            if declare is None or not isinstance(error, Unroutable):
                raise
            # The queue was deleted since it was declared: once more, with a new one.
            self._verified.pop(("", declare), None)
            await self._publish(exchange, key, body, attributes, wanted, declare)
        except Away as error:
            self._away.note(key, error)
            raise
        self._away.used(key)

    async def _diagnose(self, queue: str, error: PublishFailed) -> None:
        """Raise Away if a queue did not take a message because its node is down."""
        try:
            await self._away.ask(queue)
        except Away:
            raise
        except QueuecastError:
            return
        if isinstance(error, Unroutable):
            raise Unavailable(f"the queue {queue!r} was away a moment ago")

    async def _publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        properties: Any,
        mandatory: bool,
        declare: str | None,
    ) -> None:
        if self._draining:
            raise Unavailable("the gateway is closing its connection to RabbitMQ")
        loop = asyncio.get_running_loop()
        now = loop.time()
        item = Outgoing(
            exchange,
            key,
            body,
            properties,
            mandatory,
            declare,
            loop.create_future(),
            now + self._patience,
        )
        lane = self._lane(item)
        shared = self._shared
        ready = lane not in self._lanes and shared is not None and lane in self._verified
        if ready and shared is not None and self._has_room(item):
            self._send(shared, item, now)
        elif self._lanes.has_room(item):
            self._lanes.add(lane, item)
        else:
            raise Unavailable(f"too many publishes wait for RabbitMQ: {self._why()}")
        await item.done

    def _lane(self, item: Outgoing) -> Lane:
        if item.declare is not None:
            return ("", item.declare)
        return (item.exchange, item.key if item.exchange in self._by_key else "")

    def _has_room(self, item: Outgoing) -> bool:
        link = self._link
        return (
            link is not None
            and link.is_open
            and link.blocked is None
            and self._unconfirmed < self._max_unconfirmed
            and (
                self._unconfirmed_bytes + len(item.body) <= self._max_bytes
                or self._unconfirmed == 0
            )
        )

    def _send(self, sender: ConfirmChannel, item: Outgoing, now: float) -> None:
        try:
            sender.send(item, now)
        except (
            UnicodeError,
            pika.exceptions.ShortStringTooLong,
            pika.exceptions.UnsupportedAMQPFieldException,
        ) as error:
            item.done.set_exception(BadRequest(f"the message cannot be written: {error}"))
            return
        except pika.exceptions.AMQPError as error:
            # Raised before anything was written.
            item.done.set_exception(Unavailable(f"RabbitMQ is away: {reason(error)}"))
            return
        if item.counted:
            return
        item.counted = True
        size = len(item.body)
        self._unconfirmed += 1
        self._unconfirmed_bytes += size
        item.done.add_done_callback(lambda _done: self._confirmed(size))

    def _confirmed(self, size: int) -> None:
        self._unconfirmed -= 1
        self._unconfirmed_bytes -= size
        if self._lanes.waiting or self._draining:
            self._wake()

    def _why(self) -> str:
        link = self._link
        if link is None or not link.is_open:
            return self._supervisor.status
        if link.blocked is not None:
            return f"it takes no publishes: {link.blocked}"
        return f"{self._unconfirmed} messages are unconfirmed"

    # The head of a lane

    async def _send_head(self, lane: Lane, item: Outgoing) -> bool:
        """Send the first message that waits in a lane; False to look at the lane again."""
        if self._lane(item) != lane:
            # The exchange turned out to have permissions per key while this waited.
            self._lanes.add(self._lane(item), item)
            return True
        link = await self._room_for(item)
        if lane not in self._verified:
            return await self._send_first(link, lane, item)
        shared = self._shared
        while shared is None:
            await self._wait_change(item)
            shared = self._shared
        if not self._lanes.is_first(lane, item):
            return False
        self._send(shared, item, asyncio.get_running_loop().time())
        return True

    async def _room_for(self, item: Outgoing) -> Link:
        while True:
            link = self._link
            if link is not None and self._has_room(item):
                return link
            await self._wait_change(item)

    async def _wait_change(self, item: Outgoing) -> None:
        left = item.deadline - asyncio.get_running_loop().time()
        if left <= 0 or self._closing:
            raise Unavailable(f"RabbitMQ did not take the message: {self._why()}")
        try:
            async with asyncio.timeout(left):
                await self._changed.wait()
        except TimeoutError:
            return

    async def _send_first(self, link: Link, lane: Lane, item: Outgoing) -> bool:
        """Send the first message of a lane by a channel of its own and wait for the confirm."""
        try:
            # RabbitMQ answers nothing on a connection that it blocks.
            async with asyncio.timeout_at(item.deadline):
                if item.declare is not None:
                    await self._ensure_queue(link, item.declare)
                await self._probes.acquire()
        except TimeoutError:
            raise Unavailable(f"RabbitMQ did not take the message: {self._why()}") from None
        except pika.exceptions.AMQPError as error:
            raise Unavailable(f"RabbitMQ is away: {reason(error)}") from None
        try:
            if link.blocked is not None or not self._lanes.is_first(lane, item):
                return False
            await self._send_alone(link, lane, item)
        except pika.exceptions.AMQPError as error:
            raise Unavailable(f"RabbitMQ is away: {reason(error)}") from None
        finally:
            self._probes.release()
        return True

    async def _ensure_queue(self, link: Link, name: str) -> None:
        try:
            await ensure_queue(link, self._topology.queue(name))
        except Conflict:
            # Somebody's exclusive queue: it cannot be consumed, but messages reach it.
            log.debug("queue %r is exclusive to another connection", name)

    async def _send_alone(self, link: Link, lane: Lane, item: Outgoing) -> None:
        while self._idle and not self._idle[-1].channel.is_open:
            self._idle.pop()
        try:
            async with asyncio.timeout_at(item.deadline):
                sender = self._idle.pop() if self._idle else await ConfirmChannel.open(link)
        except TimeoutError:
            raise Unavailable(f"RabbitMQ did not take the message: {self._why()}") from None
        self._alone.add(sender)
        try:
            self._send(sender, item, asyncio.get_running_loop().time())
            await sender.settled(item)
        finally:
            self._alone.discard(sender)
        if sender.channel.closed.done():
            self._failed_alone(item, sender.channel.closed.result())
            return
        self._verified[lane] = None
        if len(self._verified) > MAX_VERIFIED:
            del self._verified[next(iter(self._verified))]
        if sender.unconfirmed or len(self._idle) >= _IDLE_SENDERS:
            # The caller was cancelled: whatever comes for this message concerns nobody.
            await sender.channel.close()
        else:
            self._idle.append(sender)

    def _failed_alone(self, item: Outgoing, why: BaseException) -> None:
        if item.done.done():
            return
        if not isinstance(why, pika.exceptions.ChannelClosedByBroker):
            item.done.set_exception(unknown(item, why))
            return
        topic = _TOPIC_IN_TEXT.search(why.reply_text)
        if topic is not None:
            self._by_key.add(topic[2])
        item.done.set_exception(of_channel(why, item.exchange))

    # Watching over it

    @property
    def unconfirmed(self) -> int:
        """Publishes that wait for their confirm."""
        return self._unconfirmed

    def _wake(self) -> None:
        """Let everyone who waits look again, in the next tick."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def check_confirms(self) -> None:
        """Give up on confirms that do not come; called once a second.

        A queue without a majority confirms nothing, and the connection is as good as before: that
        one lives is the pulse's to see. What waits in vain has a bound all the same.
        """
        link = self._link
        if link is None or not link.is_open:
            return
        now = asyncio.get_running_loop().time()
        given_up = 0
        for sender in [*self._alone, *([self._shared] if self._shared else [])]:
            for item in sender.unconfirmed.values():
                waited = now - item.sent_at
                if waited < min(_SLOW, self._confirm_timeout):
                    break
                if not (item.exchange or item.slow or link.blocked) and link.answers:
                    item.slow = True
                    why = f"RabbitMQ has not confirmed a message within {waited:.0f} s"
                    self._away.note(item.key, away(item.key, why, dangerous=True))
                if waited < self._confirm_timeout:
                    continue
                given_up += 1
                if not item.done.done():
                    item.done.set_exception(
                        OutcomeUnknown(f"RabbitMQ has not confirmed the message to {where(item)}")
                    )
        if given_up >= self._max_unconfirmed and link.blocked is None:
            log.error("RabbitMQ has not confirmed %d messages: reconnecting", given_up)
            self._background.spawn(link.close(), "closing a connection without confirms")

    async def close(self, grace: float) -> None:
        """Wait up to `grace` seconds for the confirms in flight; what remains is failed."""
        self._draining = True
        deadline = asyncio.get_running_loop().time() + grace
        while self._unconfirmed or self._lanes.waiting:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or self._link is None or not self._link.is_open:
                break
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                break
        self._closing = True
        self._wake()
