"""STOMP sessions against the embedded broker do what a few lists would do, in any order of frames.

QUEUECAST_STOMP_MODEL=500 runs so many examples of 100 steps each instead of a few seconds' worth.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from queuecast.accounts import reader_of
from queuecast.brokers.embedded.broker import EmbeddedBroker
from queuecast.hub.hub import Hub
from queuecast.sessions.services import Services
from tests.unit.sessions.stomp_rig import Client, House, stomp

TOPIC = "/topic/news"
DURABLE = "kept"
NAMED = ("a", "b")
IDS = [str(number) for number in range(1, 9)]
LIMIT = 6  # subscriptions of a session


class BrokerHouse(House):
    """Sessions over the embedded broker itself; its clock is the test's loop."""

    def __init__(self) -> None:
        super().__init__(subscriptions=LIMIT)
        self.broker = EmbeddedBroker(self.runtime)
        self.runtime.run(self.broker.start())
        self.hub = Hub(self.runtime, reader_of(self.broker))
        self.services = Services(
            self.runtime,
            self.hub,
            self.broker.publish,
            self.broker.consume,
            self._allow,
            self.services.resolve,
            self.services.limits,
            login=self._login,
            queues=self.broker,
        )

    def quiet(self) -> None:
        """Let everything that is due now happen."""
        for _ in range(10):
            self.runtime.settle()
            self.runtime.advance(0)


@dataclass
class Item:
    """A message of the model's queue. seen: some client has had it."""

    number: int
    seen: bool = False
    perhaps: bool = False  # handed to a client that went without reading it
    holder: Sub | None = None


@dataclass
class Line:
    """A queue of the model: what is not settled, oldest first."""

    items: dict[int, Item] = field(default_factory=dict)


@dataclass(eq=False)
class Sub:
    """A subscription of the model; a feed's has no line."""

    id: str
    line: Line | None
    mode: str
    prefetch: int
    queue: str = ""  # an own queue's: "" for one that goes with the subscription
    owns: bool = False
    held: dict[str, int] = field(default_factory=dict)  # message-id -> number, as delivered
    newest: int = 0
    expected: list[int] = field(default_factory=list)
    got: list[int] = field(default_factory=list)


@dataclass(eq=False)
class Page:
    """A client and what the model knows of it."""

    client: Client
    version: str
    logged_in: bool = False
    reads: bool = True
    subs: dict[str, Sub] = field(default_factory=dict)
    open: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    old: list[str] = field(default_factory=list)  # ids that are settled or void
    answers: list[str] = field(default_factory=list)  # what it must be told, in any order

    @property
    def listed(self) -> list[Sub]:
        return list(self.subs.values())


