"""A position that cannot be of what is asked for is the client's fault: 400, on every transport."""

import json
import struct

import pytest

from tests.server.house import Client, House, request, running, upgrade

RETAIN = [{"destination": f"/topic/{name}.#", "age": "1h"} for name in "ab"]
ONE = "destination=/topic/a.1"
TWO = f"{ONE}&destination=/topic/b.1"


async def refusal(house: House, transport: str, query: str) -> str:
    """Ask for a subscription that is refused; returns the code of the refusal."""
    client: Client
    if transport == "ws":
        client = await house.connect(upgrade(f"/ws?{query}&envelope=json"))
        await client.until(b"\r\n\r\n")
        (code,) = struct.unpack("!H", (await client.reader.readexactly(4))[2:])
        return {4400: "bad_request", 4453: "unavailable"}.get(code, str(code))
    client = await house.connect(request("GET", f"/{transport}?{query}"))
    status, problem = await client.problem()
    assert not problem["retry"]
    assert status == 400
    return str(problem["code"])


async def position(house: House, query: str) -> str:
    client = await house.connect(request("GET", f"/poll?{query}&wait=0"))
    status, _, body = await client.response()
    assert status == 200
    return str(json.loads(body)["next"])


@pytest.mark.parametrize("transport", ["sse", "poll", "ws"])
@pytest.mark.parametrize("retain", [RETAIN, []])
async def test_a_position_of_other_destinations(
    transport: str, retain: list[dict[str, str]]
) -> None:
    expected = "bad_request" if transport == "ws" else "bad_position"
    async with running(retain=retain) as house:
        for key in ("a.1", "b.1"):
            await house.publish(f"/topic/{key}", b"x")
        one, two = await position(house, ONE), await position(house, TWO)
        epoch = one.partition("-")[0]
        for wrong in (two, f"{epoch}-1.2", f"{epoch}-1,{epoch}-2", f"{epoch}-1~2~3", "42-", "a~"):
            assert await refusal(house, transport, f"{ONE}&since={wrong}") == expected, wrong
        for wrong in (one, f"{epoch}-1.2.3", f"{epoch}-1~2~3"):
            assert await refusal(house, transport, f"{TWO}&since={wrong}") == expected, wrong


async def test_stomp_says_error() -> None:
    async with running(retain=RETAIN, server={"stomp_tcp": "127.0.0.1:0"}) as house:
        await house.publish("/topic/a.1", b"x")
        two = await position(house, TWO)
        epoch = two.partition("-")[0]
        for wrong in (two, f"{epoch}-1.2"):
            client = await house.connect(upgrade("/ws"))
            for text in (
                "CONNECT\naccept-version:1.2\nhost:localhost\n\n\0",
                f"SUBSCRIBE\nid:1\ndestination:/topic/a.1\nsince:{wrong}\n\n\0",
            ):
                await client.send(b"\x81" + bytes([0x80 | len(text)]) + b"\0\0\0\0" + text.encode())
            await client.until(b"ERROR\n")
            assert b"position" in await client.until(b"\0")
