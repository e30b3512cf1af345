"""Servers that the tests start for themselves: RabbitMQ, nginx; and where Chromium is.

Every server has private ports and a temporary directory, so a run disturbs nothing that is already
running and several runs fit on one machine. The calls block (rabbitmqctl takes about a second):
from a coroutine whose loop must go on meanwhile, use `await asyncio.to_thread(rabbit.kill)`.
"""

import getpass
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pika
import pika.exceptions
import pytest

from tests.support.erlang import evaluate, find_erl_call
from tests.support.processes import Directory, Process, free_port, listens, require, wait_until
from tests.support.rabbit_installation import RabbitInstallation

# Seconds; a broker's first start on a busy two-core machine has been seen to take 20.
_START = 90.0

_ATTEMPTS = 4

# What RabbitMQ 4.0 still does unless it is denied, and a later one will not.
DEPRECATED = (
    "amqp_address_v1",
    "global_qos",
    "management_metrics_collection",
    "queue_master_locator",
    "ram_node_type",
    "transient_nonexcl_queues",
)


# What rabbitmqctl's lists ask the node, as far as tests ask again and again; {} are the virtual
# host and the columns.
_LISTS = {
    "list_queues": "rabbit_amqqueue:info_all({0}, {1})",
    "list_bindings": "rabbit_binding:info_all({0}, {1})",
    "list_consumers": "[[{{I, V}} || {{I, V}} <- C, lists:member(I, {1})]"
    " || C <- rabbit_amqqueue:consumers_all({0})]",
}
# Columns that are names, counts and tables of such, and so the same in JSON.
_PLAIN = {
    *("name", "messages", "messages_ready", "messages_unacknowledged", "consumers"),
    *("durable", "auto_delete", "exclusive", "arguments"),
    *("source_name", "destination_name", "destination_kind", "routing_key"),
    *("queue_name", "consumer_tag", "prefetch_count"),
}
_ROWS = """rabbit_json:encode([
    maps:from_list([
        {{Item, case Value of
            {{resource, _, _, Name}} -> Name;
            Table when is_list(Table) -> [tuple_to_list(Each) || Each <- Table];
            _ -> Value
        end}}
        || {{Item, Value}} <- Row])
    || Row <- {}])"""


# Who the broker notes as having changed its users.
_ACTING = '<<"test">>'


def _text(value: str) -> str:
    """Return an Erlang expression for the text as UTF-8."""
    return f"<<{','.join(map(str, value.encode()))}>>"


def _texts(values: Sequence[str]) -> str:
    return f"[{','.join(map(_text, values))}]"


