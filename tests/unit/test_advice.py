"""Configuration that can never take effect: one line for each, and none for what may."""

import pytest

from queuecast.advice import advice, misspelt
from queuecast.config import from_tables

AMQP, KAFKA = {"url": "amqp://h"}, {"url": "kafka://h"}
ANYONE = {"who": "*", "subscribe": ["/topic/#"]}


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"allow": [{**ANYONE, "who": "alice"}]}, ["allow[0].who", "'alice'", "embedded", "guest"]),
        ({"broker": KAFKA, "allow": [{**ANYONE, "who": "alice"}]}, ["allow[0].who", "Kafka"]),
        ({"allow": [ANYONE, {**ANYONE, "who": ""}]}, ["allow[1].who", "empty", '"*"']),
        ({"broker": AMQP, "allow": [{**ANYONE, "who": " "}]}, ["allow[0].who", "empty"]),
        ({"allow": [{"who": "*"}]}, ["allow[0]", "allows nothing"]),
        (
            {"allow": [{"who": "*", "subscribe": ["/topic/a", "/exchange/x/#"]}]},
            ["allow[0].subscribe[1]", "'/exchange/x/#'", '[[exchange]] name = "x"'],
        ),
        ({"allow": [{"who": "*", "publish": ["/exchange/x.*/a"]}]}, ["publish[0]", "fits 'x.*'"]),
        ({"retain": [{"destination": "/exchange/x/#", "age": "1h"}]}, ["retain[0].destination"]),
        ({"slow": [{"destination": "/exchange/x"}]}, ["slow[0].destination"]),
        ({"bridge": [{"from": "/queue/q", "to": "/exchange/x/a"}]}, ["bridge[0].to"]),
        ({"aliases": {"/e/{id}": "/exchange/x/{id}"}}, ["aliases", "'x'"]),
        (
            {"broker": AMQP, "allow": [{"who": "*", "subscribe": ["/topic/chat*"]}]},
            ["'chat*'", "literally", "whole words"],
        ),
        ({"allow": [{"who": "*", "publish": ["/queue/job-#"]}]}, ["'job-#'", "literally"]),
        (
            {"broker": KAFKA, "allow": [{"who": "*", "publish": ["/temp-queue/a"]}]},
            ["Kafka has no temp-queue"],
        ),
        (
            {"broker": KAFKA, "allow": [{"who": "*", "publish": ["/topic/a b"]}]},
            ["letters, digits"],
        ),
    ],
)
def test_what_never_takes_effect(tables: dict[str, object], words: list[str]) -> None:
    (line,) = advice(from_tables(tables))
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"allow": [{**ANYONE, "who": who} for who in ("*", "anonymous", "guest")]},
        {"broker": AMQP, "allow": [{**ANYONE, "who": "alice"}]},
        {"broker": AMQP, "allow": [{"who": "*", "subscribe": ["/exchange/x/#"]}]},
        # It may be there from an earlier run.
        {"broker": {"data": "d"}, "allow": [{"who": "*", "subscribe": ["/exchange/x/#"]}]},
        {
            "exchange": [{"name": "x.y"}],
            "allow": [{"who": "*", "subscribe": ["/exchange/x.*/#", "/exchange/amq.topic/a"]}],
            "retain": [{"destination": "/exchange/x.y/#", "age": "1h"}],
            "aliases": {"/e/{id}": "/exchange/x.y/{id}", "/f/{id}": "/topic/f.{id}"},
        },
        {"allow": [{"who": "*", "publish": ["/queue/#", "/topic/a.*.b", "/temp-queue/a"]}]},
        {"broker": KAFKA, "allow": [{"who": "*", "subscribe": ["/topic/a.#", "/exchange/t/*"]}]},
    ],
)
def test_what_may_take_effect(tables: dict[str, object]) -> None:
    assert list(advice(from_tables(tables))) == []


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("QUEUECAST_SERVER_PORT", "QUEUECAST_SERVER__PORT"),
        ("QUEUECAST_BROKER_URL", "QUEUECAST_BROKER__URL"),
        ("QUEUECAST_LIMITS_CONNECTION", "QUEUECAST_LIMITS__CONNECTIONS"),
        ("QUEUECAST_SERVER_TRUSTED_PROXY", "QUEUECAST_SERVER__TRUSTED_PROXIES"),
        ("queuecast_server__port", "QUEUECAST_SERVER__PORT"),
        ("QUEUECAST_ALLOWS", "QUEUECAST_ALLOW"),
        ("QUEUECAST_CONFG", "QUEUECAST_CONFIG"),
    ],
)
def test_names_that_are_nearly_right(name: str, right: str) -> None:
    (line,) = misspelt({name: "1"})
    assert line == f"{name} in the environment is ignored: the setting is {right}"


def test_names_that_mean_something_else() -> None:
    services = {
        "QUEUECAST_PORT": "tcp://10.0.0.1:15674",
        "QUEUECAST_SERVICE_HOST": "10.0.0.1",
        "QUEUECAST_SERVICE_PORT": "15674",
        "QUEUECAST_SERVICE_PORT_HTTP": "15674",
        "QUEUECAST_PORT_15674_TCP": "tcp://10.0.0.1:15674",
        "QUEUECAST_PORT_15674_TCP_ADDR": "10.0.0.1",
        "QUEUECAST_PORT_15674_TCP_PORT": "15674",
        "QUEUECAST_PORT_15674_TCP_PROTO": "tcp",
        # Of services that are called queuecast-server and queuecast-admin.
        "QUEUECAST_SERVER_PORT": "tcp://10.0.0.2:80",
        "QUEUECAST_SERVER_SERVICE_HOST": "10.0.0.2",
        "QUEUECAST_SERVER_SERVICE_PORT": "80",
        "QUEUECAST_ADMIN_PORT_15675_TCP_ADDR": "10.0.0.3",
    }
    right = {"QUEUECAST_SERVER__PORT": "1", "QUEUECAST_ALLOW": "[]", "QUEUECAST_CONFIG": "f"}
    others = {"QUEUECAST_TEST_AMQP": "amqp://h", "PATH": "/bin", "QUEUECAST_VERSION": "1"}
    assert list(misspelt({**services, **right, **others})) == []
