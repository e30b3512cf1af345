"""Secrets and certificates in files: what is read from them, and what is said when it cannot be."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from queuecast.brokers.files import Files
from queuecast.errors import ConfigError
from tests.support.authority import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.mark.parametrize(
    ("text", "password"),
    [("a b\n", "a b"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("ä", "ä"), (" a", " a")],
)
def test_a_newline_at_the_end_is_no_part_of_a_password(
    tmp_path: Path, text: str, password: str
) -> None:
    file = tmp_path / "password"
    file.write_bytes(text.encode())
    assert Files(password_file=str(file)).password() == password


def _nothing(file: Path) -> None:
    pass


def _directory(file: Path) -> None:
    file.mkdir()


def _empty(file: Path) -> None:
    file.write_text("\n")


def _binary(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")


def _huge(file: Path) -> None:
    file.write_bytes(b"x" * 70_000)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_nothing, "no such file"),
        (_directory, "no such file"),
        (_empty, "is empty"),
        (_binary, "not UTF-8"),
        (_huge, "larger"),
    ],
)
def test_a_password_file_that_holds_none_is_named(
    tmp_path: Path, make: Callable[[Path], None], words: str
) -> None:
    file = tmp_path / "password"
    make(file)
    with pytest.raises(ConfigError, match=words) as caught:
        Files(password_file=str(file)).password()
    assert str(file) in caught.value.text


def test_certificate_key_and_passphrase(authority: Authority, tmp_path: Path) -> None:
    cafile = str(authority.cafile)
    one, other = authority.issue("one"), authority.issue("other")
    locked = authority.issue("locked", passphrase="open sesame")
    both = tmp_path / "both.pem"
    both.write_bytes(one.certfile.read_bytes() + one.keyfile.read_bytes())
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("open sesame\n")
    for good in (
        Files(cafile),
        Files(cafile, str(one.certfile), str(one.keyfile)),
        Files(cafile, str(both)),
        Files(cafile, str(locked.certfile), str(locked.keyfile), str(passphrase)),
    ):
        context = good.context()
        assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    passphrase.write_text("wrong")
    for bad, words in (
        (Files(cafile, str(one.certfile), str(other.keyfile)), "key values mismatch"),
        (Files(cafile, str(one.certfile)), "cannot be used"),
        (Files(cafile, str(tmp_path / "none.pem")), "no such file"),
        (Files(cafile, str(locked.certfile), str(locked.keyfile)), "is not named"),
        (
            Files(cafile, str(locked.certfile), str(locked.keyfile), str(passphrase)),
            "is wrong",
        ),
        (Files(str(tmp_path / "none.pem")), "no such file"),
        (Files(str(passphrase)), "holds no certificate"),
    ):
        with pytest.raises(ConfigError, match=words):
            bad.context()


def test_what_is_set_wins_over_the_url() -> None:
    options = {"cafile": "/url.pem", "certfile": "/url.crt", "heartbeat": "3"}
    assert Files(cafile="/set.pem").with_options(options) == Files("/set.pem", "/url.crt")
    assert options == {"heartbeat": "3"}
