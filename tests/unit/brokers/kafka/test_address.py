"""kafka:// URLs: what they mean, and that what is wrong with one never shows its password."""

import ssl
from pathlib import Path

import pytest

from queuecast.brokers.files import Files
from queuecast.brokers.kafka.address import Address
from queuecast.errors import ConfigError


def test_servers_and_login() -> None:
    address = Address.parse(
        "kafka://al%40ice:p%2F%23w@one,two:9093,[::1]:9094?mechanism=SCRAM-SHA-256"
    )
    assert address.servers == ("one:9092", "two:9093", "[::1]:9094")
    assert (address.user, address.password) == ("al@ice", "p/#w")
    options = address.options()
    assert options["security_protocol"] == "SASL_PLAINTEXT"
    assert options["sasl_mechanism"] == "SCRAM-SHA-256"
    assert "p/#w" not in address.masked + repr(address)
    assert address.masked == "kafka://al%40ice:***@one:9092,two:9093,[::1]:9094"


def test_tls_and_no_login() -> None:
    options = Address.parse("kafkas://h").options()
    assert options["security_protocol"] == "SSL"
    assert isinstance(options["ssl_context"], ssl.SSLContext)
    assert Address.parse("kafka://h").options() == {
        "bootstrap_servers": ["h:9092"],
        "security_protocol": "PLAINTEXT",
    }
    assert Address.parse("kafkas://u:p@h").options()["sasl_mechanism"] == "PLAIN"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("kafka:h", "one of Kafka's"),
        ("kafka://", "cannot be read"),
        ("kafka://h:0", "cannot be read"),
        ("kafka://h:99999", "cannot be read"),
        ("kafka://h:secret", "cannot be read"),
        ("kafka://h,,g", "cannot be read"),
        ("kafka://h/topic", "has a path"),
        ("kafka://u:secret/x@h", "an @ behind"),
        ("kafka://u:sec#ret@h", "# in it"),
        ("kafka://u@h", "USER:PASSWORD"),
        ("kafka://:secret@h", "USER:PASSWORD"),
        ("kafka://u:secret@h?mechanism=GSSAPI", "SCRAM-SHA-512"),
        ("kafka://h?mechanism=PLAIN", "without a login"),
        ("kafka://h?group=a", "'group'"),
        ("kafka://u:secret@h?%", "the ?"),
        ("kafka://u:secret@h?password_file=x", "password_file"),
        ("kafka://h?password_file=x", "no user"),
        ("kafkas://h?keyfile=x", "certfile"),
        ("kafka://h?certfile=x", "kafkas"),
        ("kafka://h,h:9092", "twice"),
    ],
)
def test_what_is_wrong_is_said_without_the_password(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Address.parse(url)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_cafile_needs_tls() -> None:
    with pytest.raises(ConfigError, match="kafkas://"):
        Address.parse("kafka://h", files=Files(cafile="ca.pem"))


def test_a_password_from_a_file_is_read_each_time(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    address = Address.parse(f"kafka://u@h?password_file={file}&mechanism=scram-sha-256")
    assert address.options()["sasl_plain_password"] == "one"
    file.write_text("two")
    assert address.options()["sasl_plain_password"] == "two"
    assert address.masked == "kafka://u:***@h:9092"
