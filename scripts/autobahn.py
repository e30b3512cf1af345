"""Run the Autobahn test suite's fuzzing client against the WebSocket layer, and print its verdict.

    PYTHONPATH=src python scripts/autobahn.py WSTEST [CASE ...]

WSTEST: the suite's command. It needs Python 2.7, where `pip install autobahntestsuite` brings it.
CASE: patterns like 12.* (default: all that a server has to pass).

The suite wants an echo server that returns text as text and binary as binary. A gateway is none,
it sends whatever is UTF-8 as text, so the layer is put on a socket of its own here.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path

from queuecast.codecs.deflate import DeflateParser, negotiate, pack
from queuecast.codecs.http1 import HeadParser
from queuecast.codecs.websocket import (
    BINARY,
    TEXT,
    Binary,
    Close,
    Event,
    Fault,
    Ping,
    Pong,
    Text,
    WebSocketParser,
    close_frame,
    frame_header,
    pong_frame,
)
from queuecast.codecs.websocket_handshake import check_upgrade, handshake_response

CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.*", "13.*"]
# UNIMPLEMENTED: the suite offers a window below 15 bits alone (13.3, 13.5), which we decline.
PASSED = ("OK", "INFORMATIONAL", "UNIMPLEMENTED")
MESSAGE = 32 << 20


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._head: HeadParser | None = HeadParser(16 << 10, 100)
        self._deflate = False

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            head = self._head.receive_data(data)
            if head is None:
                return
            self._head = None
            key = check_upgrade(head.method, head.version, head.headers)
            extension = negotiate(head.headers)
            self._deflate = extension is not None
            parser = DeflateParser if self._deflate else WebSocketParser
            self._parser = parser(MESSAGE)
            self._transport.write(handshake_response(key, extension=extension))
            data = head.rest
        events = self._parser.receive_data(data)
        while events:
            for event in events:
                self._answer(event)
            events = self._parser.receive_data(b"") if self._parser.pending else []

    def _answer(self, event: Event) -> None:
        write = self._transport.write
        match event:
            case Text(text):
                self._send(TEXT, text.encode())
            case Binary(body):
                self._send(BINARY, body)
            case Ping(body):
                write(pong_frame(body))
            case Pong():
                pass
            case Close(code):
                write(close_frame(code))
                self._transport.close()
            case Fault(code, reason):
                write(close_frame(code, reason))
                self._transport.close()

    def _send(self, opcode: int, body: bytes) -> None:
        if self._deflate:
            opcode, body = pack(opcode, body)
        self._transport.write(frame_header(opcode, len(body)) + body)


async def run(server_socket: socket.socket, *command: str) -> None:
    """Serve while the command runs."""
    await asyncio.get_running_loop().create_server(Echo, sock=server_socket)
    await (await asyncio.create_subprocess_exec(*command)).wait()


def main(wstest: str, cases: list[str]) -> int:
    server_socket = socket.create_server(("127.0.0.1", 0))
    port = server_socket.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "outdir": folder,
            "servers": [{"agent": "queuecast", "url": f"ws://127.0.0.1:{port}"}],
            "cases": cases or CASES,
            "exclude-cases": [],
            "exclude-agent-cases": {},
        }
        file = Path(folder, "spec.json")
        file.write_text(json.dumps(spec))
        asyncio.run(run(server_socket, wstest, "-m", "fuzzingclient", "-s", str(file)))
        results = json.loads(Path(folder, "index.json").read_text())["queuecast"]
    failed = 0
    counts = Counter(result["behavior"] for result in results.values())
    for case, result in sorted(results.items(), key=lambda item: [*map(int, item[0].split("."))]):
        verdicts = (result["behavior"], result["behaviorClose"])
        if any(verdict not in PASSED for verdict in verdicts):
            failed += 1
            print(case, *verdicts)
    print(f"{len(results)} cases, {failed} failed:", dict(counts))
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
