"""The configuration: where the tables of settings.py and arrays.py come together, and are read.

A flag wins over the environment, that over the file, that over the default. The file is
`--config FILE`, else what QUEUECAST_CONFIG names, else ./queuecast.toml where there is one.
`python -m queuecast.config` prints docs/configuration.md.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from . import options
from .aliases import Aliases
from .arrays import (
    AllowConfig,
    BinaryConfig,
    BridgeConfig,
    ExchangeConfig,
    QueueConfig,
    RetainConfig,
    SlowConfig,
    TopicConfig,
)
from .auth.policy import Rule
from .brokers.base import EXCHANGE_TYPES, PREDECLARED, ExchangeSpec, QueueSpec, TopicSpec
from .brokers.binding import DELAYED, DELAYED_TYPE, check_binding, is_own_type, routing_type
from .destination import Destination, Kind
from .errors import ConfigError, QueuecastError
from .options import ENV_PREFIX
from .pattern import is_pattern
from .retention import RetainRule, SlowRule
from .settings import (
    AdminConfig,
    BrokerConfig,
    HistoryConfig,
    LimitsConfig,
    LogConfig,
    ServerConfig,
)

DEFAULT_FILE = "queuecast.toml"
BROKER_SCHEMES = ("embedded", "amqp", "amqps", "kafka", "kafkas")


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole configuration; `check()` before use when it was not made by `load()`."""

    server: ServerConfig = ServerConfig()
    admin: AdminConfig = AdminConfig()
    broker: BrokerConfig = BrokerConfig()
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    history: HistoryConfig = HistoryConfig()
    exchanges: tuple[ExchangeConfig, ...] = msgspec.field(default=(), name="exchange")
    queues: tuple[QueueConfig, ...] = msgspec.field(default=(), name="queue")
    topics: tuple[TopicConfig, ...] = msgspec.field(default=(), name="topic")
    bridges: tuple[BridgeConfig, ...] = msgspec.field(default=(), name="bridge")
    aliases: dict[str, str] = msgspec.field(default_factory=dict)
    retain: tuple[RetainConfig, ...] = ()
    slow: tuple[SlowConfig, ...] = ()
    binary: tuple[BinaryConfig, ...] = ()
    allow: tuple[AllowConfig, ...] = ()

    def rules(self) -> tuple[Rule, ...]:
        """Return the `[[allow]]` rules as a Policy takes them; raises ConfigError."""
        return tuple(
            Rule.parse(each.who, each.subscribe, each.publish, f"allow[{index}]")
            for index, each in enumerate(self.allow)
        )

    def exchange_specs(self) -> tuple[ExchangeSpec, ...]:
        return tuple(each.spec() for each in self.exchanges)

    def queue_specs(self) -> tuple[QueueSpec, ...]:
        return tuple(each.spec() for each in self.queues)

    def max_redeliveries(self) -> dict[str, int]:
        """Return the queues that have a bound of their own."""
        return {
            each.name: each.max_redeliveries for each in self.queues if each.max_redeliveries >= 0
        }

    def topic_specs(self) -> tuple[TopicSpec, ...]:
        return tuple(each.spec() for each in self.topics)

    def bridge_pairs(self) -> Iterator[tuple[Destination, Destination, int]]:
        """Yield source, target and prefetch of each bridge; raises ConfigError."""
        for index, bridge in enumerate(self.bridges):
            where = f"bridge[{index}]"
            source = _destination(bridge.source, f"{where}.from")
            if source.kind not in (Kind.QUEUE, Kind.AMQ_QUEUE):
                raise ConfigError(
                    f"{where}.from: {bridge.source!r} is not a queue",
                    "give /queue/NAME or /amq/queue/NAME",
                )
            target = _destination(bridge.target, f"{where}.to")
            if target.has_wildcards or target.kind is Kind.TEMP_QUEUE:
                raise ConfigError(
                    f"{where}.to: nothing can be published to {bridge.target!r}",
                    "give a destination without wildcards",
                )
            yield source, target, bridge.prefetch

    def retain_rules(self) -> tuple[RetainRule, ...]:
        """Return the `[[retain]]` rules; raises ConfigError."""
        made = []
        for index, each in enumerate(self.retain):
            where = f"retain[{index}]"
            if not each.age and not each.bytes:
                raise ConfigError(f"{where} has no bound", 'give age, e.g. "1h", or bytes, "64MB"')
            destination = _shared(each.destination, f"{where}.destination")
            made.append(RetainRule(destination, each.age, each.bytes, each.messages, each.replicas))
        return tuple(made)

    def slow_rules(self) -> tuple[SlowRule, ...]:
        """Return the `[[slow]]` rules; raises ConfigError."""
        return tuple(
            SlowRule(_shared(each.destination, f"slow[{index}].destination"), each.policy)
            for index, each in enumerate(self.slow)
        )

    def binary_rules(self) -> tuple[Destination, ...]:
        """Return the destinations of the `[[binary]]` rules; raises ConfigError."""
        made = []
        for index, each in enumerate(self.binary):
            where = f"binary[{index}].destination"
            destination = _destination(each.destination, where)
            if destination.kind not in (Kind.QUEUE, Kind.AMQ_QUEUE):
                destination = _shared(each.destination, where)
            made.append(destination)
        return tuple(made)

    def check(self) -> Config:
        """Return itself if its parts agree; raises ConfigError naming the setting."""
        for each in (self.server, self.admin, self.limits):
            each.check()
        _check_broker(self)
        for table, names in (
            ("exchange", [each.name for each in self.exchanges]),
            ("queue", [each.name for each in self.queues]),
            ("topic", [each.name for each in self.topics]),
        ):
            for index, name in enumerate(names):
                if not name or name in names[:index]:
                    raise ConfigError(f"{table}[{index}].name: {name!r} is empty or there twice")
        _check_exchanges(self)
        for _ in self.bridge_pairs():
            pass
        self.retain_rules()
        self.slow_rules()
        self.binary_rules()
        self.server.stomp_paths().check(Aliases(self.aliases), demo=self.server.demo)
        reach = self.server.reach()
        if not self.rules() and reach and not self.server.allow_anyone:
            raise ConfigError(
                f"{reach} reaches beyond loopback and there are no [[allow]] rules",
                "add rules, or start with --allow-anyone to let everybody read and publish "
                "everything",
            )
        return self


