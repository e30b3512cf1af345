"""RabbitMQ that asks for client certificates, and logs in by them (SASL EXTERNAL)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from queuecast.brokers.factory import login_broker
from queuecast.destination import Destination
from queuecast.errors import LoginRefused, Refused
from tests.conftest import Rabbits
from tests.e2e.clients import gateway, request
from tests.e2e.test_rabbitmq_tls import front
from tests.support.authority import Authority, Certificate
from tests.support.processes import free_port
from tests.support.rabbit import started
from tests.support.servers import RabbitMQ, RabbitServer, unique
from tests.support.sinks import ListFeed

pytestmark = pytest.mark.rabbitmq

D = Destination.parse


class TlsRabbit:
    """A RabbitMQ whose TLS listener takes only clients with a certificate of its authority."""

    def __init__(self, server: RabbitServer) -> None:
        self.server = server
        self.port = free_port()
        folder = server.directory / "tls"
        folder.mkdir()
        self.authority = Authority(folder)
        own = self.authority.issue("server")
        seen = server.seen / "tls"
        for each in (own.certfile, own.keyfile, self.authority.cafile):
            each.chmod(0o644)
        with (server.directory / "rabbitmq.conf").open("a") as file:
            file.write(
                f"""listeners.ssl.1 = 127.0.0.1:{self.port}
ssl_options.cacertfile = {seen / "ca.pem"}
ssl_options.certfile = {seen / own.certfile.name}
ssl_options.keyfile = {seen / own.keyfile.name}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
ssl_cert_login_from = common_name
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
"""
            )
        (server.directory / "enabled_plugins").write_text("[rabbitmq_auth_mechanism_ssl].\n")
        server.start()
        server.add_user("gateway", "not asked for")
        self.gateway = self.authority.issue("gateway")

    def url(
        self, login: str = "", certificate: Certificate | None = None, *, host: str = "localhost"
    ) -> str:
        query = f"cacertfile={self.authority.cafile}"
        if certificate is not None:
            query += f"&certfile={certificate.certfile}&keyfile={certificate.keyfile}"
        return f"amqps://{login}{host}:{self.port}/?{query}"

    def external(self, certificate: Certificate) -> str:
        return f"{self.url(certificate=certificate)}&auth_mechanism=external"


@pytest.fixture(scope="module")
def tls(rabbits: Rabbits, rabbit_name: str) -> Iterator[TlsRabbit]:
    server = rabbits.make(rabbit_name)
    try:
        yield TlsRabbit(server)
    finally:
        server.close()


async def test_a_client_certificate_and_a_password(tls: TlsRabbit) -> None:
    async with started(tls.url("guest:guest@", tls.gateway)) as broker:
        await broker.publish(D("/queue/certificates"), b"1")


@pytest.mark.both_loops
async def test_the_certificate_is_the_login(tls: TlsRabbit) -> None:
    async with started(tls.external(tls.gateway)) as broker:
        assert broker.name == f"amqps://localhost:{tls.port}/"
        key, sink = unique("external"), ListFeed()
        await broker.open_feed(D(f"/topic/{key}"), sink)
        await broker.publish(D(f"/topic/{key}"), b"1")
        await sink.until(1)
        users = {each["user"] for each in tls.server.list_connections()}
        assert "gateway" in users
        # Users of STOMP log in with their own passwords, behind the same certificate.
        name = unique("alice")
        tls.server.add_user(name, "secret")
        alice = login_broker(broker, name, "secret", None)
        await alice.start()
        assert name in {each["user"] for each in tls.server.list_connections()}
        await alice.close()
        with pytest.raises(LoginRefused):
            await login_broker(broker, name, "wrong", None).start()


async def test_a_gateway_whose_files_are_settings(tls: TlsRabbit) -> None:
    broker = {
        "url": f"amqps://localhost:{tls.port}?auth_mechanism=external",
        "cafile": str(tls.authority.cafile),
        "certfile": str(tls.gateway.certfile),
        "keyfile": str(tls.gateway.keyfile),
    }
    async with gateway(broker=broker) as gw:
        answer = await request("POST", f"{gw.url}/publish/topic/{unique('external')}", data="1")
        assert answer.status == 200


async def test_a_certificate_of_no_user_is_a_refused_login(tls: TlsRabbit) -> None:
    stranger = tls.authority.issue("stranger")
    with pytest.raises(LoginRefused) as caught:
        async with started(tls.external(stranger)):
            raise AssertionError("there is no such user")
    assert "ssl_cert_login_from" in caught.value.hint


async def test_no_certificate_and_one_of_another_authority(tls: TlsRabbit, tmp_path: Path) -> None:
    foreign = Authority(tmp_path).issue("gateway")
    for certificate, alert in ((None, "certificate required"), (foreign, "unknown ca")):
        with pytest.raises(Refused) as caught:
            async with started(tls.url("guest:guest@", certificate)):
                raise AssertionError("RabbitMQ takes only certificates of its own authority")
        assert caught.value.text == f"localhost:{tls.port} ended TLS: {alert}"
        assert "certfile" in caught.value.hint


async def test_the_name_that_the_certificates_have(tls: TlsRabbit) -> None:
    # The certificate has this name too.
    async with started(tls.url("guest:guest@", tls.gateway, host="127.0.0.1")):
        pass
    url = f"{tls.url('guest:guest@', tls.gateway)}&server_name_indication=elsewhere.example"
    with pytest.raises(Refused, match="elsewhere"):
        async with started(url):
            raise AssertionError("the certificate has another name")


async def test_each_host_has_a_certificate_with_its_own_name(
    tls: TlsRabbit, rabbit: RabbitMQ, tmp_path: Path
) -> None:
    foreign = Authority(tmp_path).issue("localhost")
    both = tmp_path / "both.pem"
    both.write_bytes(foreign.certfile.read_bytes() + foreign.keyfile.read_bytes())
    async with front(rabbit, both) as port:
        url = tls.url("guest:guest@", tls.gateway, host=f"127.0.0.1:{port},localhost")
        async with started(url) as broker:
            assert broker.status == f"connected to localhost:{tls.port}"


async def test_a_broker_without_the_plugin_offers_no_login_by_certificate(
    rabbit: RabbitMQ, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    server, client = authority.issue("server"), authority.issue("gateway")
    both = tmp_path / "both.pem"
    both.write_bytes(server.certfile.read_bytes() + server.keyfile.read_bytes())
    vhost = urlsplit(rabbit.url).path
    async with front(rabbit, both) as port:
        url = (
            f"amqps://localhost:{port}{vhost}?auth_mechanism=external&cafile={authority.cafile}"
            f"&certfile={client.certfile}&keyfile={client.keyfile}"
        )
        with pytest.raises(LoginRefused) as caught:
            async with started(url):
                raise AssertionError("the plugin is not enabled")
        assert "rabbitmq_auth_mechanism_ssl" in caught.value.hint
