"""amqps:// with a CA file, through a TLS front of the tests' own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from queuecast.destination import Destination
from queuecast.errors import Refused
from tests.support.processes import require
from tests.support.rabbit import started
from tests.support.servers import RabbitMQ, unique
from tests.support.sinks import ListFeed

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for localhost that is its own authority, key and all in one file."""
    openssl = shutil.which("openssl")
    require("openssl", openssl is not None, "not installed: apt-get install openssl")
    assert openssl is not None
    path = tmp_path / "both.pem"
    key = tmp_path / "key.pem"
    command = (
        f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {path}"
    )
    subprocess.run([openssl, *command.split()], check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


@contextlib.asynccontextmanager
async def front(rabbit: RabbitMQ, certificate: Path) -> AsyncIterator[int]:
    """Take TLS connections and pass on what is in them; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    parts = urlsplit(rabbit.url)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection(parts.hostname, parts.port or 5672)
        await asyncio.gather(copy(reader, behind[1]), copy(behind[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.both_loops
async def test_tls_with_a_ca_file(rabbit: RabbitMQ, certificate: Path) -> None:
    parts = urlsplit(rabbit.url)
    login = parts.netloc.rpartition("@")[0]
    async with front(rabbit, certificate) as port:
        url = parts._replace(scheme="amqps", netloc=f"{login}@localhost:{port}").geturl()
        async with started(f"{url}?cafile={certificate}") as broker:
            key = unique("tls")
            sink = ListFeed()
            await broker.open_feed(D(f"/topic/{key}"), sink)
            await broker.publish(D(f"/topic/{key}"), b"x" * 300_000)
            await sink.until(1)
            assert sink.bodies == [b"x" * 300_000]
            assert broker.name.startswith("amqps://guest:***@localhost")
        with pytest.raises(Refused) as caught:
            async with started(url):
                raise AssertionError("the certificate is nobody's")
        assert "cafile" in str(caught.value)
        elsewhere = url.replace("@localhost", "@127.0.0.1")
        with pytest.raises(Refused) as caught:
            async with started(f"{elsewhere}?cafile={certificate}"):
                raise AssertionError("the certificate is another host's")
        assert "a name that the certificate has" in caught.value.hint
