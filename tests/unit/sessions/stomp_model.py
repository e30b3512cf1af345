"""What STOMP sessions against the embedded broker do, as a few lists would do it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
    """A message of the model's queue. seen: some client has had it.

    place: in the order in which messages were published, which is not that of their numbers: what a
    transaction sends is published when it is committed.
    """

    number: int
    place: int = 0
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
    newest: int = 0  # the place of the last one that was not redelivered
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


class Model:
    """Several sessions, and the lists that say what they must be told.

    Each step does to the lists what its frame should do to the house, and `read` compares.
    """

    def __init__(self) -> None:
        self.house = BrokerHouse()
        self.pages: list[Page] = []
        self.lines = {name: Line() for name in NAMED}  # by the name of the queue
        self.declared: set[str] = set()
        self.sent = 0
        self.published = 0
        self.receipts = 0

    # -- what happens, in the model -------------------------------------------------------

    def append(self, destination: str, number: int) -> None:
        self.published += 1
        if destination == TOPIC:
            for page in self.pages:
                for sub in page.listed:
                    if sub.line is None:
                        sub.expected.append(number)
                    elif sub.owns and not sub.queue:
                        sub.line.items[number] = Item(number, self.published)
            if DURABLE in self.lines:
                self.lines[DURABLE].items[number] = Item(number, self.published)
        else:
            name = destination.rpartition("/")[2]
            self.declared.add(name)
            self.lines[name].items[number] = Item(number, self.published)

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

    def is_possible(self, page: Page, actions: list[tuple[Any, ...]]) -> bool:
        """Whether nothing is against all of a transaction's actions, one after the other."""
        held = {id: list(sub.held) for id, sub in page.subs.items() if sub.line is not None}
        for kind, *rest in actions:
            if kind == "refused":
                return False
            if kind == "settle":
                tag = rest[0].partition("@@")[0].removeprefix("T_")
                ids = held.get(tag, [])
                if rest[0] not in ids:
                    return False
                cumulative = page.subs[tag].mode == "client"
                at = ids.index(rest[0])
                del ids[0 if cumulative else at : at + 1]
        return True

    def replay(self, page: Page, actions: list[tuple[Any, ...]], receipt: str) -> None:
        if not self.is_possible(page, actions):
            receipts = [rest[2] for kind, *rest in actions if kind == "send"]
            for each in (*filter(None, receipts), receipt):
                page.answers.append(f"ERROR Transaction failed {each}")
            return
        for kind, *rest in actions:
            if kind == "send":
                destination, number, receipt_of_send = rest
                self.append(destination, number)
                if receipt_of_send:
                    page.answers.append(f"RECEIPT {receipt_of_send}")
            else:
                assert not self.settle(page, rest[0], rest[1])
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
            assert item.place > sub.newest, "out of order"
            sub.newest = item.place
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

    @property
    def has_page(self) -> bool:
        return any(each.reads and each.logged_in for each in self.pages)
