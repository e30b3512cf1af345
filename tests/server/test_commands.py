"""Enveloped WebSockets: objects with which neither parser nor stack can be trusted."""

import json

import pytest

from queuecast.codecs.websocket import BINARY, CLOSE, TEXT
from tests.server.house import Client, running, upgrade
from tests.unit.codecs.client_frames import client_frame


async def frame_of(client: Client) -> tuple[int, bytes]:
    """Read one short frame from the server."""
    first, length = await client.reader.readexactly(2)
    if length == 126:
        length = int.from_bytes(await client.reader.readexactly(2), "big")
    return first & 15, await client.reader.readexactly(length)


async def said(command: bytes, opcode: int) -> tuple[int, bytes]:
    """Send one object on a WebSocket of its own; returns the answering frame."""
    async with running() as house:
        client = await house.connect(upgrade("/ws/topic/a?envelope=json"))
        await client.until(b"\r\n\r\n")
        assert json.loads((await frame_of(client))[1])["subscribed"] == "/topic/a"
        await client.send(client_frame(opcode, command))
        return await frame_of(client)


@pytest.mark.parametrize("command", [b'{"publish":"/topic/\xff"}', b'{"\xff":1}'])
async def test_a_binary_object_that_is_not_utf8_is_answered(
    command: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    opcode, payload = await said(command, BINARY)
    assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, 4400)
    assert not [record for record in caplog.records if record.exc_info]


async def test_lists_within_lists_do_not_break_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running() as house:
        # Somewhere here the parser still takes what a repetition of it has no stack for.
        for depth in range(700, 1000):
            client = await house.connect(upgrade("/ws/topic/a?envelope=json"))
            await client.until(b"\r\n\r\n")
            await frame_of(client)
            nested = "[" * depth + "]" * depth
            command = f'{{"publish":"/topic/b","headers":{{"priority":{nested}}}}}'
            await client.send(client_frame(TEXT, command.encode()))
            opcode, payload = await frame_of(client)
            closed = opcode == CLOSE and payload[:2] == (4400).to_bytes(2, "big")
            assert closed or b'"bad_request"' in payload
            client.writer.close()
    assert not [record for record in caplog.records if record.exc_info]
