"""The [[allow]] rules."""

from __future__ import annotations

import tomllib

import pytest

from queuecast.auth.identity import ANONYMOUS, Identity
from queuecast.auth.policy import Policy, Rule, Verb
from queuecast.destination import Destination
from queuecast.errors import ConfigError, Refused


def allowed(policy: Policy, verb: Verb, text: str, who: Identity = ANONYMOUS) -> bool:
    try:
        policy.allow(who, verb, Destination.parse(text))
    except Refused:
        return False
    return True


RULES = Policy(
    [
        Rule.parse(
            "anonymous",
            subscribe=[
                "/topic/public.#",
                "/exchange/events/*",
                "/exchange/tenant.*/news.#",
                "/queue/jobs.*",
                "/topic/价格",
            ],
            publish=["/topic/chat.*", "/reply-queue/amq.#"],
        )
    ]
)


@pytest.mark.parametrize(
    ("verb", "text", "expected"),
    [
        ("subscribe", "/topic/public", True),
        ("subscribe", "/topic/public.a.b", True),
        ("subscribe", "/topic/public.#", True),
        ("subscribe", "/topic/#", False),
        ("subscribe", "/topic/*", False),
        ("subscribe", "/topic/publicity", False),
        ("subscribe", "/topic/价格", True),
        ("publish", "/topic/public.a", False),
        ("publish", "/topic/chat.a", True),
        ("publish", "/topic/chat.a.b", False),
        ("subscribe", "/topic/chat.a", False),
        ("subscribe", "/exchange/events/a", True),
        ("subscribe", "/exchange/events/*", True),
        ("subscribe", "/exchange/events/#", False),
        ("subscribe", "/exchange/events", False),
        ("subscribe", "/exchange/other/a", False),
        ("subscribe", "/exchange/tenant.7/news.a.b", True),
        ("subscribe", "/exchange/tenant.7.x/news", False),
        ("subscribe", "/queue/jobs.a", True),
        ("subscribe", "/queue/jobs", False),
        ("subscribe", "/amq/queue/jobs.a", False),
        ("publish", "/reply-queue/amq.gen-x", True),
        ("publish", "/queue/jobs.a", False),
        ("subscribe", "/exchange/amq.topic/public.a", False),
    ],
)
def test_a_request_must_lie_within_one_rule(verb: Verb, text: str, expected: bool) -> None:
    assert allowed(RULES, verb, text) is expected


def test_an_exchange_rule_of_any_key_covers_no_key() -> None:
    policy = Policy([Rule.parse("*", subscribe=["/exchange/logs/#"])])
    assert allowed(policy, "subscribe", "/exchange/logs")
    policy = Policy([Rule.parse("*", subscribe=["/exchange/logs"])])
    assert allowed(policy, "subscribe", "/exchange/logs")
    assert not allowed(policy, "subscribe", "/exchange/logs/a")


def test_two_rules_do_not_add_up() -> None:
    policy = Policy([Rule.parse("*", subscribe=["/topic/a.*"]), Rule.parse("*", ["/topic/a"])])
    assert allowed(policy, "subscribe", "/topic/a")
    assert allowed(policy, "subscribe", "/topic/a.b")
    assert not allowed(policy, "subscribe", "/topic/a.#")


def test_rules_speak_of_their_identity() -> None:
    policy = Policy([Rule.parse("ann", ["/topic/a"]), Rule.parse("*", ["/topic/b"])])
    assert allowed(policy, "subscribe", "/topic/a", Identity("ann"))
    assert allowed(policy, "subscribe", "/topic/b", Identity("ann"))
    assert not allowed(policy, "subscribe", "/topic/a")
    assert allowed(policy, "subscribe", "/topic/b")


def test_without_rules_everything_is_allowed_unless_said_otherwise() -> None:
    assert allowed(Policy(), "publish", "/queue/a")
    assert not allowed(Policy(allow_all=False), "publish", "/queue/a")


def test_a_refusal_names_the_rule_to_add() -> None:
    with pytest.raises(Refused) as caught:
        RULES.allow(ANONYMOUS, "subscribe", Destination.parse("/topic/x"))
    assert caught.value.text == "anonymous may not subscribe to /topic/x"
    assert caught.value.hint == '[[allow]] who = "anonymous" subscribe = ["/topic/x"]'


def test_the_rule_to_add_is_one_rule_whatever_the_client_wrote() -> None:
    wanted = Destination.parse('/topic/x"], publish = ["%2Ftopic%2F磁盘\\')
    with pytest.raises(Refused) as caught:
        RULES.allow(ANONYMOUS, "subscribe", wanted)
    line = caught.value.hint.removeprefix("[[allow]] ")
    read = tomllib.loads(line.replace(" subscribe", "\nsubscribe"))
    assert read == {"who": "anonymous", "subscribe": [str(wanted)]}


def test_a_wrong_rule_names_its_place() -> None:
    with pytest.raises(ConfigError, match=r"allow\[3\]\.publish\[1\]"):
        Rule.parse("*", publish=["/topic/a", "nonsense"], where="allow[3]")
