"""The admin page: the connections that are furthest behind, as a table without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .view import Readiness, Row

_COLUMNS = (
    ("worker", "worker"),
    ("id", "id"),
    ("user", "user"),
    ("address", "address"),
    ("transport", "transport"),
    ("destination", "destination"),
    ("state", "state"),
    ("lag", "messages behind"),
    ("lag_bytes", "bytes behind"),
    ("unsent", "bytes unsent"),
    ("unacked", "unacked"),
)
_STYLE = (
    ":root{color-scheme:light dark;font:15px/1.5 system-ui,sans-serif}body{margin:2rem}"
    "td:first-child{white-space:nowrap}"
    "table{border-collapse:collapse}th,td{padding:.2rem .8rem;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}tr+tr{border-top:1px solid #8884}"
)


def page(readiness: Readiness, rows: Sequence[Row]) -> bytes:
    """Return the page. rows: as View.connections returns them."""
    shown = [(key, title) for key, title in _COLUMNS if any(key in row for row in rows)]
    head = "".join(f"<th>{title}</th>" for _, title in shown)
    lines = "".join(f"<tr>{''.join(_cell(row.get(key)) for key, _ in shown)}</tr>" for row in rows)
    state = "ready" if readiness.ready else "not ready"
    table = f"<table><tr>{head}</tr>{lines}</table>" if rows else "<p>Nobody is subscribed.</p>"
    return (
        "<!DOCTYPE html><html lang=en><meta charset=utf-8><title>Queuecast</title>"
        f"<style>{_STYLE}</style><h1>Queuecast</h1>"
        f"<p>{state}: {escape(readiness.status)}</p>"
        f"<h2>Furthest behind</h2>{table}"
        "<p><a href=/metrics>metrics</a> · <a href=/admin/connections>the list as JSON</a></p>"
    ).encode()


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"<td class=n>{value:,}</td>"
    return f"<td>{escape(str(value)) if value is not None else ''}</td>"
