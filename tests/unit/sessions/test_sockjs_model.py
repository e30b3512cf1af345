"""Any sequence of requests, cuts and waits: messages once and in order, or the session is over."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from queuecast.errors import LimitExceeded, NotFound
from queuecast.sessions.sockjs import HELD
from queuecast.sessions.sockjs_receivers import PollReceiver
from tests.support.fake_runtime import Task
from tests.unit.sessions.sockjs_rig import Rig, Stream, frame, result, stomp_frames
from tests.unit.sessions.stomp_rig import Got, stomp


class Sessions(RuleBasedStateMachine):
    """One client that subscribed to a topic and to a queue, and whatever may befall it."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(held=2000)
        self.browser = self.rig.open()
        self.browser.log_in()
        self.browser.send(
            stomp("SUBSCRIBE", id="t", destination="/topic/a"),
            stomp("SUBSCRIBE", id="q", destination="/queue/q", receipt="1"),
        )
        assert stomp_frames(self.browser.poll())[0].command == "RECEIPT"
        (self.consumer,) = self.rig.house.consumers
        self.stream: Stream | None = None
        self.waiting: PollReceiver | None = None
        self.appended = self.delivered = self.asked = 0
        self.sends: list[Task] = []
        self.got: list[Got] = []
        self.over = False

    def collect(self, found: object) -> None:
        if found == "h":
            return
        assert isinstance(found, list)
        if found[0] == "c":
            self.over = True
            return
        assert not self.over or self.stream is None, "after its end a session says nothing new"
        self.got += stomp_frames(found)

    def settle(self) -> None:
        """Let everything happen, and read what came."""
        self.rig.runtime.settle()
        if self.waiting is not None and self.waiting.answer.done():
            answered, self.waiting = self.waiting, None
            self.collect(frame(self.rig.runtime.run(result(answered))))
        if self.stream is not None:
            stream = self.stream
            for found in stream.take():
                self.collect(found)
            if stream.transport.closed:
                stream.receiver.connection_lost()
                self.stream = None

    @property
    def alone(self) -> bool:
        """Whether a client may ask: the session is still known, and nobody else asks."""
        known = len(self.rig.sessions) > 0
        return known and self.stream is None and self.waiting is None

    @property
    def asks(self) -> bool:
        return self.stream is not None or self.waiting is not None

    # -- what may happen ------------------------------------------------------------------

    @rule(count=st.integers(1, 40), size=st.sampled_from((1, 1000, 30_000)))
    def append(self, count: int, size: int) -> None:
        if "/topic/a" not in self.rig.house.feeds:
            return
        bodies = [b"%06d" % (self.appended + n) + b"x" * size for n in range(count)]
        self.appended += count
        self.rig.house.append("/topic/a", *bodies)
        self.settle()

    @precondition(lambda self: not self.consumer.closed and not self.consumer.paused)
    @rule(size=st.sampled_from((1, 1500)))
    def deliver(self, size: int) -> None:
        self.consumer.deliver(b"%06d" % self.delivered + b"x" * size)
        self.delivered += 1
        self.settle()

    @precondition(lambda self: self.alone)
    @rule()
    def poll(self) -> None:
        self.waiting = self.browser.ask()
        self.settle()

    @precondition(lambda self: self.alone)
    @rule()
    def begin_stream(self) -> None:
        self.stream = self.browser.stream()
        self.settle()

    @precondition(lambda self: self.asks)
    @rule()
    def ask_twice(self) -> None:
        answer = frame(self.rig.runtime.run(result(self.browser.ask())))
        assert answer == ["c", [2010, "Another connection still open"]]
        self.settle()

    @rule(count=st.integers(1, 30), size=st.sampled_from((1, 2000)))
    def ask_for_receipts(self, count: int, size: int) -> None:
        frames = []
        for _ in range(count):
            receipt = f"{self.asked:06}" + "r" * size
            frames.append(stomp("SEND", b"x", destination="/topic/b", receipt=receipt))
            self.asked += 1
        self.sends.append(self.browser.send(b"".join(frames)))
        self.settle()

    @precondition(lambda self: self.stream is not None)
    @rule()
    def socket_full(self) -> None:
        assert self.stream is not None
        if not self.stream.receiver._paused:
            self.stream.transport.stuck = 1
            self.stream.receiver.pause_writing()
            self.settle()

    @precondition(lambda self: self.stream is not None)
    @rule()
    def socket_empty(self) -> None:
        assert self.stream is not None
        if self.stream.receiver._paused:
            self.stream.transport.stuck = 0
            self.stream.receiver.resume_writing()
            self.settle()

    @precondition(lambda self: self.asks)
    @rule()
    def cut(self) -> None:
        if self.stream is not None:
            self.stream.cut()
        else:
            assert self.waiting is not None
            self.waiting.cancelled()
        self.stream = self.waiting = None
        self.settle()
        assert self.browser.session.over

    @rule(seconds=st.sampled_from((1, 3, 7)))
    def wait(self, seconds: int) -> None:
        alone = not self.asks
        self.rig.pass_time(seconds)
        self.settle()
        if alone and seconds == 7:
            assert self.rig.house.accounts == 0

    # -- what must hold -------------------------------------------------------------------

    @invariant()
    def once_and_in_order(self) -> None:
        last, lost = -1, False
        for each in self.got:
            if each.headers.get("subscription") != "t":
                continue
            if "gap" in each.headers:
                # Who is away for too long: the log keeps 8 MB.
                assert each.headers["gap"] == "evicted"
                lost = True
                continue
            number = int(each.body[:6])
            assert number > last if lost else number == last + 1
            last, lost = number, False
        queue = [each.body[:6] for each in self.got if each.headers.get("subscription") == "q"]
        assert queue == [b"%06d" % n for n in range(len(queue))]
        receipts = [each for each in self.got if each.command == "RECEIPT"]
        assert [int(each.headers["receipt-id"][:6]) for each in receipts] == sorted(
            int(each.headers["receipt-id"][:6]) for each in receipts
        )

    @invariant()
    def nothing_is_acked_that_was_not_written(self) -> None:
        written = sum(each.headers.get("subscription") == "q" for each in self.got)
        if self.stream is None and self.waiting is None and not self.browser.session.over:
            assert len(self.consumer.settled) == written

    @invariant()
    def bounded(self) -> None:
        session = self.browser.session
        assert session._held_bytes <= HELD
        assert sum(map(len, session._held)) == session._held_bytes
        assert sum(not task.done for task in self.sends) <= 8
        for task in self.sends:
            assert task.error is None or isinstance(task.error, NotFound | LimitExceeded)

    @invariant()
    def whoever_waits_has_everything(self) -> None:
        session = self.browser.session
        stream = self.stream
        listens = self.waiting is not None or (stream is not None and not stream.receiver.paused)
        if listens and not session.over and session._receiver is not None:
            numbers = [
                int(each.body[:6])
                for each in self.got
                if each.headers.get("subscription") == "t" and "gap" not in each.headers
            ]
            assert (numbers[-1] + 1 if numbers else 0) == self.appended
            assert not any(not task.done for task in self.sends)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
