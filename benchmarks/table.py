"""The output: figures as a markdown table, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .fanout import FanOut
from .idle import Idle
from .latency import LatencyPair
from .webstomp import WebStomp

_NAMES = {
    "ws": "WebSocket",
    "sse": "SSE",
    "stomp": "STOMP/WebSocket",
    "sockjs": "STOMP/SockJS websocket",
}
_HEAD = ("measurement", "transport", "beside", "gateway", "ratio")


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything one run of the benchmark found."""

    machine: str
    size: int
    fan_out: Sequence[FanOut] = ()
    latency: Sequence[LatencyPair] = ()
    idle: Sequence[Idle] = ()
    webstomp: Sequence[WebStomp] = ()

    def json(self) -> str:
        """Return them as JSON: seconds, bytes, deliveries per second."""
        made: dict[str, Any] = asdict(self)
        return json.dumps(made, indent=2)

    def table(self) -> str:
        """Return them as a markdown table under a line about the machine."""
        rows = [
            *(row for each in self.fan_out for row in _fan_out(each, self.size)),
            *(row for each in self.latency for row in _latency(each)),
            *(_idle(each) for each in self.idle),
            *(row for each in self.webstomp for row in _webstomp(each, self.size)),
        ]
        return "\n".join((self.machine, "", *_lines([_HEAD, *rows])))


def _fan_out(row: FanOut, size: int) -> Iterable[Sequence[str]]:
    what = f"{row.subscribers:,} subscribers, {row.batch} × {size} B per tick"
    wire = _NAMES[row.wire]
    yield (
        f"{what}: deliveries/s",
        wire,
        f"{row.null:,.0f}",
        f"{row.gateway:,.0f}",
        f"{row.ratio:.0%}",
    )
    yield (
        f"{what}: CPU µs per delivery",
        wire,
        f"{row.null_cpu * 1e6:.3f}",
        f"{row.gateway_cpu * 1e6:.3f}",
        _ratio(row.null_cpu, row.gateway_cpu),
    )
    if row.per_byte is not None and row.wire != "ws":
        yield (
            f"{what}: CPU per delivered byte, beside plain WebSocket's",
            wire,
            "",
            f"{row.bytes:.0f} B",
            f"{row.per_byte:.2f} ×",
        )


def _latency(row: LatencyPair) -> Iterable[Sequence[str]]:
    what = f"{row.subscribers:,} subscribers, {row.rate:g} messages/s"
    for name, null, gateway in (
        ("p50", row.null.p50, row.gateway.p50),
        ("p99", row.null.p99, row.gateway.p99),
    ):
        yield (
            f"{what}: {name} publish to receipt, ms",
            _NAMES[row.wire],
            f"{null * 1e3:.1f}",
            f"{gateway * 1e3:.1f}",
            _ratio(null, gateway),
        )


def _idle(row: Idle) -> Sequence[str]:
    return (
        f"{row.connections:,} idle: KB per connection",
        _NAMES[row.wire],
        f"{row.null / 1000:.1f}",
        f"{row.gateway / 1000:.1f}",
        _ratio(row.null, row.gateway),
    )


def _webstomp(row: WebStomp, size: int) -> Iterable[Sequence[str]]:
    what = f"{row.subscribers:,} subscribers, {size} B, RabbitMQ {row.rabbitmq} behind both"
    yield (
        f"{what}: deliveries/s with p99 ≤ {row.limit:g} s",
        "Web STOMP plugin",
        f"{row.plugin.rate:,.0f}",
        f"{row.gateway.rate:,.0f}",
        f"{row.ratio:.1f} ×",
    )
    yield (
        f"{what}: p50 / p99 at that rate, ms",
        "Web STOMP plugin",
        f"{row.plugin.p50 * 1e3:.0f} / {row.plugin.p99 * 1e3:.0f}",
        f"{row.gateway.p50 * 1e3:.0f} / {row.gateway.p99 * 1e3:.0f}",
        "",
    )


def _ratio(null: float, gateway: float) -> str:
    """Of costs: 100 % is as cheap as the null server, less is dearer."""
    return f"{null / gateway:.0%}" if gateway > 0 else "–"


def _lines(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for number, row in enumerate(rows):
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"| {' | '.join(cells)} |"
        if number == 0:
            rules = [
                "-" * width if c < 2 else "-" * (width - 1) + ":" for c, width in enumerate(widths)
            ]
            yield f"| {' | '.join(rules)} |"
