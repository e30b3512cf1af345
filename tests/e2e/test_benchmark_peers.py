"""The benchmark's drivers of Centrifugo and Mercure, against stand-ins on PATH.

What answers here is the documented protocol (tests/support/peer_stand_in.py), not the programs.
"""

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import ceiling, latency, peers
from benchmarks.bench import Bench
from benchmarks.figures import Row
from benchmarks.http_publisher import Client
from benchmarks.plan import QUICK
from benchmarks.streams import publication_events, publications, whole_events
from queuecast.codecs.websocket import text_frame

ROOT = Path(__file__).parent.parent.parent
PLAN = replace(
    QUICK,
    subscribers=5,
    wires=("ws", "sse"),
    ceiling=(("http", "ws", 100), ("http", "sse", 100)),
    rates=(100.0,),
    most=1,
)

Put = Callable[[str, str], None]


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Put:
    """Put a program of some lines on PATH; no other peer is here."""

    def there(name: str, text: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}/src:{ROOT}")
    monkeypatch.setattr(peers, "_NCHAN_MODULE", tmp_path / "none")
    monkeypatch.setattr(Bench, "rabbit", lambda bench: None)
    return there


def put_stand_in(put: Put, name: str) -> None:
    put(name, f'exec {sys.executable} -m tests.support.peer_stand_in {name} "$@"')


def measured(bench: Bench) -> list[Row]:
    return [*ceiling.measure(bench), *latency.measure(bench)]


def faults(bench: Bench) -> list[str]:
    return [text for text in bench.missing if "failed" in text]


@pytest.mark.timeout(120)
def test_they_are_measured_when_they_are_on_path(put: Put) -> None:
    put_stand_in(put, "centrifugo")
    put_stand_in(put, "mercure")
    with Bench(PLAN) as bench:
        rows = measured(bench)
    assert not faults(bench), bench.missing
    found = {(row.part, row.transport, row.beside.partition(",")[0]) for row in rows if row.theirs}
    for part in ("ceiling", "latency"):
        assert {
            (part, "WebSocket", "Centrifugo"),
            (part, "SSE", "Centrifugo"),
            (part, "SSE", "Mercure"),
        } <= found


@pytest.mark.timeout(60)
def test_one_that_does_not_start_is_said_to_be_missing(put: Put) -> None:
    put("centrifugo", "echo this host has no wheels >&2; exit 1")
    put("mercure", "exit 3")
    with Bench(PLAN) as bench:
        rows = measured(bench)
    assert {row.transport for row in rows if row.part == "ceiling"} == {"WebSocket", "SSE"}
    assert {row.beside for row in rows} == {"", "null server"}
    wanted = "it failed: centrifugo: the process ended first; this host has no wheels"
    assert f"Centrifugo over WebSocket: {wanted}" in bench.missing
    assert f"Centrifugo over SSE: {wanted}" in bench.missing
    assert "Mercure over SSE: it failed: mercure: the process ended first" in bench.missing


@pytest.mark.timeout(60)
def test_one_that_lets_nobody_subscribe_is_said_to_be_missing(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = peers._centrifugo_config

    def closed(base: Path, port: int) -> str:
        return configured(base, port).replace("allow_subscribe_for_client", "allow_nobody")

    monkeypatch.setattr(peers, "_centrifugo_config", closed)
    put_stand_in(put, "centrifugo")
    with Bench(PLAN) as bench:
        rows = [*ceiling.measure(bench)]
    assert not any(row.theirs for row in rows)
    ws, sse = faults(bench)
    assert "refused" in ws
    assert "permission denied" in ws
    assert "refused" in sse
    assert '"subs":{}' in sse


@pytest.mark.timeout(60)
def test_one_that_refuses_messages_is_said_to_be_missing(
    put: Put, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = peers._mercure_config

    def other(base: Path, port: int) -> str:
        return configured(base, port).replace("publisher_jwt ", "publisher_jwt other-")

    monkeypatch.setattr(peers, "_mercure_config", other)
    put_stand_in(put, "mercure")
    with Bench(PLAN) as bench:
        rows = [*ceiling.measure(bench)]
    assert not any(row.theirs for row in rows)
    (fault,) = faults(bench)
    assert "401" in fault


class TestAnswers:
    """What a server says to POSTs, however it is cut."""

    @pytest.fixture
    def pair(self, monkeypatch: pytest.MonkeyPatch) -> tuple[Client, socket.socket]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = Client(listener.getsockname()[1])
            return client, listener.accept()[0]

    GOOD = b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"result":{}}'
    BAD = b'HTTP/1.1 200 OK\r\nContent-Length: 23\r\n\r\n{"error":{"code":107}}\n'

    def test_are_counted_once(self, pair: tuple[Client, socket.socket]) -> None:
        client, server = pair
        data = self.GOOD * 3
        for place in range(len(data)):
            server.sendall(data[place : place + 1])
            client.read()
        assert client.answered == 3

    @pytest.mark.parametrize("cut", range(1, 12))
    def test_that_tell_of_an_error_are_errors(
        self, pair: tuple[Client, socket.socket], cut: int
    ) -> None:
        client, server = pair
        place = self.BAD.index(b'{"error"') + cut
        server.sendall(self.GOOD + self.BAD[:place])
        with pytest.raises(ValueError, match=r'refused: .*"error'):  # noqa: PT012
            client.read()
            server.sendall(self.BAD[place:])
            client.read()

    def test_of_another_status_are_errors(self, pair: tuple[Client, socket.socket]) -> None:
        client, server = pair
        server.sendall(self.GOOD + b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
        with pytest.raises(ValueError, match=r"refused: .*503"):
            client.read()


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


class TestStreams:
    """Peers' streams, taken apart."""

    PUSH = b'{"channel":"benchmark","pub":{"data":"$1"}}'

    def test_a_frame_has_many_publications(self) -> None:
        push = b'{"push":%s}' % self.PUSH
        stream = text_frame(push + b"\n" + push) + text_frame(b"{}") + text_frame(push)
        assert publications(stream) == [b"$1"] * 3

    def test_an_event_is_cut_anywhere(self) -> None:
        event = b"data: " + self.PUSH + b"\n\n"
        for cut in range(1, len(event)):
            stream = chunked(event[:cut], event[cut:] + event, b"data: {}\n\n")
            assert publication_events(stream) == [b"$1"] * 2
        assert whole_events(chunked(b"id: urn:uuid:4\nda", b"ta: $1\n\n")) == [b"$1"]

    @pytest.mark.parametrize(
        "push", [b'{"disconnect":{"code":3008,"reason":"slow"}}', b'{"pub":{"data":{"a":1}}}']
    )
    def test_anything_else_is_refused(self, push: bytes) -> None:
        with pytest.raises(ValueError, match="not a publication"):
            publications(text_frame(push))
        with pytest.raises(ValueError, match="not a publication"):
            publication_events(chunked(b"data: " + push + b"\n\n"))

    @pytest.mark.parametrize("stream", [b"5", b"5\r\nabc", b"2\r\nabc\r\n"])
    def test_what_is_no_chunk_is_refused(self, stream: bytes) -> None:
        with pytest.raises(ValueError, match=r"not a (whole )?chunk"):
            whole_events(stream)
