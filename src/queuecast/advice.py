"""What in a configuration is allowed, but can never take effect: a warning for each at the start.

A rule for a login that the broker does not know, or for an exchange that cannot be there, looks as
if it worked. The same is true of a variable in the environment whose name is nearly right.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

import msgspec

from . import options
from .brokers.base import PREDECLARED
from .config import Config
from .destination import Destination, Kind
from .errors import QueuecastError
from .options import ENV_PREFIX
from .pattern import contains, is_pattern

# Names that sessions have where the broker knows no logins.
_NAMES = ("*", "anonymous", "guest")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
# What Kubernetes and Docker put into the environment for a service of that name.
_SERVICE = re.compile(
    r"PORT|(?:.*_)?SERVICE_(?:HOST|PORT)(?:_.*)?|(?:.*_)?PORT_[0-9]+_(?:TCP|UDP|SCTP).*"
)
_SERVICE_VALUE = re.compile(r"(?:tcp|udp|sctp)://")
# How alike two names have to be, 0 to 1: one letter wrong in a short name, two in a long one.
_ALIKE = 0.8


def advice(config: Config) -> Iterator[str]:
    """Yield a line for each part of a configuration that can never take effect."""
    scheme = config.broker.scheme
    for index, rule in enumerate(config.allow):
        where = f"allow[{index}]"
        if not rule.who.strip():
            yield f'{where}.who is empty: the rule is for nobody; "*" is everybody'
        elif not scheme.startswith("amqp") and rule.who not in _NAMES:
            broker = "the embedded broker" if scheme == "embedded" else "Kafka"
            yield (
                f"{where}.who = {rule.who!r} matches no client: with {broker} there are no logins; "
                'write "anonymous", "guest" (STOMP on this machine) or "*"'
            )
        if not rule.subscribe and not rule.publish:
            yield f"{where} allows nothing: it has neither subscribe nor publish"
    for where, text in _named(config):
        try:
            destination = Destination.parse(text)
        except QueuecastError:
            continue  # with a parameter of an alias, or refused elsewhere
        why = _never(config, destination)
        if why:
            yield f"{where}: {text!r} matches nothing: {why}"


def _named(config: Config) -> Iterator[tuple[str, str]]:
    """Yield each destination of the configuration, and where it stands."""
    for index, rule in enumerate(config.allow):
        for verb, texts in (("subscribe", rule.subscribe), ("publish", rule.publish)):
            for number, text in enumerate(texts):
                yield f"allow[{index}].{verb}[{number}]", text
    for index, kept in enumerate(config.retain):
        yield f"retain[{index}].destination", kept.destination
    for index, slow in enumerate(config.slow):
        yield f"slow[{index}].destination", slow.destination
    for index, bridge in enumerate(config.bridges):
        yield f"bridge[{index}].to", bridge.target
    for path, text in config.aliases.items():
        yield f"aliases.{path!r}", text


def _never(config: Config, destination: Destination) -> str:
    """Return why a destination can never be there, "" where it may."""
    for part in (destination.name, destination.key or ""):
        for word in part.split("."):
            if len(word) > 1 and word.strip("*#") != word and "{" not in word:
                return f"{word!r} is taken literally; * and # are whole words between dots"
    scheme = config.broker.scheme
    if scheme.startswith("kafka"):
        return _never_at_kafka(destination)
    # A data directory, or RabbitMQ, may hold exchanges that others have declared.
    if scheme != "embedded" or config.broker.data or destination.kind is not Kind.EXCHANGE:
        return ""
    there = {each.name for each in config.exchanges} | {name for name in PREDECLARED if name}
    if "{" in destination.name or any(contains(destination.name, name) for name in there):
        return ""
    named = "fits" if is_pattern(destination.name) else "is"
    return (
        f"no exchange {named} {destination.name!r}; add [[exchange]] name = "
        f'"{"NAME" if is_pattern(destination.name) else destination.name}"'
    )


def _never_at_kafka(destination: Destination) -> str:
    if destination.kind in (Kind.TEMP_QUEUE, Kind.REPLY_QUEUE):
        return f"Kafka has no {destination.kind.value.strip('/')}s"
    literal = ".".join(word for word in destination.name.split(".") if not is_pattern(word))
    if literal and "{" not in literal and not _TOPIC.fullmatch(literal):
        return "a topic's name has letters, digits, '.', '_' and '-' only"
    return ""


def misspelt(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each variable that is ignored, and whose name is nearly a setting's."""
    known = {each.env.replace("__", "_"): each.env for each in options.options(Config)}
    for field in msgspec.structs.fields(Config):
        known.setdefault(*([f"{ENV_PREFIX}{field.encode_name.upper()}"] * 2))
    known[f"{ENV_PREFIX}CONFIG"] = f"{ENV_PREFIX}CONFIG"
    for name, value in environ.items():
        if not name.upper().startswith(ENV_PREFIX) or name in known.values():
            continue
        rest = name.upper().removeprefix(ENV_PREFIX)
        if name.startswith(ENV_PREFIX) and "__" in name:
            continue  # refused when the configuration is read
        if _SERVICE.fullmatch(rest) or _SERVICE_VALUE.match(value):
            continue
        right = _nearest(rest.replace("__", "_"), known)
        if right:
            yield f"{name} in the environment is ignored: the setting is {right}"


def _nearest(rest: str, known: Mapping[str, str]) -> str:
    """Return the variable whose name is meant, "" where none is near."""
    names = {each.removeprefix(ENV_PREFIX): env for each, env in known.items()}
    found = difflib.get_close_matches(rest, names, n=1, cutoff=_ALIKE)
    return names[found[0]] if found else ""
