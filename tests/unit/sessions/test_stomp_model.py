"""STOMP sessions against the embedded broker do what a few lists would do, in any order of frames.

QUEUECAST_STOMP_MODEL=500 runs so many examples of 100 steps each instead of a few seconds' worth.
"""

from __future__ import annotations

import os

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

from tests.unit.sessions.stomp_model import (
    DURABLE,
    IDS,
    LIMIT,
    NAMED,
    TOPIC,
    Line,
    Model,
    Page,
    Sub,
)


class StompMachine(Model, RuleBasedStateMachine):
    """The frames of several sessions, in any order; see the module."""

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        Model.__init__(self)

    def one(self, data: st.DataObject) -> Page:
        return data.draw(
            st.sampled_from([each for each in self.pages if each.reads and each.logged_in])
        )

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
                if ("refused",) not in page.open[name]:
                    page.open[name].append(("send", destination, self.sent, receipt))
                elif answered:
                    page.answers.append(f"ERROR Transaction failed {receipt}")
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
            if ("refused",) in page.open[name]:
                page.answers.append(f"ERROR Transaction failed {receipt}")
            else:
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

    @precondition(lambda self: any(page.reads and page.open for page in self.pages))
    @rule(data=st.data())
    def is_refused_in_a_transaction(self, data: st.DataObject) -> None:
        page = data.draw(st.sampled_from([each for each in self.pages if each.reads and each.open]))
        name = data.draw(st.sampled_from(list(page.open)))
        self.say(page, "SEND", destination="/queue/a/b", transaction=name)
        page.open[name].append(("refused",))
        page.answers.append("ERROR Invalid destination -")
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
