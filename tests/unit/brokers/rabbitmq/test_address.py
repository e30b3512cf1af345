"""The broker URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from queuecast.brokers.rabbitmq.address import Address
from queuecast.errors import ConfigError


def test_everything_in_one_url() -> None:
    address = Address.parse(
        "amqps://us%40er:p%2Fss@host.example:5999/v%2Fh?cafile=/ca.pem&heartbeat=7"
        "&connection_timeout=2.5"
    )
    assert (address.user, address.password) == ("us@er", "p/ss")
    assert (address.host, address.port, address.virtual_host) == ("host.example", 5999, "v/h")
    assert (address.tls, address.cafile) == (True, "/ca.pem")
    assert (address.heartbeat, address.connection_timeout) == (7, 2.5)


@pytest.mark.parametrize("url", ["amqp://", "amqp://127.0.0.1", "amqp://127.0.0.1:5672/"])
def test_defaults(url: str) -> None:
    address = Address.parse(url)
    assert address == Address()
    assert (address.user, address.virtual_host) == ("guest", "/")


def test_the_tls_port() -> None:
    assert Address.parse("amqps://host").port == 5671
    assert Address.parse("amqps://host", cafile="/mine.pem").cafile == "/mine.pem"


@pytest.mark.parametrize("password", ["geheim", "ge%40heim"])
def test_the_password_is_masked_everywhere(password: str) -> None:
    address = Address.parse(f"amqp://me:{password}@[::1]:1234/v")
    assert address.masked == "amqp://me:***@[::1]:1234/v"
    assert "heim" not in repr(address)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://host", "scheme"),
        ("amqp://host:port/", "port"),
        ("amqp://a,b/", "one host"),
        ("amqp://host/a/b", "%2F"),
        ("amqp://host/?cafile=x", "amqps"),
        ("amqp://host/?heartbeat=often", "heartbeat"),
        ("amqp://host/?heartbeat=-1", "heartbeat"),
        ("amqp://host/?connection_timeout=0", "connection_timeout"),
        ("amqp://host/?connection_timeout=nan", "connection_timeout"),
        ("amqp://host/?surprise=1", "surprise"),
    ],
)
def test_what_is_wrong_is_said(url: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(url)
    assert word in str(caught.value)


def test_a_missing_or_wrong_cafile(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        Address.parse("amqps://host", cafile=str(tmp_path / "none.pem")).ssl_context()
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    with pytest.raises(ConfigError):
        Address.parse("amqps://host", cafile=str(wrong)).ssl_context()
    assert Address.parse("amqp://host").ssl_context() is None


@pytest.mark.parametrize("password", ["geheim/1", "1/geheim", "1?geheim", "1#geheim", "ge@im?a=b"])
def test_a_password_that_was_not_encoded_is_not_shown(password: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(f"amqp://me:{password}@host:5672/")
    shown = str(caught.value)
    assert "geheim" not in shown
    assert "ge@im" not in shown
    assert "%2F" in shown
