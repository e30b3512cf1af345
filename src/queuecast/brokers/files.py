"""What a connection to a broker reads from files: its password, and TLS's certificates.

Every file is read again for each connection, so that a secret or a certificate that was replaced
holds from the next connect on.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, fields
from pathlib import Path

from ..errors import ConfigError

# Bytes of a file with a secret; it stops a wrong path, e.g. to a disk image, from filling memory.
_MOST = 64 << 10
# How OpenSSL writes an alert of RFC 8446 section 6: "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] …".
_ALERT = re.compile(r"\[SSL: [A-Z0-9]+_ALERT_([A-Z_]+)\]")


@dataclass(frozen=True, slots=True)
class Files:
    """The paths, "" for none; each is a setting of [broker] and a parameter of the broker URL.

    cafile: authorities to trust instead of the system's. certfile: the gateway's own certificate,
    with those that lead to its authority. keyfile: its key, where it is not in certfile.
    passphrase_file: the key's passphrase. password_file: the login's password. Certificates and
    keys are PEM.
    """

    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    passphrase_file: str = ""
    password_file: str = ""

    def with_options(self, options: dict[str, str]) -> Files:
        """Take the paths out of a URL's parameters; those that are set here already win."""
        named = {each: options.pop(each, "") for each in NAMES}
        return Files(**{each: getattr(self, each) or named[each] for each in NAMES})

    def check(self, *, tls: bool, scheme: str) -> None:
        """Raise ConfigError for paths that mean nothing as set. scheme: the one for TLS."""
        for name in ("cafile", "certfile", "keyfile", "passphrase_file"):
            if getattr(self, name) and not tls:
                raise ConfigError(f"broker.{name} without TLS", f"the scheme is {scheme}://")
        for name, needed in (("keyfile", "certfile"), ("passphrase_file", "certfile")):
            if getattr(self, name) and not getattr(self, needed):
                raise ConfigError(f"broker.{name} without broker.{needed}")

    @property
    def certificate_hint(self) -> str:
        """What helps when a broker does not take the gateway's certificate."""
        if self.certfile:
            return "certfile has to be valid, and signed by an authority that the broker trusts"
        return "name a certificate for the gateway with certfile"

    def password(self) -> str:
        """Read password_file, without the newline at its end; raises ConfigError."""
        return _secret("password_file", self.password_file)

    def context(self) -> ssl.SSLContext:
        """Return what TLS needs; raises ConfigError that names the file that cannot be used."""
        for name in ("cafile", "certfile", "keyfile"):
            path = getattr(self, name)
            if path and not Path(path).is_file():
                raise ConfigError(f"{name}: no such file {path!r}")
        try:
            context = ssl.create_default_context(cafile=self.cafile or None)
        except (ssl.SSLError, OSError) as error:
            why = error.strerror if isinstance(error, PermissionError) else error
            raise ConfigError(f"cafile: {self.cafile!r} holds no certificate: {why}") from None
        if self.certfile:
            self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        asked = False

        def passphrase() -> str:
            # Without it OpenSSL would ask at the terminal.
            nonlocal asked
            asked = True
            return _secret("passphrase_file", self.passphrase_file) if self.passphrase_file else ""

        try:
            context.load_cert_chain(self.certfile, self.keyfile or None, password=passphrase)
        except (ssl.SSLError, OSError) as error:
            if asked:
                wrong = "is wrong" if self.passphrase_file else "is not named"
                raise ConfigError(
                    f"keyfile: {self.keyfile or self.certfile!r} is encrypted and its passphrase "
                    f"{wrong}",
                    "passphrase_file names a file that holds it",
                ) from None
            raise ConfigError(
                f"certfile: {self.certfile!r} and its key cannot be used: {_why(error)}",
                "certfile holds the certificate, keyfile the key that belongs to it, both in PEM",
            ) from None


NAMES = tuple(each.name for each in fields(Files))
NO_FILES = Files()


def tls_alert(text: str) -> str:
    """Return what the peer said of the end of TLS in an error's text, "" if it said nothing.

    A server refuses a client's certificate so; with TLS 1.3 only after the handshake.
    """
    found = _ALERT.search(text)
    return found[1].replace("_", " ").lower() if found else ""


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        # "[SSL: KEY_VALUES_MISMATCH] key values mismatch (_ssl.c:4149)"
        return (error.reason or "it is not PEM").replace("_", " ").lower()
    return error.strerror or str(error)


def _secret(name: str, path: str) -> str:
    """Return a file's text without the newline at its end; raises ConfigError."""
    file = Path(path)
    try:
        # A pipe would block, and with it the event loop.
        if not file.is_file():
            raise ConfigError(f"{name}: no such file {path!r}")
        with file.open("rb") as stream:
            data = stream.read(_MOST + 1)
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path!r}: {error.strerror}") from None
    if len(data) > _MOST:
        raise ConfigError(f"{name}: {path!r} is larger than a secret: over {_MOST:,} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{name}: {path!r} is not UTF-8") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise ConfigError(f"{name}: {path!r} is empty")
    return text