class StompMachine(RuleBasedStateMachine):
    """Several sessions; see the module."""

    def __init__(self) -> None:
        super().__init__()
        self.house = BrokerHouse()
        self.pages: list[Page] = []
        self.lines = {name: Line() for name in NAMED}  # by the name of the queue
        self.declared: set[str] = set()
        self.sent = 0
        self.receipts = 0

    # -- what happens, in the model -------------------------------------------------------

    def append(self, destination: str, number: int) -> None:
        if destination == TOPIC:
            for page in self.pages:
                for sub in page.listed:
                    if sub.line is None:
                        sub.expected.append(number)
                    elif sub.owns and not sub.queue:
                        sub.line.items[number] = Item(number)
            if DURABLE in self.lines:
                self.lines[DURABLE].items[number] = Item(number)
        else:
            name = destination.rpartition("/")[2]
            self.declared.add(name)
            self.lines[name].items[number] = Item(number)

    def give_back(self, page: Page, sub: Sub) -> None:
        if sub.line is None:
            return
        for item in sub.line.items.values():
            if item.holder is sub:
                item.holder = None
            elif item.holder is None and not page.reads:
                item.perhaps = True
        page.old += sub.held
        sub.held.clear()

    def leave(self, page: Page) -> None:
        for sub in page.listed:
            self.give_back(page, sub)
        page.subs.clear()
        page.open.clear()
        self.pages.remove(page)

    def settle(self, page: Page, id: str, how: str) -> str:
        """Do what an ACK or NACK does; the ERROR's message, "" for none."""
        tag = id.partition("@@")[0].removeprefix("T_")
        sub = page.subs.get(tag)
        if sub is None or sub.line is None:
            return "Subscription not found"
        if id not in sub.held:
            return "Message not found"
        ids = list(sub.held)
        chosen = ids[: ids.index(id) + 1] if sub.mode == "client" else [id]
        for each in chosen:
            number = sub.held.pop(each)
            page.old.append(each)
            if how == "requeue":
                sub.line.items[number].holder = None
            else:
                del sub.line.items[number]
        return ""

    def replay(self, page: Page, actions: list[tuple[Any, ...]], receipt: str) -> None:
        failed = False
        for kind, *rest in actions:
            if kind == "send":
                destination, number, receipt_of_send = rest
                self.append(destination, number)
                if receipt_of_send:
                    page.answers.append(f"RECEIPT {receipt_of_send}")
            else:
                wrong = self.settle(page, rest[0], rest[1])
                if wrong:
                    failed = True
                    page.answers.append(f"ERROR {wrong} -")
        if failed:
            page.answers.append(f"ERROR Transaction failed {receipt}")
        else:
            page.answers.append(f"RECEIPT {receipt}")

    # -- what clients are told ------------------------------------------------------------

    def read(self, gone: Page | None = None) -> None:
        self.house.quiet()
        for page in [*self.pages, *([gone] if gone else [])]:
            answers = []
            for got in page.client.got():
                if got.command == "MESSAGE":
                    assert page is not gone, "nothing is delivered to who has left"
                    self.delivered(page, got.headers, int(got.body))
                elif got.command == "RECEIPT":
                    answers.append(f"RECEIPT {got.headers['receipt-id']}")
                elif got.command == "ERROR":
                    named = got.headers.get("receipt-id") or got.headers.get("subscription", "-")
                    answers.append(f"ERROR {got.headers['message']} {named}")
                else:
                    answers.append(got.command)
            if page.reads:
                assert sorted(answers) == sorted(page.answers)
                page.answers.clear()
            else:
                # It is read from no more, so nothing is answered; what is over is told at once.
                for answer in answers:
                    assert answer.startswith("ERROR Server cancelled subscription")
                    page.answers.remove(answer)
            assert page.client.gone is (page is gone)

    def delivered(self, page: Page, headers: dict[str, str], number: int) -> None:
        assert page.reads
        sub = page.subs[headers["subscription"]]
        if sub.line is None:
            sub.got.append(number)
            assert headers["redelivered"] == "false"
            return
        assert number in sub.line.items, "settled, and yet it came again"
        item = sub.line.items[number]
        assert item.holder is None, "two clients have it"
        assert headers["message-id"] not in page.old, "a late ack would mean this one"
        redelivered = headers["redelivered"] == "true"
        assert redelivered or not item.seen
        assert item.seen or item.perhaps or not redelivered
        if not redelivered:
            assert number > sub.newest, "out of order"
            sub.newest = number
        item.seen = True
        if sub.mode == "auto":
            assert "ack" not in headers
            del sub.line.items[number]
            page.old.append(headers["message-id"])
        else:
            assert ("ack" in headers) is (page.version == "1.2")
            item.holder = sub
            sub.held[headers["message-id"]] = number
            assert len(sub.held) <= sub.prefetch

    # -- frames ---------------------------------------------------------------------------

    def say(self, page: Page, command: str, body: bytes = b"", /, **headers: str) -> None:
        page.client.session.receive_data(stomp(command, body, **headers))

    def receipt(self) -> str:
        self.receipts += 1
        return f"r{self.receipts}"

    def one(self, data: st.DataObject) -> Page:
        return data.draw(
            st.sampled_from([each for each in self.pages if each.reads and each.logged_in])
        )

    @property
    def has_page(self) -> bool:
        return any(each.reads and each.logged_in for each in self.pages)

    @initialize()
    def begin(self) -> None:
        self.connect("1.2", False)
        self.connect("1.1", True)
        # What is rare otherwise: somebody holds something from the first step on.
        for page, id, kind, mode in (
            (self.pages[0], "1", "a", "client-individual"),
            (self.pages[0], "2", "durable", "client"),
            (self.pages[1], "1", "a", "client"),
            (self.pages[1], "2", "own", "client-individual"),
            (self.pages[1], "3", "feed", "auto"),
        ):
            self.enter(page, id, kind, mode, 2)
        for destination in ("/queue/a", TOPIC, "/queue/b"):
            self.publish(self.pages[0], None, destination, False, 4)

    @precondition(lambda self: len(self.pages) < 4)
    @rule(version=st.sampled_from(["1.0", "1.1", "1.2"]), early=st.booleans())
    def connects(self, version: str, early: bool) -> None:
        self.connect(version, early)

    def connect(self, version: str, early: bool) -> None:
        page = Page(self.house.open(), version)
        self.pages.append(page)
        if early:
            receipt = self.receipt()
            self.say(page, "SEND", b"0", destination="/queue/a", receipt=receipt)
            page.answers.append(f"ERROR Illegal command {receipt}")
        self.say(page, "CONNECT", accept_version=version, login="guest", passcode="guest")
        page.answers.append("CONNECTED")
        page.logged_in = True
        self.read()

    @precondition(lambda self: self.has_page)
    @rule(
        data=st.data(),
        destination=st.sampled_from([TOPIC, *(f"/queue/{name}" for name in NAMED)]),
        answered=st.booleans(),
        many=st.integers(1, 4),
    )
    def send(self, data: st.DataObject, destination: str, answered: bool, many: int) -> None:
        page = self.one(data)
        name = data.draw(st.sampled_from([None, *page.open]))
        self.publish(page, name, destination, answered, many)

    def publish(
        self, page: Page, name: str | None, destination: str, answered: bool, many: int
    ) -> None:
        for _ in range(many):
            self.sent += 1
            receipt = self.receipt() if answered else ""
            headers = {"receipt": receipt} if answered else {}
            if name is None:
                self.append(destination, self.sent)
                if answered:
                    page.answers.append(f"RECEIPT {receipt}")
            else:
                headers["transaction"] = name
                page.open[name].append(("send", destination, self.sent, receipt))
            self.say(page, "SEND", b"%d" % self.sent, destination=destination, **headers)
        self.read()

    @precondition(lambda self: self.has_page)
    @rule(
        data=st.data(),
        id=st.sampled_from(IDS[:3]),
        kind=st.sampled_from(["feed", "a", "b", "own", "durable"]),
        mode=st.sampled_from(["auto", "client", "client-individual"]),
        prefetch=st.integers(1, 3),
    )
    def subscribe(self, data: st.DataObject, id: str, kind: str, mode: str, prefetch: int) -> None:
        page = self.one(data)
        if id in page.subs and not data.draw(st.sampled_from([False] * 4 + [True])):
            id = next(each for each in IDS if each not in page.subs)
        self.enter(page, id, kind, mode, prefetch)

    def enter(self, page: Page, id: str, kind: str, mode: str, prefetch: int) -> None:
        receipt = self.receipt()
        headers = {"ack": mode, "prefetch_count": str(prefetch), "receipt": receipt, "id": id}
        if kind == "feed":
            mode = headers["ack"] = "auto"
        elif kind == "own" and mode == "auto":
            headers["x_max_length"] = "100000"
        elif kind == "durable":
            headers |= {"durable": "true", "auto_delete": "false", "x_queue_name": DURABLE}
        destination = f"/queue/{kind}" if kind in NAMED else TOPIC
        self.say(page, "SUBSCRIBE", destination=destination, **headers)
        if id not in page.subs and len(page.subs) == LIMIT:
            page.answers.append(f"ERROR Limit exceeded {receipt}")
            self.read()
            return
        if id in page.subs:
            page.answers.append(f"ERROR Duplicated subscription identifier {receipt}")
            self.leave(page)
            self.read(page)
            return
        if kind == "feed":
            line = None
        elif kind == "own":
            line = Line()
        elif kind == "durable":
            line = self.lines.setdefault(DURABLE, Line())
        else:
            line = self.lines[kind]
            self.declared.add(kind)
        queue = DURABLE if kind == "durable" else ""
        most = prefetch if mode != "auto" else 1000
        page.subs[id] = Sub(id, line, mode, most, queue, kind in ("own", "durable"))
        page.answers.append(f"RECEIPT {receipt}")
        self.read()

    @precondition(lambda self: self.has_page)
    @rule(data=st.data(), delete=st.booleans())
    def unsubscribe(self, data: st.DataObject, delete: bool) -> None:
        page = self.one(data)
        id = data.draw(st.sampled_from([*page.subs, "never"]))
        receipt = self.receipt()
        headers = {"durable": "true"} if delete else {}
        self.say(page, "UNSUBSCRIBE", id=id, receipt=receipt, **headers)
        sub = page.subs.pop(id, None)
        if sub is None:
            page.answers.append(f"ERROR No subscription found {receipt}")
        else:
            self.give_back(page, sub)
            page.answers.append(f"RECEIPT {receipt}")
            if delete and sub.queue:
                del self.lines[DURABLE]
                for other in self.pages:
                    for each in [each for each in other.listed if each.queue]:
                        self.give_back(other, each)
                        del other.subs[each.id]
                        other.answers.append(f"ERROR Server cancelled subscription {each.id}")
        self.read()

    def ids(self, stale: bool) -> list[tuple[Page, str]]:
        return [
            (page, id)
            for page in self.pages
            if page.reads and page.logged_in
            for id in (page.old if stale else [id for sub in page.listed for id in sub.held])
        ]

    @precondition(lambda self: self.ids(False))
    @rule(data=st.data(), how=st.sampled_from(["ack", "requeue", "reject"]))
    def settles(self, data: st.DataObject, how: str) -> None:
        self.answer(data, how, self.ids(False))

    @precondition(lambda self: self.ids(True))
    @rule(data=st.data(), how=st.sampled_from(["ack", "requeue", "reject"]))
    def settles_late(self, data: st.DataObject, how: str) -> None:
        self.answer(data, how, self.ids(True))

    def answer(self, data: st.DataObject, how: str, ids: list[tuple[Page, str]]) -> None:
        page, id = data.draw(st.sampled_from(ids))
        name = data.draw(st.sampled_from([None, *page.open]))
        receipt = self.receipt()
        headers = {"receipt": receipt, "id" if page.version == "1.2" else "message_id": id}
        if how == "reject":
            headers["requeue"] = "false"
        if name is not None:
            headers["transaction"] = name
            page.open[name].append(("settle", id, how))
            page.answers.append(f"RECEIPT {receipt}")
        else:
            wrong = self.settle(page, id, how)
            page.answers.append(f"ERROR {wrong} {receipt}" if wrong else f"RECEIPT {receipt}")
        self.say(page, "ACK" if how == "ack" else "NACK", **headers)
        self.read()

    @precondition(lambda self: self.has_page)
    @rule(
        data=st.data(),
        command=st.sampled_from(["BEGIN", "BEGIN", "COMMIT", "COMMIT", "ABORT"]),
        name=st.sampled_from(["s", "t"]),
    )
    def transaction(self, data: st.DataObject, command: str, name: str) -> None:
        page = self.one(data)
        receipt = self.receipt()
        self.say(page, command, transaction=name, receipt=receipt)
        if command == "BEGIN":
            page.open[name] = []
            page.answers.append(f"RECEIPT {receipt}")
        elif name not in page.open:
            page.answers.append(f"ERROR Bad transaction {receipt}")
        elif command == "ABORT":
            del page.open[name]
            page.answers.append(f"RECEIPT {receipt}")
        else:
            self.replay(page, page.open.pop(name), receipt)
        self.read()

    @precondition(lambda self: self.has_page)
    @rule(
        data=st.data(),
        wrong=st.sampled_from(
            [
                ("DANCE", {}, "Bad command"),
                ("BEGIN", {}, "Missing transaction"),
                ("ACK", {"id": "x", "message_id": "x"}, "Invalid header"),
                ("NACK", {}, "Missing header"),
                ("SEND", {"destination": "/queue/a/b"}, "Invalid destination"),
                ("SEND", {"destination": "/queue/a", "transaction": "no"}, "Bad transaction"),
                (
                    "SUBSCRIBE",
                    {"id": "9", "destination": "/queue/a", "ack": "x"},
                    "Processing error",
                ),
                ("UNSUBSCRIBE", {}, "Missing destination or id"),
                ("CONNECT", {}, "Illegal command"),
            ]
        ),
    )
    def nonsense(self, data: st.DataObject, wrong: tuple[str, dict[str, str], str]) -> None:
        page = self.one(data)
        command, headers, message = wrong
        receipt = self.receipt()
        self.say(page, command, b"0", receipt=receipt, **headers)
        page.answers.append(f"ERROR {message} {receipt}")
        self.read()

    @precondition(lambda self: len(self.pages) > 1 and self.has_page)
    @rule(data=st.data(), how=st.sampled_from(["cut", "answered", "silent", "garbage"]))
    def leaves(self, data: st.DataObject, how: str) -> None:
        page = data.draw(st.sampled_from(self.pages)) if how == "cut" else self.one(data)
        receipt = self.receipt()
        if how == "cut":
            page.client.session.connection_lost()
        elif how == "answered":
            self.say(page, "DISCONNECT", receipt=receipt)
            page.answers.append(f"RECEIPT {receipt}")
        elif how == "silent":
            self.say(page, "DISCONNECT")
        else:
            broken = data.draw(st.sampled_from([b"SEND\nx\n\n\0", b"\xff\n", b"A" * 50]))
            page.client.session.receive_data(broken)
        self.leave(page)
        self.read(page)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from(self.pages))
        page.reads = not page.reads
        if page.reads:
            page.client.session.resume_writing()
        else:
            page.client.session.pause_writing()
            assert not page.client.transport.reading, "nor is it read from"
        self.read()

    @rule(seconds=st.sampled_from([1, 20]))
    def time_passes(self, seconds: int) -> None:
        self.house.runtime.advance(seconds)
        self.read()

    # -- what always holds ----------------------------------------------------------------

    @invariant()
    def nothing_is_lost(self) -> None:
        counts = self.house.broker.counts()
        named = {name: line for name, line in self.lines.items() if name in counts.queues}
        assert self.declared | ({DURABLE} & self.lines.keys()) == named.keys()
        for name, line in named.items():
            found = counts.queues[name]
            assert found.ready + found.unacked == len(line.items), name
        own = [sub for page in self.pages for sub in page.listed if sub.owns and not sub.queue]
        others = [found for name, found in counts.queues.items() if name not in named]
        assert sorted(found.ready + found.unacked for found in others) == sorted(
            len(sub.line.items) for sub in own if sub.line is not None
        )
        if not any(found.ready + found.unacked for found in counts.queues.values()):
            assert counts.queue_bytes == 0

    @invariant()
    def who_may_take_has_taken(self) -> None:
        for page in self.pages:
            if not page.reads:
                continue
            for sub in page.listed:
                if sub.line is None:
                    assert sub.got == sub.expected
                elif len(sub.held) < sub.prefetch:
                    # What nobody holds is with one who does not read, if there is any.
                    waiting = [each for each in sub.line.items.values() if each.holder is None]
                    assert not waiting or any(
                        other.line is sub.line
                        for each in self.pages
                        if not each.reads
                        for other in each.listed
                    )

    @invariant()
    def nothing_grows(self) -> None:
        budget = self.house.services.deliveries
        lists = [page.listed for page in self.pages]
        assert budget.users == sum(sub.line is not None for subs in lists for sub in subs)
        if all(page.reads for page in self.pages):
            assert budget.used == 0
        assert budget.used <= 8 * self.sent * max(1, budget.users)
        assert self.house.accounts == len([page for page in self.pages if page.logged_in])
        for page in self.pages:
            session = page.client.session
            assert len(session.subscriptions) + len(session.work) == len(page.subs)
            assert not session.busy
            assert session._events is None
            assert session.publishing == 0
            assert len(session._cancels) == 0
            assert page.client.transport.written == b""
            assert page.client.transport.reading is page.reads
            for work in session.work:
                assert len(work._lease._handed) <= 1000
        assert self.house.broker.counts().feeds <= 1

    def teardown(self) -> None:
        for page in list(self.pages):
            page.client.session.connection_lost()
            self.leave(page)
        self.house.quiet()
        counts = self.house.broker.counts()
        assert counts.queues.keys() == self.declared | ({DURABLE} & self.lines.keys())
        assert all((found.unacked, found.consumers) == (0, 0) for found in counts.queues.values())
        budget = self.house.services.deliveries
        assert (budget.used, budget.users, self.house.accounts) == (0, 0, 0)


def test_sessions_do_what_the_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    # asyncio's sleep is not this loop's.
    monkeypatch.setattr("queuecast.brokers.embedded.broker._PUBLISHES_A_TURN", 1 << 30)
    long = int(os.environ.get("QUEUECAST_STOMP_MODEL", "0"))
    run_state_machine_as_test(
        StompMachine,
        settings=settings(
            max_examples=long or 20,
            stateful_step_count=100 if long else 50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
