"""Whom a user would pick instead: how each is started, and how to add the one that is missing.

Each comes as a context that yields the port of its subscribers, and says whom its publisher
publishes to. Centrifugo's and Mercure's were written from their documentation (docs/benchmarks.md
says of which versions).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Directory, Process, free_port, wait_until

from .bench import Bench
from .child import BenchmarkError, Child
from .plan import Behind
from .posts import KEY
from .wire import ALL

_NODE = Path(__file__).with_name("node")
_NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
# Seconds; of a server that starts on a busy machine.
_START = 30.0

Start = Callable[[Bench], AbstractContextManager[int]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to stand beside. wire: one of wire.ALL. publisher: "amqp", "kafka" or "http".

    first: messages/s of the first step, about half of what a slow machine reaches. dialect: of
    its POSTs (posts.POSTS). goal: the ratio asked for.
    """

    name: str
    wire: str
    publisher: Behind
    first: float
    start: Start
    goal: float | None = None
    dialect: str = "queuecast"


# A peer's fault is no fault of ours, but it is said.
FAULTS = (BenchmarkError, OSError, RuntimeError, ValueError)


def failed(bench: Bench, peer: Peer, error: Exception, where: str = "") -> None:
    """Note that a peer failed: the first line of why, and the last, which a log's end has."""
    lines = str(error).splitlines() or [type(error).__name__]
    why = "; ".join(dict.fromkeys((lines[0], lines[-1])))
    name = f"{peer.name} over {ALL[peer.wire].title}"
    bench.lacks(f"{name}, {where}" if where else name, f"it failed: {why}")


def available(bench: Bench) -> Iterator[Peer]:
    """Yield the peers that this machine has; who is missing is noted with how to add it."""
    if bench.rabbit() is not None:
        yield Peer("Web STOMP plugin", "stomp-plugin", "amqp", 12.0, _web_stomp, goal=100.0)
        if shutil.which("node") is None or not (_NODE / "node_modules").is_dir():
            bench.lacks(
                "the Node.js bridges", "install Node.js, then npm ci --prefix benchmarks/node"
            )
        else:
            yield Peer("ws + amqplib", "ws", "amqp", 100.0, _node("ws.mjs"), goal=50.0)
            yield Peer(
                "Express SSE + amqplib", "sse-node", "amqp", 100.0, _node("sse.mjs"), goal=25.0
            )
    if _nginx() is None or not _NCHAN_MODULE.exists():
        bench.lacks("Nchan", "on Debian or Ubuntu: apt-get install libnginx-mod-nchan")
    else:
        yield Peer("Nchan", "ws", "http", 300.0, nchan, goal=15.0)
        yield Peer("Nchan", "sse-nchan", "http", 200.0, nchan)
    if shutil.which("centrifugo") is None:
        bench.lacks("Centrifugo", "put centrifugo, version 6, on PATH")
    else:
        for wire in ("ws-centrifugo", "sse-centrifugo"):
            yield Peer("Centrifugo", wire, "http", 300.0, _centrifugo, dialect="centrifugo")
    if shutil.which("mercure") is None:
        bench.lacks("Mercure", "put mercure, version 0.20, on PATH")
    else:
        yield Peer("Mercure", "sse-mercure", "http", 50.0, _mercure, dialect="mercure")


@contextmanager
def gateway(*arguments: str) -> Iterator[int]:
    """Run the gateway; yields its port."""
    with Child("gateway_server", *arguments) as server:
        yield int(server.answer()["port"])


@contextmanager
def _web_stomp(bench: Bench) -> Iterator[int]:
    """RabbitMQ's own plugin; its queues are gone at the end, so that nobody pays for them later."""
    rabbit = bench.rabbit()
    assert rabbit is not None
    yield rabbit.web_stomp
    wait_until(
        lambda: (
            not any(name.startswith("stomp-subscription-") for name in rabbit.server.list_queues())
        ),
        what="the end of the plugin's queues",
    )


