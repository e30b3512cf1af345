"""The servers that the other tests stand on: they start, tell the truth, die on demand."""

import asyncio
import contextlib
import json
import subprocess
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING

import pika
import pika.exceptions
import psutil
import pytest

from tests.conftest import Node, Rabbits
from tests.support.processes import wait_until
from tests.support.proxy import TcpProxy
from tests.support.servers import DEPRECATED, NginxServer, RabbitMQ, RabbitServer, unique

if TYPE_CHECKING:
    from playwright.async_api import Page


def connect(url: str) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(url))


@pytest.mark.rabbitmq
def test_rabbit_shows_what_a_client_declared(rabbit: RabbitMQ) -> None:
    name = unique("queue")
    assert rabbit.queue(name) is None
    connection = connect(rabbit.url)
    channel = connection.channel()
    channel.queue_declare(name, exclusive=True)
    channel.queue_bind(name, "amq.topic", "股票.#")
    channel.confirm_delivery()
    channel.basic_publish("amq.topic", "股票.上证", "你好".encode())

    shown = rabbit.list_queues()[name]
    assert (shown.messages, shown.consumers) == (1, 0)
    bindings = [row for row in rabbit.list_bindings() if row["destination_name"] == name]
    assert "股票.#" in [row["routing_key"] for row in bindings]

    channel.basic_consume(name, lambda *_: None)
    assert name in [row["queue_name"] for row in rabbit.list_consumers()]
    assert rabbit.list_queues()[name].consumers == 1
    assert [row["user"] for row in rabbit.list_connections()].count("guest") >= 1
    connection.close()
    wait_until(lambda: rabbit.queue(name) is None, what="the exclusive queue's end")


@pytest.mark.rabbitmq
def test_a_users_permissions_hold(rabbit: RabbitMQ) -> None:
    url = rabbit.add_user(unique("user"), "p w/@", configure="^own-.*")
    channel = connect(url).channel()
    channel.queue_declare("own-queue", exclusive=True)
    with pytest.raises(pika.exceptions.ChannelClosedByBroker) as refusal:
        channel.queue_declare("other-queue", exclusive=True)
    assert refusal.value.reply_code == 403
    channel.connection.close()


@pytest.mark.rabbitmq
def test_a_rabbit_is_of_its_version(rabbit_name: str, rabbit_own: RabbitServer) -> None:
    assert rabbit_own.ctl("version").startswith(f"{rabbit_name.removeprefix('rabbitmq-')}.")


@pytest.mark.rabbitmq
def test_rabbitmq_4_denies_all_that_is_deprecated(
    rabbit_name: str, rabbit_own: RabbitServer
) -> None:
    connection = connect(rabbit_own.url)
    channel = connection.channel()
    name = unique("transient")
    if rabbit_name == "rabbitmq-3.10":
        channel.queue_declare(name, auto_delete=True)
        channel.queue_delete(name)
        connection.close()
        return
    rows = json.loads(rabbit_own.ctl("list_deprecated_features", "--formatter", "json"))
    permitted = {row["name"] for row in rows if row["deprecation_phase"] == "permitted_by_default"}
    assert "transient_nonexcl_queues" in permitted
    assert permitted <= set(DEPRECATED)
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="transient_nonexcl_queues"):
        channel.queue_declare(name, auto_delete=True)


@pytest.mark.rabbitmq
def test_a_killed_rabbit_keeps_durable_queues(rabbit_own: RabbitServer) -> None:
    durable, exclusive = unique("durable"), unique("exclusive")
    connection = connect(rabbit_own.url)
    channel = connection.channel()
    channel.queue_declare(durable, durable=True)
    channel.queue_declare(exclusive, exclusive=True)
    channel.confirm_delivery()
    channel.basic_publish(
        "", durable, b"kept", pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)
    )
    rabbit_own.flush()
    rabbit_own.kill()
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connection.process_data_events(time_limit=10)
    with pytest.raises(pika.exceptions.AMQPConnectionError):
        connect(rabbit_own.url)

    rabbit_own.start()
    queues = rabbit_own.list_queues()
    assert exclusive not in queues
    assert queues[durable].messages == 1


@pytest.mark.rabbitmq
def test_nothing_of_a_closed_rabbit_stays(rabbit_name: str, rabbits: Rabbits) -> None:
    server = rabbits.make(rabbit_name)
    server.start()
    assert "beam.smp" in programs(server)
    server.kill()
    wait_until(lambda: programs(server) == {"epmd"}, what="the killed node's helpers' end")
    server.start()
    server.close()
    wait_until(lambda: not programs(server), what="the closed node's helpers' end")
    assert not server.directory.exists()


def programs(server: RabbitServer) -> set[str]:
    """Return the names of the processes that a server started, with theirs."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RABBITMQ_NODENAME") == server.name:
                found.add(process.name())
    return found


@pytest.mark.rabbitmq
def test_a_stopped_rabbit_says_goodbye(rabbit_own: RabbitServer) -> None:
    connection = connect(rabbit_own.url)
    rabbit_own.stop()
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker) as farewell:
        connection.process_data_events(time_limit=10)
    assert farewell.value.reply_code == 320
    assert not rabbit_own.running


@pytest.mark.rabbitmq
def test_rabbit_closes_every_connection(rabbit_own: RabbitServer) -> None:
    connection = connect(rabbit_own.url)
    rabbit_own.close_all_connections("by a test")
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="by a test"):
        connection.process_data_events(time_limit=10)


@pytest.mark.rabbitmq
async def test_a_cut_between_client_and_rabbit(rabbit_own: RabbitServer) -> None:
    async with TcpProxy("127.0.0.1", rabbit_own.port) as proxy:
        url = f"amqp://guest:guest@127.0.0.1:{proxy.port}/"
        connection = await asyncio.to_thread(connect, url)
        assert proxy.connections == 1
        proxy.cut()
        with pytest.raises(pika.exceptions.AMQPConnectionError):
            await asyncio.to_thread(connection.process_data_events, 10)


@pytest.mark.nginx
def test_nginx_serves_reloads_and_dies(nginx: Callable[..., NginxServer]) -> None:
    server = nginx('location / { return 200 "one"; }')

    def ask() -> bytes:
        with urllib.request.urlopen(server.url, timeout=10) as response:
            body: bytes = response.read()
            return body

    assert ask() == b"one"
    server.reload("location / { return 200 $word; }", http='map "" $word { default two; }')
    wait_until(lambda: ask() == b"two", what="the new configuration")
    server.kill()
    with pytest.raises(OSError, match="refused"):
        ask()
    server.start()
    assert ask() == b"two"


@pytest.mark.browser
async def test_chromium_runs_a_pages_script(page: "Page") -> None:
    await page.goto("data:text/html;charset=utf-8,<p>loading…</p>")
    await page.evaluate("document.querySelector('p').textContent = '完成'")
    assert await page.text_content("p") == "完成"


@pytest.mark.browser
@pytest.mark.both_loops
async def test_chromium_on_both_loops(page: "Page") -> None:
    await page.goto("data:text/html,<title>a title</title>")
    assert await page.title() == "a title"


@pytest.mark.node
def test_node_has_its_packages(node: Node) -> None:
    script = "import {EventSource} from 'eventsource'; console.log(typeof EventSource)"
    done = subprocess.run(
        [node.command, "--input-type=module", "-e", script],
        cwd=node.directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("function\n", "")