def _check_exchanges(config: Config) -> None:
    """Refuse types that there are not, and bindings that never match; raises ConfigError."""
    kinds = dict(PREDECLARED)
    for index, each in enumerate(config.exchanges):
        where = f"exchange[{index}].type"
        if not is_own_type(each.type):
            if not each.type.startswith("x-"):
                raise ConfigError(
                    f"{where}: {each.type!r} is unknown",
                    f"it is {', '.join(EXCHANGE_TYPES)}, or a plugin's, which begins with x-",
                )
            if config.broker.scheme == "embedded":
                raise ConfigError(
                    f"{where}: the embedded broker has no {each.type!r}",
                    f"it has {', '.join(EXCHANGE_TYPES)}; a plugin's type needs RabbitMQ",
                )
        if each.type == DELAYED and not isinstance(each.arguments.get(DELAYED_TYPE), str):
            raise ConfigError(
                f"exchange[{index}].arguments: {DELAYED_TYPE} is missing",
                f'write arguments = {{ {DELAYED_TYPE} = "topic" }}, or another type',
            )
        kinds[each.name] = routing_type(each.spec())
    for index, queue in enumerate(config.queues):
        for number, binding in enumerate(queue.bindings):
            try:
                check_binding(binding.exchange, kinds.get(binding.exchange, ""), binding.key)
            except QueuecastError as error:
                raise ConfigError(
                    f"queue[{index}].bindings[{number}].key: {error.text}", error.hint
                ) from None


