"""How a setting is declared once and read from a file, the environment or a flag.

An option is a field of a msgspec Struct, annotated with `option(...)`. From that one declaration
come its TOML key, its environment name (`QUEUECAST_TABLE__KEY`, with a double underscore because
Kubernetes injects names like QUEUECAST_PORT), its flag and its row in docs/configuration.md.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from .errors import ConfigError

Kind = Literal["", "size", "duration"]

ENV_PREFIX = "QUEUECAST_"

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|KIB|MB|MIB|GB|GIB)?", re.IGNORECASE)
_SIZES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", re.IGNORECASE)
_DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TRUE = frozenset(("true", "1", "yes", "on"))
_FALSE = frozenset(("false", "0", "no", "off"))


def option(
    help: str,
    *,
    unit: str = "",
    flag: str = "",
    kind: Kind = "",
    ge: float | None = None,
    le: float | None = None,
) -> msgspec.Meta:
    """Declare an option: what it does, its unit, its flag on the command line, its bounds.

    kind: "size" takes "64KB" and gives bytes, "duration" takes "5m" and gives seconds.
    """
    return msgspec.Meta(
        description=help, ge=ge, le=le, extra={"unit": unit, "flag": flag, "kind": kind}
    )


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of options; one Struct each."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option as declared; `path` is table.key."""

    table: str
    key: str
    annotation: Any
    default: Any
    required: bool
    help: str
    unit: str
    flag: str
    kind: str

    @property
    def path(self) -> str:
        return f"{self.table}.{self.key}"

    @property
    def env(self) -> str:
        return f"{ENV_PREFIX}{self.table}__{self.key}".upper()

    @property
    def is_bool(self) -> bool:
        return _split(self.annotation)[0] is bool

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed values, where they are few."""
        base = _split(self.annotation)[0]
        return get_args(base) if get_origin(base) is Literal else ()

    @property
    def shown_default(self) -> str:
        """The default as one would write it in TOML, "required" where there is none."""
        if self.required:
            return "required"
        if self.default is msgspec.NODEFAULT:
            return "{}"
        if self.kind == "size":
            return f'"{show_size(self.default)}"'
        if self.kind == "duration":
            return f'"{show_duration(self.default)}"'
        return msgspec.json.encode(self.default).decode()


def options(config: type[msgspec.Struct]) -> Iterator[Option]:
    """Yield every option of the tables of a configuration, in the order of declaration."""
    for table in msgspec.structs.fields(config):
        base = _split(table.type)[0]
        if not _is_struct(base):
            continue
        yield from fields(base, table.encode_name)


def arrays(config: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield name and Struct of the tables of a configuration that may stand many times."""
    for table in msgspec.structs.fields(config):
        if get_origin(table.type) is tuple:
            yield table.encode_name, get_args(table.type)[0]


def fields(struct: type[msgspec.Struct], table: str = "") -> Iterator[Option]:
    """Yield the options of one table."""
    for field in msgspec.structs.fields(struct):
        _, meta = _split(field.type)
        extra = _extra(meta)
        yield Option(
            table=table,
            key=field.encode_name,
            annotation=field.type,
            default=field.default,
            required=field.required,
            help=(meta and meta.description) or "",
            unit=extra.get("unit", ""),
            flag=extra.get("flag", ""),
            kind=extra.get("kind", ""),
        )


def read(annotation: Any, value: Any, where: str, *, text: bool = False) -> Any:
    """Turn a raw value into what the annotation asks for; raises ConfigError naming `where`.

    text: the value is a string from the environment or a flag: numbers and booleans are read
    from it, lists are JSON or separated by commas, tables are JSON.
    """
    base, meta = _split(annotation)
    kind = _extra(meta).get("kind", "")
    if text:
        value = _from_text(base, kind, value, where)
    if _is_struct(base):
        return read_struct(base, value, where)
    if get_origin(base) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {_named(value)}")
        item = get_args(base)[0]
        return tuple(read(item, each, f"{where}[{i}]") for i, each in enumerate(value))
    if get_origin(base) is Literal and value not in get_args(base):
        raise ConfigError(f"{where}: {_named(value)} is unknown", f"it is {type_name(base)}")
    if kind == "size":
        value = parse_size(value, where)
    elif kind == "duration":
        value = parse_duration(value, where)
    try:
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_plain(error)}, got {_named(value)}") from None


