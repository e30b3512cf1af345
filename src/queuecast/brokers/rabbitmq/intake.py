"""The intake of a feed's queue: its messages go to the readers once a tick and are acked at once.

One ack frame covers a tick. A barrier learns which acks the broker has, so that after a
reconnect a recovery can tell repeated messages from new ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ...message import Message
from .connection import Channel
from .content import fingerprint
from .pings import is_ping
from .readers import Readers
from .recovery import Recovery, Restarted, Resumed, Verdict
from .tail import Tail

PREFETCH = 2000  # messages; what the broker may send ahead of our acks
_PATIENCE = 5.0  # seconds until a queue that says it holds messages must deliver them


class Intake:
    """What comes from one queue, over as many channels as reconnects make.

    on_stuck: called when a queue whose end a ping marks delivers nothing. owed: a gap that the
    readers must still be told of, should a recovery be cut short. settled: set while there is a
    channel and no recovery. taken: messages that came so far, over all channels.
    """

    def __init__(self, readers: Readers, on_stuck: Callable[[], None]) -> None:
        self._readers = readers
        self._on_stuck = on_stuck
        self._channel: Channel | None = None
        self._tail = Tail()
        # What came since the last tick; bounded by the prefetch.
        self._batch: list[Message] = []
        self._pings = 0  # in the batch, or held by a recovery
        self._last_tag = 0
        self._flushing = False
        self._barrier: asyncio.Future[Any] | None = None
        self._recovery: Recovery | None = None
        self._recovery_timer: asyncio.TimerHandle | None = None
        self.owed: str | None = None
        self.settled = asyncio.Event()
        self.taken = 0
        self._loop = asyncio.get_running_loop()

    # Queues and channels

    def renew(self) -> None:
        """Begin with a new queue: nothing in it was seen before."""
        self._tail = Tail()

    def attach(self, channel: Channel) -> None:
        """Take messages from this channel from now on."""
        self._channel = channel
        self._last_tag = 0
        self._barrier = None
        if self._recovery is None:
            self.settled.set()
        else:
            # The channel before may have failed before anybody knew that it was lost.
            self.settled.clear()

    def detach(self) -> None:
        """Hand on what came, and leave the channel: it is over."""
        self._flush()
        self._channel = None
        self.settled.clear()
        self.stop_recovery()

    def resume(self, ready: int | None, why: str | None = None) -> None:
        """Go on with a queue that lost nothing.

        ready: messages in it; None: unknown, see `await_ping`. why: a gap that is due all the same.
        """
        self.owed = why
        recovery = Resumed(self._tail, ready, PREFETCH, why)
        if ready == 0:
            self._tail.realign(0)
            if why is not None:
                self._conclude(Verdict([], True, why))
            return
        self._recover(recovery)

    def await_ping(self, patience: float) -> None:
        """Expect a ping behind what the queue holds; patience: seconds until it is stuck."""
        if self._recovery is None:
            return
        if self._recovery_timer is not None:
            self._recovery_timer.cancel()
        begun = self.taken
        self._recovery_timer = self._loop.call_later(patience, self._look_for_ping, begun)

    def _look_for_ping(self, begun: int) -> None:
        if self.taken == begun:
            self._on_stuck()
        else:
            self._give_up()

    def restart(self, ready: int, why: str) -> None:
        """Go on with a queue of a broker that may have lost messages; `why` becomes a gap."""
        self.owed = self.owed or why
        recovery = Restarted(self._tail, ready, self.owed)
        self._recover(recovery)
        if not ready:
            self._conclude(recovery.give_up())

    def _recover(self, recovery: Recovery) -> None:
        self._recovery = recovery
        self._recovery_timer = self._loop.call_later(_PATIENCE, self._give_up)

    # Messages

    def take(self, message: Message, tag: int) -> None:
        """Take one message; it goes on in this tick."""
        self._batch.append(message)
        self._last_tag = tag
        self.taken += 1
        if not message.exchange:
            self._pings += 1
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Hand this tick's messages on and ack them."""
        self._flushing = False
        batch = self._batch
        if not batch:
            return
        self._batch = []
        if self._recovery is None:
            self._hand_on(batch)
        else:
            verdict = self._recovery.take(batch)
            if verdict.done:
                self._conclude(verdict)
            else:
                self._hand_on(verdict.messages)
            if not verdict.ack:
                return
        channel = self._channel
        if channel is not None:
            channel.ack(self._last_tag, multiple=True)
            if self._barrier is None:
                self._start_barrier(channel)

    def _hand_on(self, messages: list[Message]) -> None:
        if not messages:
            return
        for message in messages:
            self._tail.add(fingerprint(message))
        if self._pings:
            self._pings = 0
            messages = [message for message in messages if not is_ping(message)]
            if not messages:
                return
        self._readers.append(messages)

    def gap(self, why: str) -> None:
        """Tell the readers of messages that are lost."""
        self.owed = None
        self._readers.gap(why)

    # Recovering

    def _conclude(self, verdict: Verdict) -> None:
        self.stop_recovery()
        if verdict.gap is not None:
            self.gap(verdict.gap)
        self._hand_on(verdict.messages)
        if self._channel is not None:
            self.settled.set()

    def _give_up(self) -> None:
        recovery, channel = self._recovery, self._channel
        if recovery is None:
            return
        self._conclude(recovery.give_up())
        if channel is not None and self._last_tag:
            channel.ack(self._last_tag, multiple=True)

    def stop_recovery(self) -> None:
        """Forget a recovery: its messages come again on the next channel."""
        self._recovery = None
        if self._recovery_timer is not None:
            self._recovery_timer.cancel()
            self._recovery_timer = None

    # Acks

    def _start_barrier(self, channel: Channel) -> None:
        """Learn that the acks so far have arrived: the answer to a call comes after them."""
        covered = self._tail.pending
        answer = channel.call("basic_qos", prefetch_count=PREFETCH)
        self._barrier = answer

        def done(future: asyncio.Future[Any]) -> None:
            if self._barrier is answer:
                self._barrier = None
            if future.cancelled() or future.exception() is not None or channel is not self._channel:
                return
            self._tail.settled(covered)
            if self._tail.pending and self._recovery is None:
                self._start_barrier(channel)

        answer.add_done_callback(done)