def _node(script: str) -> Start:
    @contextmanager
    def start(bench: Bench) -> Iterator[int]:
        rabbit = bench.rabbit()
        assert rabbit is not None
        process = subprocess.Popen(
            ["node", script, rabbit.url],
            cwd=_NODE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"NODE_ENV": "production"},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise BenchmarkError(f"{script} ended; npm ci --prefix benchmarks/node may help")
            yield int(line)
        finally:
            process.kill()
            process.communicate()

    return start


def _nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


@contextmanager
def nchan(bench: Bench) -> Iterator[int]:
    """nginx with Nchan, with as many workers as there are cores."""
    nginx = _nginx()
    assert nginx is not None
    user = "user root;\n" if os.geteuid() == 0 else ""

    def configured(base: Path, port: int) -> str:
        return _NCHAN.format(module=_NCHAN_MODULE, base=base, port=port, user=user)

    with _served("nginx.conf", configured, nginx, "-p", "{base}", "-c", "{file}") as port:
        yield port


def _centrifugo(bench: Bench) -> AbstractContextManager[int]:
    return _served("config.json", _centrifugo_config, "centrifugo", "--config", "{file}")


def _mercure(bench: Bench) -> AbstractContextManager[int]:
    return _served(
        "Caddyfile",
        _mercure_config,
        "mercure",
        "run",
        "--adapter",
        "caddyfile",
        "--config",
        "{file}",
    )


@contextmanager
def _served(name: str, configured: Callable[[Path, int], str], *command: str) -> Iterator[int]:
    """Run a server with a configuration file in a directory of its own; yields its port."""
    with ExitStack() as stack:
        directory = Directory("peer")
        stack.callback(directory.remove)
        base, port = directory.path, free_port()
        (base / name).write_text(configured(base, port))
        process = Process(
            [part.format(base=base, file=base / name) for part in command],
            log=base / "log",
            # Caddy's own files, and whatever else wants a home.
            env=os.environ | {"HOME": str(base), "XDG_DATA_HOME": str(base)},
        )
        stack.callback(process.kill)
        process.wait_until(lambda: _listens(port), what=command[0], timeout=_START)
        yield port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _centrifugo_config(base: Path, port: int) -> str:
    """Anonymous subscribers; the queues have room for a run, and no ping comes between."""
    return json.dumps(
        {
            "http_server": {"address": "127.0.0.1", "port": port},
            "http_api": {"key": KEY},
            "client": {
                "allow_anonymous_connect_without_token": True,
                "ping_interval": "8760h",
                "queue_max_size": 256 << 20,
            },
            "channel": {
                "without_namespace": {
                    "allow_subscribe_for_client": True,
                    "allow_subscribe_for_anonymous": True,
                }
            },
            "uni_sse": {"enabled": True},
            "usage_stats": {"disabled": True},
        }
    )


def _mercure_config(base: Path, port: int) -> str:
    """Anonymous subscribers, no history, no heartbeat; plain HTTP whatever the host's name."""
    return f"""{{
    admin off
    auto_https off
}}
http://:{port} {{
    bind 127.0.0.1
    route {{
        mercure {{
            publisher_jwt {KEY}
            subscriber_jwt {KEY}
            anonymous
            transport local
            heartbeat 0s
        }}
        respond "Not Found" 404
    }}
}}
"""


# Enough room for the messages of a run: one that is dropped before it is sent would be lost.
_NCHAN = """load_module {module};
daemon off;
{user}worker_processes auto;
worker_rlimit_nofile 20000;
pid {base}/nginx.pid;
error_log {base}/error.log;
events {{ worker_connections 18000; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 3600s;
    client_body_temp_path {base}/body;
    nchan_shared_memory_size 512M;
    nchan_message_buffer_length 100000;
    nchan_message_timeout 60s;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location ~ ^/publish/topic/(.+)$ {{ nchan_publisher; nchan_channel_id $1; }}
        location ~ ^/ws/topic/(.+)$ {{
            nchan_subscriber websocket;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }}
        location ~ ^/sse/topic/(.+)$ {{
            nchan_subscriber eventsource;
            nchan_channel_id $1;
            nchan_subscriber_first_message newest;
        }}
    }}
}}
"""