def read_struct(struct: type[msgspec.Struct], value: Any, where: str) -> Any:
    """Build a Struct from a table; unknown and missing keys raise ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a table, got {_named(value)}")
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    made = {}
    for key, raw in value.items():
        if key not in fields:
            raise unknown(key, fields, where)
        made[fields[key].name] = read(fields[key].type, raw, f"{where}.{key}")
    for key, field in fields.items():
        if field.required and key not in value:
            raise ConfigError(f"{where} lacks {key!r}", f"it needs {', '.join(fields)}")
    return struct(**made)


def unknown(key: str, known: Mapping[str, Any], where: str) -> ConfigError:
    """Return the error for a key that does not exist, with the nearest that does."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return ConfigError(f"unknown setting {key!r} in {where}", hint)


def parse_size(value: Any, where: str = "size") -> int:
    """Read bytes from a number or from text such as "64KB" (1 KB is 1,024 bytes)."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    found = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ConfigError(
            f"{where}: {value!r} is not a size", 'give bytes, or text like "64KB", "1MB"'
        )
    return int(float(found[1]) * _SIZES[(found[2] or "B")[0].upper().replace("B", "")])


def parse_duration(value: Any, where: str = "duration") -> float:
    """Read seconds from a number or from text such as "500ms", "30s", "5m", "1h", "2d"."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12:
        return float(value)
    found = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ConfigError(
            f"{where}: {value!r} is not a duration", 'give seconds, or text like "30s", "5m", "1h"'
        )
    return float(found[1]) * _DURATIONS[(found[2] or "s").lower()]


def show_size(size: int) -> str:
    """Write bytes in the largest unit that divides them."""
    for unit in ("G", "M", "K"):
        if size and size % _SIZES[unit] == 0:
            return f"{size // _SIZES[unit]}{unit}B"
    return str(size)


def show_duration(seconds: float) -> str:
    """Write seconds in the largest unit that divides them."""
    for unit in ("d", "h", "m", "s"):
        if seconds and seconds % _DURATIONS[unit] == 0:
            return f"{seconds / _DURATIONS[unit]:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if seconds else "0s"


def _split(annotation: Any) -> tuple[Any, msgspec.Meta | None]:
    if get_origin(annotation) is Annotated:
        base, *metas = get_args(annotation)
        return base, next((meta for meta in metas if isinstance(meta, msgspec.Meta)), None)
    return annotation, None


def _extra(meta: msgspec.Meta | None) -> dict[str, str]:
    return (meta.extra or {}) if meta is not None else {}


def _is_struct(base: Any) -> bool:
    return isinstance(base, type) and issubclass(base, msgspec.Struct)


def _from_text(base: Any, kind: str, text: str, where: str) -> Any:
    text = text.strip()
    if get_origin(base) is tuple and not text.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    if get_origin(base) in (tuple, dict) or _is_struct(base):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{where}: not JSON: {error}") from None
    if base is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ConfigError(f"{where}: {text!r} is not a yes or no", "give true or false")
    if kind:
        return text
    if base in (int, float):
        try:
            return base(text)
        except ValueError:
            raise ConfigError(f"{where}: {text!r} is not a number") from None
    return text


def _plain(error: msgspec.ValidationError) -> str:
    text = str(error).split(" - at ")[0].replace("`", "")
    text = re.sub(r", got .*", "", text)
    return text[:1].lower() + text[1:]


def _named(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    return "a list" if isinstance(value, list) else repr(value)[:80]


def type_name(annotation: Any) -> str:
    """Name an option's type for the documentation."""
    base, meta = _split(annotation)
    if kind := _extra(meta).get("kind"):
        return kind
    origin = get_origin(base)
    if origin is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(base))
    if origin is tuple:
        return f"list of {type_name(get_args(base)[0])}"
    if origin is dict:
        return "table"
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(base, "table")
