"""Spring's STOMP broker relay, the real one, over STOMP's TCP port, on both brokers."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import queuecast.testing
from tests.e2e.test_stomp import Behind, behind  # noqa: F401 - a fixture
from tests.support.processes import free_port, require
from tests.support.servers import unique

DIRECTORY = Path(__file__).parent / "spring"
# A JVM has to start, and the relay tries every 5 s to come back.
PATIENCE = 60.0
# Milliseconds; what Spring proposes to a broker by itself is 10 s.
BEAT = 2000

pytestmark = pytest.mark.java


class Relay:
    """One run of Relay.java: events by kind and session, in the order in which they came."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._events: queue.Queue[dict[str, str]] = queue.Queue()
        # Sessions run beside each other, so what nobody asked for yet is kept.
        self._kept: list[dict[str, str]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))

    def say(self, *words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()

    def next(self, kind: str, session: str | None = None) -> dict[str, str]:
        """Return the next event of a kind and session; an ERROR of that session fails."""
        for index, event in enumerate(self._kept):
            if self._is(event, kind, session):
                return self._kept.pop(index)
        while True:
            event = self._events.get(timeout=PATIENCE)
            if self._is(event, kind, session):
                return event
            assert event["event"] != "ERROR" or event["session"] != session, event
            if event["event"] != "HEARTBEAT":
                self._kept.append(event)

    @staticmethod
    def _is(event: dict[str, str], kind: str, session: str | None) -> bool:
        return event["event"] == kind and event.get("session") == session

    def heard(self, kind: str) -> bool:
        """Tell whether such an event was passed over."""
        return any(event["event"] == kind for event in self._kept)

    def connect(self, session: str) -> None:
        self.say("connect", session)
        connected = self.next("CONNECTED", session)
        assert connected["header.version"] == "1.2"
        assert connected["header.heart-beat"] == f"{BEAT},{BEAT}"

    def subscribe(self, session: str, id: str, destination: str) -> None:
        self.say("subscribe", session, id, destination)
        assert self.next("RECEIPT", session)["header.receipt-id"] == f"receipt-{id}"

    def message(self, session: str, id: str) -> str:
        event = self.next("MESSAGE", session)
        assert event["header.subscription"] == id
        return event["body"]


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    """Start the relay; it has connected its own session when this returns."""
    java = shutil.which("java")
    require("Java", java is not None, "not installed: apt-get install default-jdk-headless maven")
    built = (DIRECTORY / "target" / ".built").exists()
    require("Spring's relay", built, "not built: scripts/test-servers.sh does it")
    process = subprocess.Popen(
        [
            *(str(java), "-Xmx128m", "-cp", "target/classes:target/lib/*"),
            *("Relay", str(port), "guest", "guest", str(BEAT)),
        ],
        cwd=DIRECTORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        started = Relay(process)
        started.next("available")
        yield started
        started.say("bye")
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


def test_browsers_behind_a_relay(behind: Behind) -> None:  # noqa: F811
    topic, user = unique("prices"), unique("pos")
    with relay(behind.tcp[1]) as spring:
        for session in ("s1", "s2"):
            spring.connect(session)
            spring.subscribe(session, "sub-0", f"/topic/{topic}.*")
        # What /user/queue/pos becomes: a queue with the session in its name, or a key.
        spring.subscribe("s1", "sub-1", f"/queue/{user}-users1")
        spring.subscribe("s2", "sub-1", f"/exchange/amq.direct/{user}-users2")

        # The application's own messages go over the relay's system connection.
        spring.say("broker", f"/topic/{topic}.a", '{"hi": "你好"}')
        for session in ("s1", "s2"):
            assert spring.message(session, "sub-0") == '{"hi": "你好"}'
        spring.say("broker", f"/queue/{user}-users1", "mine")
        spring.say("broker", f"/exchange/amq.direct/{user}-users2", "yours")
        assert spring.message("s1", "sub-1") == "mine"
        assert spring.message("s2", "sub-1") == "yours"

        # A browser's own, passed on over its connection.
        spring.say("send", "s1", f"/topic/{topic}.b", "from s1")
        for session in ("s1", "s2"):
            assert spring.message(session, "sub-0") == "from s1"

        spring.say("unsubscribe", "s1", "sub-0")
        assert spring.next("RECEIPT", "s1")["header.receipt-id"] == "gone-sub-0"
        # What another back end publishes comes to those who are still there.
        behind.publish("amq.topic", f"{topic}.c", "from elsewhere")
        assert spring.message("s2", "sub-0") == "from elsewhere"
        spring.say("broker", f"/queue/{user}-users1", "again")
        assert spring.message("s1", "sub-1") == "again", "and nothing of /topic before it"

        spring.say("disconnect", "s1", "bye")
        assert spring.next("RECEIPT", "s1")["header.receipt-id"] == "bye"
        spring.say("disconnect", "s2")
        # Their names may come again, as those of browsers that reload do not.
        spring.connect("s3")
        spring.subscribe("s3", "sub-0", f"/topic/{topic}.*")
        spring.say("broker", f"/topic/{topic}.d", "to s3")
        assert spring.message("s3", "sub-0") == "to s3"
        assert not spring.heard("unavailable")


def test_heart_beats_keep_idle_sessions() -> None:
    with (
        queuecast.testing.gateway(server={"stomp_tcp": "127.0.0.1:0", "grace": "2s"}) as running,
        relay(int(running.gateway.stomp_url.rpartition(":")[2])) as spring,
    ):
        spring.connect("s1")
        spring.subscribe("s1", "sub-0", "/topic/prices")
        # Ours come every second: by then either side would have missed three. The relay passes
        # a browser's on, and has its own on the system connection alone.
        for _ in range(8):
            spring.next("HEARTBEAT", "s1")
            spring.say("beat", "s1")
        spring.say("broker", "/topic/prices", "still here")
        assert spring.message("s1", "sub-0") == "still here"
        assert not spring.heard("unavailable")


def test_the_relay_comes_back_after_a_restart_of_the_gateway() -> None:
    tables: dict[str, Any] = {"server": {"stomp_tcp": f"127.0.0.1:{free_port()}", "grace": "2s"}}
    running = queuecast.testing.gateway(**tables)
    port = int(running.__enter__().gateway.stomp_url.rpartition(":")[2])
    try:
        with relay(port) as spring:
            spring.connect("s1")
            running.__exit__(None, None, None)
            spring.next("unavailable")
            # Spring ends the browser's session; the page connects again.
            assert spring.next("ERROR", "s1")["header.message"]
            running = queuecast.testing.gateway(**tables)
            running.__enter__()
            spring.next("available")
            spring.connect("s2")
            spring.subscribe("s2", "sub-0", "/topic/prices")
            spring.say("broker", "/topic/prices", "after")
            assert spring.message("s2", "sub-0") == "after"
    finally:
        running.__exit__(None, None, None)
