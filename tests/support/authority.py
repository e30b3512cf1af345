"""A certificate authority of the tests' own, for TLS with certificates on both sides."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import require

_NAMES = "DNS:localhost,IP:127.0.0.1,IP:::1"


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, both in PEM."""

    certfile: Path
    keyfile: Path


class Authority:
    """Issues certificates, all for localhost, that whoever trusts `cafile` trusts."""

    def __init__(self, directory: Path) -> None:
        openssl = shutil.which("openssl")
        require("openssl", openssl is not None, "not installed: apt-get install openssl")
        self._openssl = str(openssl)
        self._directory = directory
        self.cafile = directory / "ca.pem"
        self._key = directory / "ca.key"
        self._run(
            *("req", "-x509", "-days", "2", "-subj", "/CN=tests", "-nodes"),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-keyout", self._key, "-out", self.cafile),
        )

    def issue(self, name: str, *, passphrase: str = "") -> Certificate:
        """Return a certificate with this common name. passphrase: of its key, "" for none."""
        made = Certificate(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        request = self._directory / f"{name}.csr"
        secret = ("-passout", f"pass:{passphrase}") if passphrase else ("-nodes",)
        self._run(
            *("req", "-subj", f"/CN={name}", "-addext", f"subjectAltName={_NAMES}", *secret),
            *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-keyout", made.keyfile, "-out", request),
        )
        self._run(
            *("x509", "-req", "-days", "2", "-copy_extensions", "copy", "-in", request),
            *("-CA", self.cafile, "-CAkey", self._key, "-CAcreateserial", "-out", made.certfile),
        )
        return made

    def _run(self, *args: str | Path) -> None:
        subprocess.run([self._openssl, *args], check=True, capture_output=True)
