"""STOMP subscriptions with queues of their own, with stomp.py, and what the broker counts."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Rabbits
from tests.e2e.stomp_house import BROKERS, House, bodies, error, house, send, subscribe
from tests.e2e.test_stomp import PATIENCE, ack_arguments, connected
from tests.support.processes import wait_until
from tests.support.servers import QueueInfo, unique


@pytest.fixture(scope="module", params=BROKERS)
def behind(request: pytest.FixtureRequest, rabbits: Rabbits) -> Iterator[House]:
    with house(request.param, rabbits) as made:
        yield made


@pytest.mark.parametrize("kind", ["tcp-1.0", "tcp-1.1", "tcp-1.2", "ws-1.2"])
def test_client_acks_on_a_topic(behind: House, kind: str) -> None:
    key = unique("t")
    before = set(behind.queues("stomp-subscription-"))
    with (
        connected(behind, kind) as (client, listener),
        connected(behind, "tcp-1.2") as (sender, sent),
    ):
        subscribe(client, listener, f"/topic/{key}.*", "work", ack="client", prefetch_count="2")
        (queue,) = set(behind.queues("stomp-subscription-")) - before
        send(sender, sent, f"/topic/{key}.a", "1", "2", "3", "4")
        got = [listener.next("MESSAGE") for _ in range(2)]
        assert [body for _, body in got] == ["1", "2"]
        assert got[0][0]["destination"] == f"/topic/{key}.a"
        assert got[0][0]["redelivered"] == "false"
        # The prefetch holds: two are with the client, two wait in the broker.
        info = behind.queue(queue)
        assert info is not None
        assert (info.messages, info.consumers) == (4, 1)
        assert listener.frames.empty()
        client.ack(*ack_arguments(kind, got[1][0]), receipt="acked")
        after = [listener.frames.get(timeout=PATIENCE) for _ in range(3)]
        assert sorted(frame[2] for frame in after if frame[0] == "MESSAGE") == ["3", "4"]
    behind.gone(queue)


def test_a_durable_subscription_keeps_what_comes_meanwhile(behind: House) -> None:
    key = unique("dur")
    options = {"durable": "true", "auto_delete": "false"}
    with (
        connected(behind, "tcp-1.2") as (sender, sent),
    ):
        before = set(behind.queues("stomp-subscription-"))
        with connected(behind, "tcp-1.2") as (client, listener):
            subscribe(client, listener, f"/topic/{key}", "d1", **options)
            (queue,) = set(behind.queues("stomp-subscription-")) - before
            send(sender, sent, f"/topic/{key}", "here", persistent="true")
            assert bodies(listener, 1) == ["here"]
        send(sender, sent, f"/topic/{key}", "away 1", "away 2", persistent="true")
        wait_until(lambda: behind.queue(queue) == QueueInfo(queue, 2, 0), what="the messages wait")
        # Another session with the same id is the same subscription, by WebSocket as well.
        with connected(behind, "ws-1.2") as (client, listener):
            subscribe(client, listener, f"/topic/{key}", "d1", **options)
            assert bodies(listener, 2) == ["away 1", "away 2"]
            client.unsubscribe("d1", headers={"durable": "true", "receipt": "u"})
            listener.next("RECEIPT")
            assert behind.queue(queue) is None


def test_leaving_and_coming_back_at_once(behind: House) -> None:
    """As pages do that subscribe anew at each turn: the queue goes with its only consumer."""
    name, key = unique("again"), unique("k")
    with connected(behind, "tcp-1.2") as (client, listener):
        for turn in range(20):
            headers = {"x-queue-name": name, "durable": "true" if turn % 2 else "false"}
            client.subscribe(f"/topic/{key}", id="1", headers=headers)
            client.unsubscribe("1")
        subscribe(client, listener, f"/topic/{key}", "1", x_queue_name=name, exclusive="true")
        client.send(f"/topic/{key}", "here")
        assert bodies(listener, 1) == ["here"]
    behind.gone(name)


def test_what_a_durable_subscription_needs(behind: House) -> None:
    with connected(behind, "tcp-1.1") as (client, listener):
        client.send_frame("SUBSCRIBE", {"destination": "/topic/a", "durable": "true"})
        assert error(listener)["message"] == "Missing Header"
        client.send_frame("UNSUBSCRIBE", {"destination": "/topic/a", "persistent": "true"})
        assert error(listener)["message"] == "Missing Header"


def test_an_exclusive_queue_is_one_session_s(behind: House) -> None:
    name, key = unique("excl"), unique("k")
    with connected(behind, "tcp-1.2") as (client, listener):
        subscribe(client, listener, f"/topic/{key}", "1", x_queue_name=name, exclusive="true")
        for destination, headers in (
            (f"/topic/{key}", {"x_queue_name": name}),
            (f"/queue/{name}", {}),
            (f"/amq/queue/{name}", {}),
        ):
            # The same login: their broker connections are one.
            with connected(behind, "tcp-1.2") as (other, told):
                named = {each.replace("_", "-"): value for each, value in headers.items()}
                other.subscribe(destination, id="1", headers={**named, "receipt": "r"})
                refused = error(told)
                assert (refused["message"], refused["receipt-id"]) == ("resource_locked", "r")
                assert told.ended.wait(PATIENCE)
        send_to = f"/topic/{key}"
        client.send(send_to, "still mine")
        assert bodies(listener, 1) == ["still mine"]
    behind.gone(name)
    with connected(behind, "tcp-1.2") as (client, listener):
        subscribe(client, listener, f"/topic/{key}", "1", x_queue_name=name)


def test_a_client_that_vanishes(behind: House) -> None:
    """Its exclusive queue goes, its durable one keeps what was not acked."""
    exclusive, durable, key = unique("v-excl"), unique("v-dur"), unique("k")
    with (
        connected(behind, "tcp-1.2") as (sender, sent),
        socket.create_connection(behind.tcp, timeout=PATIENCE) as raw,
    ):
        raw.sendall(b"CONNECT\naccept-version:1.2\n\n\0")
        for id, name, more in (
            ("1", exclusive, "auto-delete:false"),
            ("2", durable, "durable:true\nauto-delete:false"),
        ):
            raw.sendall(
                f"SUBSCRIBE\nid:{id}\nreceipt:{id}\nack:client\ndestination:/topic/{key}\n"
                f"x-queue-name:{name}\n{more}\n\n\0".encode()
            )
        data = b""
        while data.count(b"RECEIPT") < 2:
            data += raw.recv(65536)
        send(sender, sent, f"/topic/{key}", "x", persistent="true")
        while data.count(b"MESSAGE") < 2:
            data += raw.recv(65536)
        # A reset, as of a machine that was switched off.
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    behind.gone(exclusive)
    wait_until(lambda: behind.queue(durable) == QueueInfo(durable, 1, 0), what="it is kept")
    with connected(behind, "tcp-1.2") as (client, listener):
        options = {"x_queue_name": durable, "durable": "true", "auto_delete": "false"}
        subscribe(client, listener, f"/topic/{key}", "2", **options)
        headers, body = listener.next("MESSAGE")
        assert (body, headers["redelivered"]) == ("x", "true")
        client.unsubscribe("2", headers={"durable": "true", "receipt": "u"})
        listener.next("RECEIPT")
    assert behind.queue(durable) is None


def test_other_properties_than_the_queue_has(behind: House) -> None:
    name = unique("mismatch")
    with connected(behind, "tcp-1.2") as (client, listener):
        subscribe(client, listener, f"/queue/{name}", "1", x_max_length="3", x_expires="60000")
        with connected(behind, "tcp-1.2") as (other, told):
            other.subscribe(f"/queue/{name}", id="1", headers={"x-max-length": "4"})
            assert error(told)["message"] == "precondition_failed"
            assert told.ended.wait(PATIENCE)
        with connected(behind, "tcp-1.2") as (other, told):
            other.send(f"/queue/{name}", "x", headers={"x-max-length": "4", "receipt": "s"})
            refused = error(told)
            assert (refused["message"], refused["receipt-id"]) == ("precondition_failed", "s")
            assert told.ended.wait(PATIENCE)


def test_x_overflow_and_send_declares_once(behind: House) -> None:
    name = unique("full")
    options = {"x_max_length": "1", "x_overflow": "reject-publish", "x_expires": "60000"}
    with connected(behind, "tcp-1.2") as (client, listener):
        send(client, listener, f"/queue/{name}", "first", **options)
        assert behind.queue(name) == QueueInfo(name, 1, 0)
        for number in range(20):
            # It is declared once: other properties change nothing, as at RabbitMQ.
            client.send(
                f"/queue/{name}", "x", headers={"x-max-length": "9", "receipt": f"{number}"}
            )
            kind, headers, _ = listener.frames.get(timeout=PATIENCE)
            if kind == "ERROR":
                break
        assert headers["message"] == "Publish failed"
        assert headers["receipt-id"] == str(number)


def test_a_transient_queue_of_a_send(behind: House) -> None:
    name = unique("tmp")
    with connected(behind, "tcp-1.2") as (client, listener):
        send(client, listener, f"/queue/{name}", "1", durable="false")
        assert behind.queue(name) == QueueInfo(name, 1, 0)
        subscribe(client, listener, f"/queue/{name}", "1")
        assert bodies(listener, 1) == ["1"]
    behind.gone(name)


def test_a_queue_deleted_under_its_subscriber(behind: House) -> None:
    name, key = unique("deleted"), unique("k")
    options = {"x_queue_name": name, "durable": "true", "auto_delete": "false"}
    with (
        connected(behind, "tcp-1.2") as (client, listener),
        connected(behind, "tcp-1.2") as (other, told),
    ):
        subscribe(client, listener, f"/topic/{key}", "gone", **options)
        subscribe(client, listener, f"/topic/{key}", "stays", ack="client")
        subscribe(other, told, f"/topic/{key}", "gone", **options)
        other.unsubscribe("gone", headers={"durable": "true", "receipt": "u"})
        told.next("RECEIPT")
        headers = error(listener)
        assert headers["message"] == "Server cancelled subscription"
        assert headers["subscription"] == "gone"
        client.send(f"/topic/{key}", "for the other")
        headers, body = listener.next("MESSAGE")
        assert (headers["subscription"], body) == ("stays", "for the other")


def test_streams(behind: House) -> None:
    name, key = unique("stream"), unique("k")
    declared = {
        "x_queue_name": name,
        "x_queue_type": "stream",
        "durable": "true",
        "auto_delete": "false",
        "x_max_length_bytes": "10000000",
        "prefetch_count": "10",
    }
    with connected(behind, "tcp-1.2") as (client, listener):
        subscribe(client, listener, f"/topic/{key}", "s", ack="client", **declared)
        for body in "abc":
            client.send(f"/topic/{key}", body, headers={"persistent": "true"})
        got: list[tuple[str, str]] = []
        while len(got) < 3:
            headers, body = listener.next("MESSAGE")
            got.append((headers["x-stream-offset"], body))
        assert got == [("0", "a"), ("1", "b"), ("2", "c")]
    with connected(behind, "tcp-1.2") as (client, listener):
        for start, expected in (
            ("first", "abc"),
            ("offset=1", "bc"),
            (f"timestamp={int(time.time()) - 3600}", "abc"),
        ):
            subscribe(
                client,
                listener,
                f"/amq/queue/{name}",
                start,
                ack="client-individual",
                x_stream_offset=start,
                prefetch_count="1",
            )
            for body in expected:
                headers, got_body = listener.next("MESSAGE")
                assert got_body == body
                client.ack(headers["ack"])
            client.unsubscribe(start, headers={"receipt": "u"})
            listener.next("RECEIPT")
        subscribe(client, listener, f"/topic/{key}", "s", ack="client", **declared)
        client.unsubscribe("s", headers={"durable": "true", "receipt": "u"})
        listener.next("RECEIPT")
    assert behind.queue(name) is None


@pytest.mark.parametrize(
    ("ack", "prefetch", "message"),
    [("auto", "10", "not_implemented"), ("client", "0", "precondition_failed")],
)
def test_streams_need_acks_and_a_prefetch(
    behind: House, ack: str, prefetch: str, message: str
) -> None:
    name = unique("stream")
    headers = {"x-queue-type": "stream", "auto-delete": "false", "prefetch-count": prefetch}
    with connected(behind, "tcp-1.2") as (client, listener):
        client.subscribe(f"/queue/{name}", id="1", ack=ack, headers=headers)
        assert error(listener)["message"] == message
        assert listener.ended.wait(PATIENCE)
    assert behind.queue(name) is None