def _check_broker(config: Config) -> None:
    """Refuse a broker that there is not, and what it has nothing for; raises ConfigError."""
    broker = config.broker
    scheme = broker.scheme
    if scheme not in BROKER_SCHEMES:
        raise ConfigError(
            f"broker.url: {masked(broker.url)!r} names no broker that is supported",
            "it begins with " + ", ".join(f"{each}:" for each in BROKER_SCHEMES),
        )
    if scheme != "embedded" and not broker.url.startswith(f"{scheme}://"):
        raise ConfigError(f"broker.url: write {scheme}://host")
    if broker.data and scheme != "embedded":
        raise ConfigError(
            f"broker.data: {scheme}:// keeps its messages itself", "only embedded: takes it"
        )
    for index, rule in enumerate(config.retain):
        if rule.replicas and scheme == "embedded":
            raise ConfigError(
                f"retain[{index}].replicas: the embedded broker is one process", "leave it out"
            )
    for name in ("certfile", "keyfile", "passphrase_file", "password_file"):
        if getattr(broker, name) and scheme == "embedded":
            raise ConfigError(f"broker.{name}: embedded: has no connection", "leave it out")
    if config.server.workers > 1 and scheme == "embedded":
        raise ConfigError(
            f"server.workers: {config.server.workers} processes cannot share the embedded broker, "
            "which lives in one",
            "set broker.url to amqp://… or kafka://…, or leave --workers out",
        )
    if not scheme.startswith("kafka"):
        if config.topics:
            raise ConfigError("topic[0]: only Kafka has topics", "use [[queue]] and [[exchange]]")
        return
    if config.server.demo:
        raise ConfigError(
            "server.demo: the demo pages use patterns of topics, which Kafka does not have",
            "show them with broker.url = embedded:",
        )
    for table, tables, hint in (
        ("exchange", config.exchanges, "/exchange/TOPIC/PATTERN reads a topic's records by key"),
        ("queue", config.queues, "/queue/TOPIC is a consumer group; [[topic]] creates a topic"),
        ("retain", config.retain, "a topic keeps its records: [[topic]] with retention.ms"),
    ):
        if tables:
            raise ConfigError(f"{table}[0]: Kafka has nothing like [[{table}]]", hint)


def load(
    flags: Mapping[str, str] | None = None,
    *,
    file: str | None = None,
    environ: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Config:
    """Read the configuration from everywhere; raises ConfigError.

    flags: texts by option path, e.g. {"server.port": "0"}. file: what `--config` names.
    environ, directory: instead of the process's own.
    """
    environ = os.environ if environ is None else environ
    tables: dict[str, dict[str, Any]] = {}
    whole: dict[str, Any] = {}
    fields = {field.encode_name: field for field in msgspec.structs.fields(Config)}
    known = {each.path: each for each in options.options(Config)}

    path = _file(file, environ, directory or Path())
    for key, raw in (_toml(path) if path is not None else {}).items():
        if key not in fields:
            raise options.unknown(key, fields, str(path))
        where = f"{path}: {key}"
        if not any(each.table == key for each in known.values()):
            whole[key] = options.read(fields[key].type, raw, where)
            continue
        if not isinstance(raw, dict):
            raise ConfigError(f"{where}: expected a table", f"write [{key}]")
        keys = {each.key: each for each in known.values() if each.table == key}
        for name, value in raw.items():
            if name not in keys:
                raise options.unknown(name, keys, f"{path}: [{key}]")
            made = options.read(keys[name].annotation, value, f"{where}.{name}")
            tables.setdefault(key, {})[name] = made

    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX):
            continue
        key = name.removeprefix(ENV_PREFIX).lower()
        if key in fields and key.upper() == name.removeprefix(ENV_PREFIX):
            if key in {each.table for each in known.values()}:
                raise ConfigError(f"{name}: a table has no value", f"set {name}__KEY")
            whole[key] = options.read(fields[key].type, text, name, text=True)
        elif "__" in key:
            names = {each.env: each for each in known.values()}
            if name not in names:
                raise options.unknown(name, names, "the environment")
            found = names[name]
            tables.setdefault(found.table, {})[found.key] = options.read(
                found.annotation, text, name, text=True
            )

    for path_, text in (flags or {}).items():
        found = known[path_]
        tables.setdefault(found.table, {})[found.key] = options.read(
            found.annotation, text, found.flag, text=True
        )

    for key, values in tables.items():
        whole[key] = fields[key].type(**values)
    return Config(**{fields[key].name: value for key, value in whole.items()}).check()


def from_tables(tables: Mapping[str, Any]) -> Config:
    """Build a configuration from tables as they stand in a file; raises ConfigError."""
    made: Config = options.read_struct(Config, tables, "configuration")
    return made.check()