def unique(prefix: str) -> str:
    """Return a name nobody else uses, for queues and exchanges on the shared broker."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True)
class QueueInfo:
    """What the broker says about a queue; `messages` counts ready and unacked ones."""

    name: str
    messages: int
    consumers: int


class RabbitMQ:
    """A running RabbitMQ broker, asked through rabbitmqctl.

    This class is a broker that somebody else runs (QUEUECAST_TEST_AMQP). It cannot be stopped, and
    what needs rabbitmqctl is skipped unless QUEUECAST_TEST_RABBITMQCTL is a command that runs it.
    """

    def __init__(self, url: str, ctl: tuple[str, ...] = ()) -> None:
        self.url = url
        path = urlsplit(url).path
        self.virtual_host = unquote(path[1:]) if len(path) > 1 else "/"
        self._ctl = ctl

    @classmethod
    def external(cls) -> "RabbitMQ | None":
        """Return the broker that QUEUECAST_TEST_AMQP names, if it names one."""
        url = os.environ.get("QUEUECAST_TEST_AMQP")
        if not url:
            return None
        return cls(url, tuple(shlex.split(os.environ.get("QUEUECAST_TEST_RABBITMQCTL", ""))))

    def ctl(self, *args: str) -> str:
        """Run rabbitmqctl and return what it prints.

        Raises RuntimeError with its output when it fails.
        """
        if not self._ctl:
            pytest.skip(
                "rabbitmqctl: QUEUECAST_TEST_AMQP names a broker of somebody else's; "
                "QUEUECAST_TEST_RABBITMQCTL would name its rabbitmqctl"
            )
        done = subprocess.run(
            [*self._ctl, "--silent", *args],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def run(self, expressions: str) -> None:
        """Have the node evaluate Erlang expressions; raises RuntimeError when one fails."""
        self.ctl("eval", f"{expressions}.")

    def rows(self, what: str, *columns: str, everywhere: bool = False) -> list[dict[str, Any]]:
        """Return what a `list_…` command of rabbitmqctl says, a row each; all virtual hosts'?"""
        where = () if everywhere else ("--vhost", self.virtual_host)
        rows: list[dict[str, Any]] = json.loads(
            self.ctl(what, *where, "--formatter", "json", *columns)
        )
        return rows

    def list_queues(self) -> dict[str, QueueInfo]:
        """Return the virtual host's queues by name, as the broker counts them now."""
        rows = self.rows("list_queues", "name", "messages", "consumers")
        return {
            row["name"]: QueueInfo(row["name"], int(row["messages"]), int(row["consumers"]))
            for row in rows
        }

    def queue(self, name: str) -> QueueInfo | None:
        """Return one queue, or None; asked with a passive declare, so it works on every broker.

        `messages` counts ready messages only here.
        """
        connection = pika.BlockingConnection(pika.URLParameters(self.url))
        try:
            declared = connection.channel().queue_declare(name, passive=True).method
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code != 404:
                raise
            return None
        finally:
            connection.close()
        return QueueInfo(name, declared.message_count, declared.consumer_count)

    def delete_queues(self, *names: str) -> None:
        """Delete queues, whatever is in them and whoever uses them."""
        host = _text(self.virtual_host)
        self.run(
            f"[case rabbit_amqqueue:lookup(rabbit_misc:r({host}, queue, Name)) of"
            f" {{ok, Queue}} -> catch rabbit_amqqueue:delete(Queue, false, false, {_ACTING});"
            f" _ -> none end || Name <- {_texts(names)}]"
        )

    def list_consumers(self) -> list[dict[str, Any]]:
        """Return queue_name, consumer_tag and prefetch_count per consumer."""
        return self.rows("list_consumers", "queue_name", "consumer_tag", "prefetch_count")

    def list_bindings(self) -> list[dict[str, Any]]:
        """Return source_name, destination_name, destination_kind, routing_key per binding."""
        columns = ("source_name", "destination_name", "destination_kind", "routing_key")
        return self.rows("list_bindings", *columns)

    def list_connections(self) -> list[dict[str, Any]]:
        """Return name, user, state, channels and peer_port of every connection."""
        columns = ("name", "user", "state", "channels", "peer_port")
        return self.rows("list_connections", *columns, everywhere=True)

    def close_all_connections(self, reason: str = "closed by a test") -> None:
        """Have the broker close every connection: CONNECTION_FORCED to each client."""
        # With rabbitmqctl, as the lists of connections: one that was just opened is entered into
        # them a moment later, and a question that takes milliseconds would miss it.
        self.ctl("close_all_connections", reason)

    def add_user(
        self, name: str, password: str, configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> str:
        """Add a user with permissions (regular expressions) and return the user's broker URL."""
        self.add_users([name], password, configure, write, read)
        parts = urlsplit(self.url)
        address = parts.netloc.rpartition("@")[2]
        login = f"{quote(name, safe='')}:{quote(password, safe='')}"
        return parts._replace(netloc=f"{login}@{address}").geturl()

    def add_users(
        self,
        names: Sequence[str],
        password: str,
        configure: str = ".*",
        write: str = ".*",
        read: str = ".*",
    ) -> None:
        """Add users who have the same password and permissions."""
        add = f"rabbit_auth_backend_internal:add_user(User, {_text(password)}, {_ACTING})"
        self.run(f"[ok = {add} || User <- {_texts(names)}]")
        self.permit(names, configure, write, read)

    def permit(
        self, names: Sequence[str], configure: str = ".*", write: str = ".*", read: str = ".*"
    ) -> None:
        """Give users permissions in the virtual host."""
        rights = ", ".join(map(_text, (self.virtual_host, configure, write, read)))
        permit = f"rabbit_auth_backend_internal:set_permissions(User, {rights}, {_ACTING})"
        self.run(f"[ok = {permit} || User <- {_texts(names)}]")

    def delete_users(self, *names: str) -> None:
        """Delete users; one who is not there is none of them already."""
        self.run(
            f"[catch rabbit_auth_backend_internal:delete_user(User, {_ACTING})"
            f" || User <- {_texts(names)}]"
        )

    def close(self) -> None:
        """Give up what this object started: nothing, when somebody else runs the broker."""


class RabbitServer(RabbitMQ):
    """A RabbitMQ node of the tests' own; kill() and start() keep its data and its port.

    Node name, ports, cookie, epmd, configuration and data are all private. `version` is one of
    rabbit_installation.VERSIONS.
    """

    def __init__(self, version: str) -> None:
        self._installation = RabbitInstallation.find(version)
        self.version = version
        self.port = free_port()
        self._directory = Directory("rabbitmq")
        self.directory = self._directory.path
        super().__init__(
            f"amqp://guest:guest@127.0.0.1:{self.port}/",
            self._installation.script("rabbitmqctl", self.directory),
        )
        # The node's; every process of the server has it in its environment.
        self.name = f"{unique('queuecast')}@localhost"
        self._epmd_port = free_port()
        self._distribution_port = free_port()
        self._epmd: Process | None = None
        self._process: Process | None = None
        self._configure()

    def _configure(self) -> None:
        base = self.directory
        for folder in ("home", "data", "log", "conf.d", "generated"):
            (base / folder).mkdir()
        settings = ["disk_free_limit.absolute = 50MB"]
        if self.version != "3.10":
            settings += [f"deprecated_features.permit.{name} = false" for name in DEPRECATED]
        (base / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in settings))
        (base / "rabbitmq-env.conf").write_text("")
        (base / "enabled_plugins").write_text("[].\n")

    def _environment(self) -> dict[str, str]:
        base = self._installation.seen(self.directory)
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RABBITMQ_", "ERL_"))
        }
        # An Erlang scheduler spins before it sleeps, which steals the tests' processor time.
        quiet = "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
        return inherited | {
            "HOME": str(base / "home"),
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_MNESIA_BASE": str(base / "data"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(base / "conf.d"),
            "RABBITMQ_CONF_ENV_FILE": str(base / "rabbitmq-env.conf"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(base / "generated"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": quiet,
            "RABBITMQ_CTL_ERL_ARGS": quiet,
        }

    def rows(self, what: str, *columns: str, everywhere: bool = False) -> list[dict[str, Any]]:
        erl_call = find_erl_call()
        if erl_call is None or what not in _LISTS or not _PLAIN.issuperset(columns):
            return super().rows(what, *columns, everywhere=everywhere)
        asked = _LISTS[what].format(_text(self.virtual_host), f"[{', '.join(columns)}]")
        found: list[dict[str, Any]] = self._evaluate(erl_call, _ROWS.format(asked))
        return found

    def run(self, expressions: str) -> None:
        erl_call = find_erl_call()
        if erl_call is None:
            super().run(expressions)
        else:
            self._evaluate(erl_call, f"begin {expressions}, rabbit_json:encode(ok) end")

    def _evaluate(self, erl_call: str, expression: str) -> Any:
        cookie = (self.directory / "home" / ".erlang.cookie").read_text()
        return evaluate(erl_call, self.name, cookie, expression, env=self._environment())

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start the node and return when it takes AMQP connections; nothing if it runs."""
        if self.running:
            return
        base = self.directory
        if self._epmd is None:
            # Erlang's port mapper; started by the node itself it would be a daemon that stays.
            command = [*self._installation.epmd(base), "-port", str(self._epmd_port)]
            command += ["-address", "127.0.0.1"]
            self._epmd = Process(command, log=base / "epmd.log", env=self._environment())
            self._epmd.wait_until(lambda: listens(self._epmd_port), what="epmd")
        for attempts_left in reversed(range(_ATTEMPTS)):
            command = [*self._installation.script("rabbitmq-server", base)]
            self._process = Process(command, log=base / "server.log", env=self._environment())
            try:
                self._process.wait_until(self.speaks_amqp, what="RabbitMQ's start", timeout=_START)
                return
            except RuntimeError as error:
                if not attempts_left or not self._checked_too_early(self._process):
                    started = self.log().rpartition("Starting RabbitMQ ")[2]
                    raise RuntimeError(f"{error}\nThe node's own log:\n{started}") from None

    @staticmethod
    def _checked_too_early(process: Process) -> bool:
        """Tell whether the node gave up for an error of RabbitMQ 4.0 that passes.

        With a deprecated feature denied it looks for uses of it while Mnesia is still loading the
        queues, which takes longer after a kill, and takes the failure for a use. Debian's service
        starts it again in such a case, and so do the tests.
        """
        return not process.running and "failed_to_deny_deprecated_features" in process.log_tail()

    def speaks_amqp(self) -> bool:
        """Ask for AMQP 0-9-1 and look for Connection.Start (class 10, method 10)."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                probe.sendall(b"AMQP\x00\x00\x09\x01")
                return probe.recv(11, socket.MSG_WAITALL)[7:] == b"\x00\x0a\x00\x0a"
        except OSError:
            return False

    def stop(self) -> None:
        """Stop the node as an operator would; durable queues keep their persistent messages."""
        if self._process is not None:
            self._process.terminate(timeout=_START)
            self._process = None

    def flush(self) -> None:
        """Have on disk whatever was declared until now.

        RabbitMQ answers a declaration seconds before that. Killed meanwhile it may forget a queue
        or a binding. Worse is a node's first stream: the name of the streams' coordinator is
        written half a second later (Ra's names.dets), and without it no stream that was declared
        ever comes back.
        """
        self.ctl("eval", "mnesia:sync_log(), [ok = dets:sync(Table) || Table <- dets:all()].")

    def forget_streams(self) -> None:
        """Have a killed node be as if it had been killed just after its first stream's creation."""
        for names in (self.directory / "data").rglob("coordination/*/names.dets"):
            names.unlink()

    def kill(self) -> None:
        """Kill the node at once, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process = None
            wait_until(lambda: not listens(self.port), what="the killed broker's port")

    def restart(self) -> None:
        """Stop the node and start it again on the same port."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Return the node's own log, for a failing test's message."""
        return "".join(
            path.read_text(errors="replace")
            for path in sorted((self.directory / "log").glob("*.log"))
        )

    def close(self) -> None:
        """Kill the node and its epmd and remove its directory."""
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd = None
        self._directory.remove()


class NginxServer:
    """An nginx of the tests' own in front of something, on a private port.

    `server` is the text inside its server block, without `listen`; `http` is what stands before
    the block (`map`, `upstream`).
    """

    def __init__(self, server: str, *, http: str = "") -> None:
        command = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        require("nginx", command is not None, "not installed: apt-get install nginx-light")
        assert command is not None
        self._command = command
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = Directory("nginx")
        self._process: Process | None = None
        self._write(server, http)
        self.start()

    def _write(self, server: str, http: str) -> None:
        base = self._directory.path
        # Workers of a root's nginx change user, and could not reach the temporary directory.
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
        temporary = "\n".join(
            f"    {kind}_temp_path {base / kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (base / "nginx.conf").write_text(
            f"""daemon off;
{user}
worker_processes 1;
pid {base / "nginx.pid"};
error_log stderr notice;
events {{ worker_connections 4096; }}
http {{
    access_log off;
{temporary}
{http}
    server {{
        listen 127.0.0.1:{self.port};
{server}
    }}
}}
"""
        )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start nginx and return when it listens; nothing if it runs."""
        if self.running:
            return
        base = self._directory.path
        command = [self._command, "-e", "stderr", "-p", f"{base}/", "-c", f"{base}/nginx.conf"]
        self._process = Process(command, log=base / "nginx.log")
        self._process.wait_until(lambda: listens(self.port), what="nginx's start")

    def reload(self, server: str | None = None, *, http: str = "") -> None:
        """Reload, with another configuration if one is given, and wait for the new worker."""
        if self._process is None:
            raise RuntimeError("nginx is not running")
        if server is not None:
            self._write(server, http)
        before = self._workers_started()
        self._process.signal(signal.SIGHUP)
        self._process.wait_until(
            lambda: self._workers_started() > before, what="nginx's reload", timeout=20
        )

    def _workers_started(self) -> int:
        assert self._process is not None
        return self._process.log.read_text(errors="replace").count("start worker process ")

    def kill(self) -> None:
        """Kill nginx and its workers at once."""
        if self._process is not None:
            self._process.kill()
            self._process = None
            # The worker is a grandchild: nobody here can wait for it, and it holds the listener.
            wait_until(lambda: not listens(self.port), what="the killed nginx's port")

    def close(self) -> None:
        """Kill nginx and remove its directory."""
        self.kill()
        self._directory.remove()


def find_chromium() -> Path | None:
    """Return the Chromium to drive: QUEUECAST_TEST_CHROMIUM, else the system's."""
    named = os.environ.get("QUEUECAST_TEST_CHROMIUM")
    for command in (named, "chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(command) if command else None
        if found:
            return Path(found)
    return None
