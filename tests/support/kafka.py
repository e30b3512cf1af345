"""A Kafka of the tests' own: one KRaft node, run from the jars that Maven brought.

Three listeners, one of a kind: without login, with SASL, with SASL over TLS. Everybody of the
first may do everything; the logins of the others only what an ACL gives them.
"""

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from tests.support.processes import Directory, Process, free_port, require, wait_until

_POM = Path(__file__).parents[2] / "scripts" / "kafka.pom.xml"

# Seconds; three on an idle machine, a minute on one that is short of processors.
START = 180.0

# A fast start and little memory, not throughput.
JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true")

# Who logs in, by mechanism; the name is the user's, too. All but the administrator may do only
# what an ACL says.
USERS = {
    "admin": ("PLAIN", "admin secret"),
    "plain": ("PLAIN", "p w/@:?"),
    "scram256": ("SCRAM-SHA-256", "scram secret"),
    "scram512": ("SCRAM-SHA-512", "scram secret"),
}

LOG4J = """rootLogger.level=WARN
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c{1}: %m%n
logger.server.name=kafka.server.KafkaRaftServer
logger.server.level=INFO
"""


def version() -> str:
    """Return the version that scripts/kafka.pom.xml names."""
    found = ElementTree.parse(_POM).find(".//{*}kafka.version")
    assert found is not None
    return str(found.text)


def installation() -> Path:
    """Return the folder with the jars; the test is skipped where there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "queuecast" / f"kafka-{version()}"
    name = f"Kafka {version()}"
    require(name, shutil.which("java") is not None, "java is missing: install Java 17 or newer")
    reason = "not installed: run scripts/test-servers.sh, which needs mvn and java"
    require(name, any(folder.glob("kafka_*.jar")), reason)
    return folder


def java(heap: str, log4j: Path, main: str, *args: str | Path) -> list[str | Path]:
    """Return the command that runs one of Kafka's programs by its class; heap: "128m"."""
    jars = f"{installation()}/*"
    options = (f"-Xmx{heap}", *JVM, f"-Dlog4j2.configurationFile={log4j}")
    return ["java", *options, "-cp", jars, main, *args]


