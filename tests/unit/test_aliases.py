"""URL aliases."""

from __future__ import annotations

import pytest

from queuecast.aliases import Aliases
from queuecast.errors import BadDestination, ConfigError

ALIASES = Aliases(
    {
        "/events/{id}": "/exchange/events/{id}",
        "/events/all": "/exchange/events/#",
        "/users/{id}/done": "/topic/user.{id}.done",
        "/pair/{a}/{b}": "/exchange/{a}/{b}",
        "/sse": "/topic/news",
        "/消息": "/topic/消息.#",
    }
)


@pytest.mark.parametrize(
    ("path", "destination"),
    [
        ("/events/42", "/exchange/events/42"),
        ("/events/a.b@c", "/exchange/events/a.b@c"),
        ("/events/all", "/exchange/events/#"),
        ("/events/all/", "/exchange/events/#"),
        ("/events/a%20b", "/exchange/events/a b"),
        ("/events/%E4%BB%B7", "/exchange/events/价"),
        ("/events/价", "/exchange/events/价"),
        ("/events/100%25", "/exchange/events/100%25"),
        ("/users/7/done", "/topic/user.7.done"),
        ("/pair/x/y", "/exchange/x/y"),
        ("/sse", "/topic/news"),
        ("/sse/", "/topic/news"),
        ("/%E6%B6%88%E6%81%AF", "/topic/消息.#"),
        ("/topic/own", "/topic/own"),
    ],
)
def test_resolves(path: str, destination: str) -> None:
    assert str(ALIASES.resolve(path)) == destination


@pytest.mark.parametrize("path", ["/other", "/events", "/events/1/2", "/topic/x", "events/1", ""])
def test_what_is_no_alias_is_none(path: str) -> None:
    assert ALIASES.expand(path) is None


@pytest.mark.parametrize(
    "parameter",
    [
        "*",
        "#",
        "%23",
        "%2A",
        "%2a",
        "a%2Fb",
        "%2f",
        "a*b",
        "a%23",
        "",
        ".",
        "..",
        "%2E%2E",
        "%00",
        "%0A",
        "%ff",
        "%",
        "%zz",
        "a.",
    ],
)
def test_a_parameter_is_one_literal_segment(parameter: str) -> None:
    with pytest.raises(BadDestination):
        ALIASES.resolve(f"/events/{parameter}")


@pytest.mark.parametrize("parameter", ["1.2", "1%2E2", "*", "%23"])
def test_a_parameter_within_a_key_is_one_word(parameter: str) -> None:
    with pytest.raises(BadDestination):
        ALIASES.resolve(f"/users/{parameter}/done")


def test_a_parameter_is_not_expanded_again() -> None:
    assert str(ALIASES.resolve("/pair/{b}/x")) == "/exchange/{b}/x"


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("events", "/topic/a"),
        ("/", "/topic/a"),
        ("/a/", "/topic/a"),
        ("/a//b", "/topic/a"),
        ("/a/..", "/topic/a"),
        ("/a?b", "/topic/a"),
        ("/{x}", "/topic/{x}"),
        ("/a/x{y}", "/topic/{y}"),
        ("/a/{x}", "/topic/a"),
        ("/a/{x}/{x}", "/topic/{x}"),
        ("/a", "/topic/{x}"),
        ("/a/{x}", "/topic/{x}{"),
        ("/a", "topic/a"),
        ("/a", "/topic/a%zz"),
        ("/sse/a", "/topic/a"),
        ("/ws", "/topic/a"),
        ("/publish", "/topic/a"),
        ("/topic/a", "/topic/b"),
        ("/healthz", "/topic/a"),
    ],
)
def test_wrong_aliases_are_refused_by_name(path: str, target: str) -> None:
    with pytest.raises(ConfigError, match="aliases"):
        Aliases({path: target})


def test_two_aliases_of_one_path_are_refused() -> None:
    with pytest.raises(ConfigError, match="same path"):
        Aliases({"/a/{x}": "/topic/{x}", "/a/{y}": "/queue/{y}"})


def test_no_aliases() -> None:
    assert Aliases().expand("/sse") is None
    assert str(Aliases().resolve("/topic/a")) == "/topic/a"
