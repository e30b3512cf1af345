"""Origin, Sec-Fetch-Site, Host and CORS."""

from __future__ import annotations

import pytest

from queuecast.auth.origins import OriginCheck
from queuecast.errors import Refused

LOCAL = OriginCheck(["https://app.example"], "127.0.0.1")
PUBLIC = OriginCheck(["https://app.example", "http://b.example:80"], "0.0.0.0")
OPEN = OriginCheck((), "0.0.0.0")


def headers(host: str = "", origin: str = "", site: str = "", **more: str) -> dict[str, str]:
    named = {"host": host, "origin": origin, "sec-fetch-site": site}
    return {name: value for name, value in named.items() if value} | more


PASSING = [
    (LOCAL, headers("localhost:15674")),
    (LOCAL, headers("127.0.0.1:15674", "http://localhost:3000")),
    (LOCAL, headers("[::1]:15674", "http://[::1]:3000")),
    (LOCAL, headers("a.localhost:15674", "http://a.localhost:15674")),
    (LOCAL, headers("localhost:15674", "https://app.example", "cross-site")),
    (LOCAL, headers("app.example", "https://app.example", "same-origin")),
    (LOCAL, headers("localhost:15674", site="same-origin")),
    (LOCAL, headers("localhost:15674", site="none")),
    (LOCAL, headers("localhost:15674", site="same-site")),
    (LOCAL, headers("", "")),
    (PUBLIC, headers("queue.example", "https://queue.example")),
    (PUBLIC, headers("queue.example:443", "https://queue.example")),
    (PUBLIC, headers("Queue.Example:8080", "http://queue.example:8080")),
    (PUBLIC, headers("queue.example", "http://b.example")),
    (PUBLIC, headers("queue.example")),
    (OPEN, headers("localhost:15674", "http://localhost:3000")),
    (OriginCheck(["null"]), headers("localhost", "null")),
]
REFUSED = [
    (LOCAL, headers("localhost:15674", "https://evil.example")),
    (LOCAL, headers("localhost:15674", "null")),
    (LOCAL, headers("localhost:15674", "https://app.example.evil.example")),
    (LOCAL, headers("localhost:15674", "https://app.example:8443")),
    (LOCAL, headers("localhost:15674", "http://app.example")),
    (LOCAL, headers("localhost:15674", "http://localhost.evil.example")),
    (LOCAL, headers("localhost:15674", "http://localhost@evil.example")),
    (LOCAL, headers("localhost:15674", "http://localhost/evil")),
    (LOCAL, headers("localhost:15674", "file://localhost")),
    (LOCAL, headers("localhost:15674", "http://[::1")),
    (LOCAL, headers("localhost:15674", site="cross-site")),
    (LOCAL, headers("evil.example:15674")),
    (LOCAL, headers("evil.example:15674", "http://evil.example:15674")),
    (LOCAL, headers("127.0.0.1.evil.example")),
    (LOCAL, headers("10.0.0.1:15674")),
    (PUBLIC, headers("queue.example", "http://localhost:3000")),
    (PUBLIC, headers("queue.example", "https://queue.example:8443")),
    (PUBLIC, headers("queue.example", site="same-site")),
    (PUBLIC, headers("queue.example", site="cross-site")),
    (OPEN, headers("queue.example", "https://app.example")),
]


@pytest.mark.parametrize(("check", "request_headers"), PASSING)
def test_passes(check: OriginCheck, request_headers: dict[str, str]) -> None:
    answer = check.check(request_headers)
    origin = request_headers.get("origin")
    assert answer.get("Access-Control-Allow-Origin") == origin
    assert answer["Vary"] == "Origin"
    assert answer == check.cors(request_headers)
    if origin is not None:
        assert answer["Access-Control-Allow-Credentials"] == "true"


@pytest.mark.parametrize(("check", "request_headers"), REFUSED)
def test_refused_without_leave_to_read(check: OriginCheck, request_headers: dict[str, str]) -> None:
    with pytest.raises(Refused) as caught:
        check.check(request_headers)
    assert "[server] origins" in caught.value.hint
    assert check.cors(request_headers) == {"Vary": "Origin"}


def test_the_hint_is_the_line_to_add() -> None:
    with pytest.raises(Refused) as caught:
        OPEN.check(headers("queue.example", "https://app.example"))
    assert caught.value.hint == '[server] origins = ["https://app.example"]'


def test_the_forwarded_host_counts_only_from_a_trusted_proxy() -> None:
    asked = headers("127.0.0.1:15674", "https://queue.example")
    asked["x-forwarded-host"] = "queue.example, inner.example"
    with pytest.raises(Refused):
        PUBLIC.check(asked)
    assert PUBLIC.check(asked, trusted_proxy=True)["Access-Control-Allow-Origin"]


def test_preflight() -> None:
    asked = headers("localhost", "http://localhost:3000")
    asked["access-control-request-private-network"] = "true"
    answer = LOCAL.preflight(asked, "POST")
    assert answer["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert answer["Access-Control-Allow-Methods"] == "POST"
    assert "Last-Event-ID" in answer["Access-Control-Allow-Headers"]
    assert answer["Access-Control-Allow-Private-Network"] == "true"
    assert "Origin" in answer["Vary"]
    with pytest.raises(Refused):
        LOCAL.preflight(headers("localhost", "https://evil.example"))


def test_whose_pages_may_frame_ours() -> None:
    """Whoever may not use the gateway must not frame a page that may."""
    check = OriginCheck(["https://b.example", "https://a.example", "null"], "0.0.0.0")
    assert check.ancestors({"host": "a.example"}) == "'self' https://a.example https://b.example"
    local = check.ancestors({"host": "localhost:15674"}).split(" ")
    assert {"http://localhost:*", "https://127.0.0.1:*", "http://*.localhost:*"} <= set(local)
    assert OriginCheck([], "0.0.0.0").ancestors({"host": "a.example"}) == "'self'"
    proxied = {"host": "127.0.0.1", "x-forwarded-host": "a.example"}
    assert OriginCheck().ancestors(proxied, trusted_proxy=True) == "'self'"
    assert "http://localhost:*" in OriginCheck().ancestors({})


def test_what_passed_is_remembered_and_nothing_else() -> None:
    check = OriginCheck(["https://app.example"], "127.0.0.1")
    first = check.check(headers("localhost:1", "https://app.example"))
    first["Vary"] = "changed by who got it"
    again = check.check(headers("localhost:1", "https://app.example"))
    assert again["Vary"] == "Origin"
    assert check._kept_check.cache_info().hits == 1
    for _ in range(2):
        with pytest.raises(Refused):
            check.check(headers("localhost:1", "https://evil.example"))
    # One name for each guess, and names without end.
    for number in range(1000):
        check.check(headers(f"h{number}.localhost:1"))
    check.check(headers(f"{'h' * 1000}.localhost:1"))
    assert check._kept_check.cache_info().currsize == 256
