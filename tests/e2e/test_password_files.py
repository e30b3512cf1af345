"""Passwords in files, at RabbitMQ: a secret that is replaced holds from the next connect on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from queuecast.config import load
from queuecast.destination import Destination
from queuecast.errors import ConfigError
from tests.e2e.clients import gateway, get
from tests.support.rabbit import started
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListFeed, eventually

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


def url_of(rabbit: RabbitMQ, user: str) -> str:
    parts = urlsplit(rabbit.url)
    return parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}").geturl()


async def test_a_secret_is_replaced_while_the_gateway_runs(
    rabbit: RabbitMQ, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    user, file = unique("rotated"), tmp_path / "password"
    rabbit.add_user(user, "geheim 1")
    file.write_text("geheim 1\n")
    key, sink = unique("rotated"), ListFeed()
    async with started(f"{url_of(rabbit, user)}?password_file={file}") as broker:
        await broker.open_feed(D(f"/topic/{key}"), sink)
        # First the broker has another password, then the file, as it goes with secret stores.
        await asyncio.to_thread(rabbit.ctl, "change_password", user, "geheim 2")
        await asyncio.to_thread(rabbit.close_all_connections)
        await eventually(lambda: broker.refused is not None, "refused")
        assert "password_file" in broker.status
        file.unlink()
        await eventually(lambda: "no such file" in broker.status, "said so")
        assert str(file) in broker.status
        file.write_text("geheim 2\n")
        await eventually(lambda: broker.ready, "connected again")
        await broker.publish(D(f"/topic/{key}"), b"1")
        await sink.until(1)
        # A check of the login reads it as well.
        file.write_text("geheim 3")
        await asyncio.to_thread(rabbit.ctl, "change_password", user, "geheim 3")
        await broker.check_login()
    assert "geheim" not in caplog.text + broker.name + repr(broker.address)


async def test_the_setting_and_its_variable(rabbit: RabbitMQ, tmp_path: Path) -> None:
    user, file = unique("set"), tmp_path / "password"
    rabbit.add_user(user, "p w/@:?")
    file.write_text("p w/@:?")
    url = url_of(rabbit, user)
    environ = {"QUEUECAST_BROKER__URL": url, "QUEUECAST_BROKER__PASSWORD_FILE": str(file)}
    assert load(environ=environ, directory=tmp_path).broker.password_file == str(file)
    async with gateway(broker={"url": url, "password_file": str(file)}) as gw:
        assert (await get(f"{gw.url}/readyz")).status == 200


async def test_a_start_without_the_file_fails(rabbit: RabbitMQ, tmp_path: Path) -> None:
    file = str(tmp_path / "missing")
    broker = {"url": url_of(rabbit, "guest"), "password_file": file}
    with pytest.raises(ConfigError) as caught:
        async with gateway(broker=broker):
            raise AssertionError("the password is not known")
    assert caught.value.text == f"password_file: no such file {file!r}"
