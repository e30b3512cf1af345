"""Whom a user would pick instead: how each is started, and how to add the one that is missing.

Each comes as a context that yields the port of its subscribers, and says whom its publisher
publishes to.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import Directory, Process, free_port, wait_until

from .bench import Bench
from .child import BenchmarkError, Child
from .plan import Behind

_NODE = Path(__file__).with_name("node")
_NCHAN_MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
# Seconds; of a server that starts on a busy machine.
_START = 30.0

Start = Callable[[Bench], AbstractContextManager[int]]


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to stand beside. wire: one of wire.ALL. publisher: "amqp", "kafka" or "http".

    first: messages/s of the first step, about half of what a slow machine reaches. beside: the
    gateway's server that it is compared with. goal: the ratio asked for.
    """

    name: str
    wire: str
    publisher: Behind
    first: float
    start: Start
    goal: float | None = None


def available(bench: Bench) -> Iterator[Peer]:
    """Yield the peers that this machine has; who is missing is noted with how to add it."""
    if bench.rabbit() is not None:
        yield Peer("Web STOMP plugin", "stomp", "amqp", 12.0, _web_stomp, goal=100.0)
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
    for name in ("Centrifugo", "Mercure"):
        bench.lacks(name, "not measured; nothing here starts it yet, be it on PATH or not")


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
    with ExitStack() as stack:
        directory = Directory("nchan")
        stack.callback(directory.remove)
        port = free_port()
        base = directory.path
        user = "user root;\n" if os.geteuid() == 0 else ""
        text = _NCHAN.format(module=_NCHAN_MODULE, base=base, port=port, user=user)
        (base / "nginx.conf").write_text(text)
        process = Process([nginx, "-p", base, "-c", base / "nginx.conf"], log=base / "nginx.log")
        stack.callback(process.kill)
        process.wait_until(lambda: (base / "nginx.pid").exists(), what="nginx", timeout=_START)
        yield port


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
