"""Where RabbitMQ 3.10, 4.0 and 4.3 are on this machine, and how their programs are run.

One may be the system's own package or the folder in RABBITMQ_HOME; the others are packages of
other Debians in a folder that scripts/test-servers.sh sets up, and is run under chroot. Each
chroot has its mounts in a mount namespace of its own, so that they are gone with its last process,
however that ends, and nothing has to be unmounted.
"""

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import require

# What every test of RabbitMQ runs on; QUEUECAST_TEST_RABBITMQ="4.3" asks for others.
VERSIONS = tuple(os.environ.get("QUEUECAST_TEST_RABBITMQ", "3.10 4.0").split())
# The newest that Debian has, for the tests of what a version could change: RabbitMQ 4.3 knows no
# transient queues any more, and keeps its metadata in Khepri.
NEWEST = "4.3"

_SCRIPTS = "lib/rabbitmq/lib/rabbitmq_server-{version}.*/sbin"

# Where a server's own directory is seen under chroot; empty in every Debian.
_INSIDE = Path("/mnt")

# $0: the folder; $1: the server's own directory; then the command.
_CHROOT = f"""set -e
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
unset TMPDIR
mount --bind "$1" "$0{_INSIDE}"
mount --rbind /proc "$0/proc"
mount --rbind /dev "$0/dev"
shift
exec chroot "$0" "$@"
"""


@dataclass(frozen=True)
class RabbitInstallation:
    """The scripts of one RabbitMQ; `root` is the folder to chroot into, if it is in one."""

    scripts: Path
    root: Path | None = None

    @classmethod
    def find(cls, version: str) -> "RabbitInstallation":
        """Return the installation of a version; the test is skipped where there is none."""
        found = cls.look_for(version)
        reason = "not installed: run scripts/test-servers.sh"
        if platform.system() != "Linux" or os.geteuid() != 0:
            reason += " on Linux as root, or install the system's package if it is this version"
        require(f"RabbitMQ {version}", found is not None, reason)
        assert found is not None
        return found

    @classmethod
    def look_for(cls, version: str) -> "RabbitInstallation | None":
        """Return the installation of a version, or None."""
        return cls._system(version) or cls._folder(version)

    @classmethod
    def _system(cls, version: str) -> "RabbitInstallation | None":
        """Find RabbitMQ's own scripts.

        Not those on Debian's PATH: they change to the user rabbitmq and its directories.
        """
        home = Path(os.environ.get("RABBITMQ_HOME", "/nowhere"))
        if any(home.glob(f"plugins/rabbit-{version}.*")):
            return cls(home / "sbin")
        for scripts in sorted(Path("/usr").glob(_SCRIPTS.format(version=version)), reverse=True):
            if (scripts / "rabbitmq-server").exists():
                return cls(scripts)
        return None

    @classmethod
    def _folder(cls, version: str) -> "RabbitInstallation | None":
        """Find the folder that scripts/test-servers.sh made, if this user may chroot into it."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        root = cache / "queuecast" / f"rabbitmq-{version}"
        if platform.system() != "Linux" or os.geteuid() != 0:
            return None
        for scripts in (root / "usr").glob(_SCRIPTS.format(version=version)):
            return cls(Path("/") / scripts.relative_to(root), root)
        return None

    def seen(self, directory: Path) -> Path:
        """Return the path by which the programs see a server's own directory."""
        return directory if self.root is None else _INSIDE

    def script(self, name: str, directory: Path) -> tuple[str, ...]:
        """Return the command that runs one of RabbitMQ's scripts for a server."""
        return self._command(str(self.scripts / name), directory)

    def epmd(self, directory: Path) -> tuple[str, ...]:
        """Return the command that runs Erlang's port mapper for a server."""
        if self.root is not None:
            return self._command("epmd", directory)
        epmd = shutil.which("epmd", path=f"{os.environ.get('PATH', '')}:/usr/bin")
        require("RabbitMQ", epmd is not None, "Erlang's epmd is not installed")
        return (str(epmd),)

    def _command(self, program: str, directory: Path) -> tuple[str, ...]:
        if self.root is None:
            return (program,)
        enter = ("unshare", "--mount", "sh", "-c", _CHROOT, str(self.root), str(directory))
        return (*enter, program)