def run_tool(command: Sequence[str | Path], *, stdin: str | None = None, timeout: float) -> str:
    """Run a command to its end and return what it prints; RuntimeError with that if it fails."""
    done = subprocess.run(
        command,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        said = " ".join(str(part) for part in command[4:])
        raise RuntimeError(f"{said}: {done.stdout}{done.stderr}")
    return done.stdout


def listens(port: int) -> bool:
    """Return whether a TCP port of 127.0.0.1 takes connections."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


class Kafka:
    """A running Kafka that somebody else runs (KAFKA_BOOTSTRAP): it cannot be stopped.

    replication: replicas that the tests' topics have.
    """

    replication = 1

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self.url = f"kafka://{bootstrap}"

    @classmethod
    def external(cls) -> "Kafka | None":
        """Return the Kafka that KAFKA_BOOTSTRAP names, if it names one."""
        bootstrap = os.environ.get("KAFKA_BOOTSTRAP")
        return cls(bootstrap) if bootstrap else None


class KafkaServer(Kafka):
    """One node with a log directory and ports of its own; `start`, `kill`, `start` again."""

    def __init__(self, *settings: str, advertised: int = 0) -> None:
        """settings: more lines for server.properties. advertised: the port where it tells clients
        without login to find it, a proxy's; its own by default."""
        installation()  # else the test is skipped, before anything is made
        self.port, self.sasl_port, self.tls_port, self._controller = (free_port() for _ in range(4))
        self.advertised = advertised or self.port
        super().__init__(f"127.0.0.1:{self.port}")
        self._directory = Directory("kafka")
        self._process: Process | None = None
        base = self._directory.path
        self.data = base / "data"
        self.cafile = base / "ca.pem"
        (base / "log4j2.properties").write_text(LOG4J)
        (base / "server.properties").write_text(self._properties(settings))
        self._format()

    def _properties(self, more: Sequence[str]) -> str:
        logins = " ".join(
            f'user_{name}="{password}"'
            for name, (mechanism, password) in USERS.items()
            if mechanism == "PLAIN"
        )
        plain = f"org.apache.kafka.common.security.plain.PlainLoginModule required {logins};"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        listeners = {
            "PLAINTEXT": ("PLAINTEXT", self.port),
            "SASL": ("SASL_PLAINTEXT", self.sasl_port),
            "TLS": ("SASL_SSL", self.tls_port),
            "CONTROLLER": ("PLAINTEXT", self._controller),
        }
        addresses = {name: f"{name}://127.0.0.1:{port}" for name, (_, port) in listeners.items()}
        told = {**addresses, "PLAINTEXT": f"PLAINTEXT://127.0.0.1:{self.advertised}"}
        lines = [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@127.0.0.1:{self._controller}",
            "controller.listener.names=CONTROLLER",
            "listeners=" + ",".join(addresses.values()),
            "advertised.listeners="
            + ",".join(text for name, text in told.items() if name != "CONTROLLER"),
            "listener.security.protocol.map="
            + ",".join(f"{name}:{protocol}" for name, (protocol, _) in listeners.items()),
            "inter.broker.listener.name=PLAINTEXT",
            f"log.dirs={self.data}",
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users=User:ANONYMOUS;User:admin",
            # One node, quick rebalances, topics that lose their old segments at once.
            "offsets.topic.replication.factor=1",
            "offsets.topic.num.partitions=4",
            "transaction.state.log.replication.factor=1",
            "transaction.state.log.min.isr=1",
            "transaction.state.log.num.partitions=2",
            "group.initial.rebalance.delay.ms=0",
            "log.retention.check.interval.ms=1000",
            # Tests publish with timestamps of years ago.
            "log.retention.ms=-1",
            "log.initial.task.delay.ms=1000",
            "file.delete.delay.ms=1000",
            "log.cleaner.dedupe.buffer.size=4194304",
        ]
        for name in ("sasl", "tls"):
            lines += [
                f"listener.name.{name}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
                f"listener.name.{name}.plain.sasl.jaas.config={plain}",
                f"listener.name.{name}.scram-sha-256.sasl.jaas.config={scram}",
                f"listener.name.{name}.scram-sha-512.sasl.jaas.config={scram}",
            ]
        lines += [
            "listener.name.tls.ssl.keystore.type=PEM",
            f"listener.name.tls.ssl.keystore.location={self._certificate()}",
        ]
        return "\n".join([*lines, *more]) + "\n"

    def _certificate(self) -> Path:
        """Make a certificate that is its own authority; return the file with its key."""
        openssl = shutil.which("openssl")
        require("openssl", openssl is not None, "not installed: apt-get install openssl")
        base = self._directory.path
        key, both = base / "key.pem", base / "both.pem"
        command = (
            f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
            f"-addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout {key} -out {self.cafile}"
        )
        subprocess.run(command.split(), check=True, capture_output=True)
        both.write_text(key.read_text() + self.cafile.read_text())
        return both

    def _java(self, heap: str, main: str, *args: str | Path) -> list[str | Path]:
        return java(heap, self._directory.path / "log4j2.properties", main, *args)

    def _format(self) -> None:
        scram: list[str] = []
        for name, (mechanism, password) in USERS.items():
            if mechanism != "PLAIN":
                scram += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
        self.tool(
            "kafka.tools.StorageTool",
            *("format", "--cluster-id", "queuecast-tests-00000g"),
            *("--config", str(self._directory.path / "server.properties")),
            *scram,
        )

    def tool(self, main: str, *args: str, stdin: str | None = None, timeout: float = 90) -> str:
        """Run one of Kafka's own programs by its class and return what it prints.

        Raises RuntimeError with its output when it fails.
        """
        return run_tool(self._java("128m", main, *args), stdin=stdin, timeout=timeout)

    def login(self, user: str, *, tls: bool = False) -> str:
        """Return the URL by which one of USERS logs in."""
        mechanism, password = USERS[user]
        scheme, port = ("kafkas", self.tls_port) if tls else ("kafka", self.sasl_port)
        login = f"{user}:{quote(password, safe='')}"
        return f"{scheme}://{login}@127.0.0.1:{port}?mechanism={mechanism}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start the node and return when it answers; nothing if it runs."""
        if self.running:
            return
        base = self._directory.path
        command = self._java("384m", "kafka.Kafka", base / "server.properties")
        log = base / "server.log"
        before = log.stat().st_size if log.exists() else 0
        self._process = Process(command, log=log)
        self._process.wait_until(lambda: self._serves(before), what="Kafka's start", timeout=START)

    def _serves(self, since: int) -> bool:
        # It listens before it serves; what it logs tells when.
        log = self._directory.path / "server.log"
        return b"Kafka Server started" in log.read_bytes()[since:] and listens(self.port)

    def stop(self) -> None:
        """Stop the node as an operator would."""
        if self._process is not None:
            self._process.terminate(timeout=START)
            self._process = None

    def kill(self) -> None:
        """Kill the node at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process = None
            wait_until(lambda: not listens(self.port), what="the killed Kafka's port")

    def restart(self) -> None:
        """Stop the node and start it again, with the same log directory and ports."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Return what the node printed, for a failing test's message."""
        return (self._directory.path / "server.log").read_text(errors="replace")

    def close(self) -> None:
        """Kill the node and remove its directory."""
        self.kill()
        self._directory.remove()


class Kafkas:
    """The run's Kafka servers, each started when a test first asks for it and then kept."""

    def __init__(self) -> None:
        self._servers: dict[str, KafkaServer] = {}

    def shared(self) -> Kafka:
        """Return a running Kafka for tests that use names of their own."""
        external = Kafka.external()
        return external if external is not None else self.own("shared")

    def own(self, use: str = "own") -> KafkaServer:
        """Return the server that a test may stop and kill; running."""
        if Kafka.external() is not None:
            pytest.skip("Kafka: KAFKA_BOOTSTRAP names a Kafka that this test must not stop")
        server = self._servers.get(use)
        if server is None:
            server = self._servers[use] = KafkaServer()
        server.start()
        return server

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
