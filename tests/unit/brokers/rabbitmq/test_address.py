"""The broker URL."""

from __future__ import annotations

import pytest

from queuecast.brokers.files import Files
from queuecast.brokers.rabbitmq.address import Address
from queuecast.errors import ConfigError


def test_everything_in_one_url() -> None:
    address = Address.parse(
        "amqps://us%40er:p%2Fss@host.example:5999/v%2Fh?cafile=/ca.pem&heartbeat=7"
        "&connection_timeout=2.5"
    )
    assert (address.user, address.password) == ("us@er", "p/ss")
    assert (address.hosts, address.virtual_host) == ((("host.example", 5999),), "v/h")
    assert (address.tls, address.files.cafile) == (True, "/ca.pem")
    assert (address.heartbeat, address.connection_timeout) == (7, 2.5)


@pytest.mark.parametrize("url", ["amqp://", "amqp://127.0.0.1", "amqp://127.0.0.1:5672/"])
def test_defaults(url: str) -> None:
    address = Address.parse(url)
    assert address == Address()
    assert (address.user, address.virtual_host) == ("guest", "/")


def test_the_tls_port() -> None:
    assert Address.parse("amqps://host").hosts == (("host", 5671),)


def test_what_is_set_wins_over_the_url() -> None:
    address = Address.parse("amqps://host?cafile=/url.pem", files=Files(cafile="/mine.pem"))
    assert address.files.cafile == "/mine.pem"


def test_several_hosts() -> None:
    address = Address.parse("amqps://user:p%2Fw@a,b:1,[::1],[::1]:2/v")
    assert address.hosts == (("a", 5671), ("b", 1), ("::1", 5671), ("::1", 2))
    assert address.masked == "amqps://user:***@a:5671,b:1,[::1]:5671,[::1]:2/v"
    assert Address.parse("amqp://a,b").hosts == (("a", 5672), ("b", 5672))
    # A frozen one must not hold up the others for as long as one alone may take.
    assert address.connection_timeout < Address().connection_timeout
    assert Address.parse("amqp://a,b?connection_timeout=20").connection_timeout == 20


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2.5", 2.5), ("60", 60), ("3000", 3), ("60000", 60), ("500ms", 0.5), ("3s", 3)],
)
def test_connection_timeout_in_seconds_or_as_rabbitmq_has_it(text: str, seconds: float) -> None:
    assert Address.parse(f"amqp://h?connection_timeout={text}").connection_timeout == seconds


def test_rabbitmqs_own_parameters() -> None:
    address = Address.parse(
        "amqps://h?cacertfile=/ca.pem&certfile=/c.pem&keyfile=/k.pem&verify=verify_peer"
        "&fail_if_no_peer_cert=true&server_name_indication=rabbit.example&heartbeat=5"
        "&auth_mechanism=EXTERNAL&channel_max=1000&connection_timeout=5000"
    )
    assert address.files == Files("/ca.pem", "/c.pem", "/k.pem")
    assert (address.server_name, address.heartbeat) == ("rabbit.example", 5)
    assert (address.external, address.channel_max) == (True, 1000)
    assert address.masked == "amqps://h:5671/"
    assert Address.parse("amqp://h?auth_mechanism=plain") == Address.parse("amqp://h")


def test_another_users_address_keeps_the_certificate_and_no_secret() -> None:
    files = Files("/ca.pem", "/c.pem", "/k.pem")
    ours = Address.parse("amqps://a,b/v?auth_mechanism=external", files=files)
    theirs = ours.for_login("bob", "secret", None)
    assert (theirs.hosts, theirs.virtual_host, theirs.files) == (ours.hosts, "v", files)
    assert (theirs.user, theirs.current_password(), theirs.external) == ("bob", "secret", False)
    from_file = Address.parse("amqp://u@h?password_file=/ours").for_login("bob", "secret", "w")
    assert (from_file.current_password(), from_file.virtual_host) == ("secret", "w")


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
        ("amqp://a,,b/", "port"),
        ("amqp://a,b:0/", "port"),
        ("amqp://a,[::1/", "port"),
        ("amqp://a,b:5672,A:5672", "twice"),
        ("amqp://host/?certfile=x", "amqps"),
        ("amqps://host/?keyfile=x", "certfile"),
        ("amqps://host/?auth_mechanism=external", "certfile"),
        ("amqps://u:p@host/?auth_mechanism=external&certfile=x", "password"),
        ("amqps://host/?auth_mechanism=gssapi", "auth_mechanism"),
        ("amqps://host/?verify=verify_none", "verify_peer"),
        ("amqps://host/?server_name_indication=disable", "server_name_indication"),
        ("amqp://host/?server_name_indication=x", "amqps"),
        ("amqps://host/?password=geheim", "passphrase_file"),
        ("amqp://u:p@host/?password_file=x", "password_file"),
        ("amqp://host/?channel_max=9", "channel_max"),
        ("amqp://host/?connection_timeout=999", "connection_timeout"),
        ("amqp://host/?connection_timeout=3h", "connection_timeout"),
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
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("password", ["geheim/1", "1/geheim", "1?geheim", "1#geheim", "ge@im?a=b"])
def test_a_password_that_was_not_encoded_is_not_shown(password: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(f"amqp://me:{password}@host:5672/")
    shown = str(caught.value)
    assert "geheim" not in shown
    assert "ge@im" not in shown
    assert "%2F" in shown


def test_feed_queues() -> None:
    assert Address.parse("amqp://a/").feed_queues == ""
    assert Address.parse("amqp://a/?feed_queues=quorum").feed_queues == "quorum"
    with pytest.raises(ConfigError, match="feed_queues='stream'"):
        Address.parse("amqp://a/?feed_queues=stream")
