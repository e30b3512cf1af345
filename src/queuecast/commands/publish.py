"""`queuecast publish DEST [BODY|-]`: one message; done once the broker has it."""

from __future__ import annotations

import argparse
import asyncio
import sys

import aiohttp

from .client import base_of, path_of, refusal_of, unreachable
from .failure import Failure

# What `--header` sets as a property; every other name is an application's header.
PROPERTIES = frozenset(
    (
        *("content-encoding", "correlation-id", "reply-to", "message-id", "type", "app-id"),
        *("persistent", "expiration", "priority", "timestamp"),
    )
)
# Seconds for the broker's confirm; the gateway itself answers sooner.
_TIMEOUT = 60.0


def publish(arguments: argparse.Namespace) -> int:
    """Publish and return 0; raises Failure."""
    url = base_of(arguments.url) + "/publish" + path_of(arguments.destination)
    parameters = _parameters(arguments)
    headers = {"Content-Type": arguments.content_type} if arguments.content_type else {}
    if any(char < " " or char == "\x7f" for char in arguments.content_type or ""):
        raise Failure(f"--content-type: {arguments.content_type!r} is not a media type", 2)
    if arguments.body == "-":
        body = sys.stdin.buffer.read()
    else:
        body = arguments.body.encode("utf-8", "surrogateescape")
    asyncio.run(_publish(url, parameters, headers, body))
    return 0


def _parameters(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    parameters: list[tuple[str, str]] = []
    for header in arguments.header:
        name, equals, value = header.partition("=")
        if not equals or not name:
            raise Failure(f"--header: {header!r} is not NAME=VALUE", 2)
        if name == "content-type":
            raise Failure("--header: give the content-type with --content-type", 2)
        parameters.append((name if name in PROPERTIES else f"header.{name}", value))
    if arguments.persistent is not None:
        parameters.append(("persistent", "true" if arguments.persistent else "false"))
    return parameters


async def _publish(
    url: str, parameters: list[tuple[str, str]], headers: dict[str, str], body: bytes
) -> None:
    from yarl import URL

    # The path is percent-encoded already: encoding it anew would turn %2F into a slash.
    target = URL(url, encoded=True)
    if parameters:
        target = target.with_query(parameters)
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, skip_auto_headers=("Content-Type",)) as session,
            session.post(target, data=body, headers=headers, allow_redirects=False) as response,
        ):
            if not 200 <= response.status < 300:
                raise Failure(str(await refusal_of(response)))
    except aiohttp.ClientConnectorError as error:
        raise Failure(unreachable(url, error)) from None
    except (aiohttp.ClientError, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise Failure(f"the outcome is unknown, no answer came: {reason}") from None
