"""Properties and arguments as text in the store: JSON, in which everything comes back as it was.

JSON has no bytes, so these are `{"b": base64}`; for their sake a mapping is `{"m": {...}}`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from ...errors import BadRequest
from ...message import NO_PROPERTIES, Properties

# Made once: dumps() makes one for each call.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_encode_sorted = json.JSONEncoder(separators=(",", ":"), sort_keys=True).encode

_NAMES = tuple(name for name in Properties.__slots__ if name != "headers")


def encode_properties(properties: Properties) -> str:
    """Return the properties as text; raises BadRequest for a header value without one."""
    if properties is NO_PROPERTIES:
        return ""
    fields: dict[str, Any] = {}
    for name in _NAMES:
        value = getattr(properties, name)
        if value is not None and value is not False:
            fields[name] = value
    if properties.headers:
        fields["headers"] = _plain(properties.headers)["m"]
    return _encode(fields) if fields else ""


def decode_properties(text: str) -> Properties:
    """Read what encode_properties wrote; raises ValueError for anything else."""
    if not text:
        return Properties()
    try:
        fields = json.loads(text)
        headers = _rich({"m": fields.pop("headers", {})})
        return Properties(**fields, headers=headers)
    except (TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no message properties: {text[:80]!r}") from error


def encode_arguments(arguments: Mapping[str, Any]) -> str:
    """Return a table of arguments as text, equal for equal tables; raises BadRequest."""
    return _encode_sorted(_plain(arguments)["m"])


def decode_arguments(text: str) -> dict[str, Any]:
    """Read what encode_arguments wrote; raises ValueError for anything else."""
    found: dict[str, Any] = _rich({"m": json.loads(text)})
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return {"b": base64.b64encode(value).decode("ascii")}
    if isinstance(value, Mapping):
        return {"m": {str(name): _plain(item) for name, item in value.items()}}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise BadRequest(
        f"a header or argument of type {type(value).__name__} cannot be kept",
        "text, numbers, booleans, bytes, lists and tables can",
    )


def _rich(value: Any) -> Any:
    if isinstance(value, list):
        return [_rich(item) for item in value]
    if not isinstance(value, dict):
        return value
    try:
        if "m" in value:
            return {name: _rich(item) for name, item in value["m"].items()}
        return base64.b64decode(value["b"], validate=True)
    except (KeyError, AttributeError, TypeError, binascii.Error) as error:
        raise ValueError(f"not a value of the store: {str(value)[:80]}") from error