def masked(url: str) -> str:
    """Hide a URL's password, and secrets in its query, for everything that is printed."""
    # Up to the last @: a password that was not percent-encoded may hold one itself.
    url = re.sub(r"^([a-z][a-z0-9+.-]*://[^:@/]*):.*@", r"\1:***@", url, flags=re.I | re.S)
    return re.sub(r"([?&][^=&]*(?:pass|token|secret)[^=&]*)=[^&]*", r"\1=***", url, flags=re.I)


def _file(file: str | None, environ: Mapping[str, str], directory: Path) -> Path | None:
    named = file or environ.get("QUEUECAST_CONFIG")
    if named:
        return directory / named
    path = directory / DEFAULT_FILE
    return path if path.is_file() else None


# What hints and this file's errors write in one line: [[queue]] name = "orders".
_HEADER_AND_MORE = re.compile(r"^\s*\[[^\]\n]+\]+[ \t]*[^\s#\]]", re.MULTILINE)


def _toml(path: Path) -> dict[str, Any]:
    text = ""
    try:
        text = path.read_text("utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        hint = (
            "[…] and each key stand on lines of their own" if _HEADER_AND_MORE.search(text) else ""
        )
        raise ConfigError(f"{path} is not TOML: {error}", hint) from None


def _destination(text: str, where: str) -> Destination:
    try:
        return Destination.parse(text)
    except QueuecastError as error:
        raise ConfigError(f"{where}: {error.text}", error.hint) from None


def _shared(text: str, where: str) -> Destination:
    destination = _destination(text, where)
    if not destination.is_shared or (is_pattern(destination.name) and destination.key is not None):
        raise ConfigError(
            f"{where}: {text!r} is not a destination of an exchange",
            "give /topic/PATTERN or /exchange/NAME/PATTERN",
        )
    return destination


def document() -> str:
    """Return docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "<!-- Made by `python -m queuecast.config`; change src/queuecast/settings.py "
        "and arrays.py instead. -->",
        "",
        "Every setting has a place in `queuecast.toml` and a name in the environment, the usual "
        "ones also a flag. A flag wins over the environment, the environment over the file, the "
        "file over the default. The file is `--config FILE`, else what `QUEUECAST_CONFIG` names, "
        "else `./queuecast.toml` where there is one.",
        "",
        'Sizes are bytes or text like `"64KB"`, `"1MB"` (1 KB is 1,024 bytes), durations seconds '
        'or text like `"500ms"`, `"30s"`, `"5m"`, `"1h"`, `"2d"`. In the environment a list is '
        "JSON or separated by commas, and whole tables (`QUEUECAST_ALLOW`, `QUEUECAST_ALIASES`, "
        "…) are JSON. Unknown names are refused.",
    ]
    table = ""
    for each in options.options(Config):
        if each.table != table:
            table = each.table
            lines += ["", f"## [{table}]", "", "| key | default | meaning | environment | flag |"]
            lines.append("|---|---|---|---|---|")
        unit = f" ({each.unit})" if each.unit else ""
        choice = f" One of {', '.join(f'`{one}`' for one in each.choices)}." if each.choices else ""
        flag = f"`{each.flag}`" if each.flag else ""
        lines.append(
            f"| `{each.key}` | `{each.shown_default}`{unit} | {each.help}{choice} "
            f"| `{each.env}` | {flag} |"
        )
    for name, struct in options.arrays(Config):
        text = " ".join((struct.__doc__ or "").split())
        lines += ["", f"## [[{name}]]", "", text, "", "| key | type | default | meaning |"]
        lines.append("|---|---|---|---|")
        for field in options.fields(struct):
            lines.append(
                f"| `{field.key}` | {options.type_name(field.annotation)} "
                f"| {_code(field.shown_default)} | {field.help} |"
            )
    lines += [
        "",
        "## [aliases]",
        "",
        "Friendly URLs that hide the broker's names: the path on the left, the destination on the "
        "right. `{name}` is one literal segment: `*`, `#` and `/` in it are refused, and so are "
        "dots unless it is the whole of the destination's segment.",
        "",
        "```toml",
        "[aliases]",
        '"/events/{id}" = "/exchange/events/{id}"',
        '"/sse" = "/topic/news"',
        "```",
    ]
    return "\n".join(lines) + "\n"


def _code(default: str) -> str:
    return default if default == "required" else f"`{default}`"


if __name__ == "__main__":
    print(document(), end="")
