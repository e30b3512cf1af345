"""Frames as a client sends them, right or wrong in any way a test asks for."""

from __future__ import annotations

from collections.abc import Iterator

MASK = b"\x37\xfa\x21\x3d"


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length: int | None = None,
    length_size: int | None = None,
) -> bytes:
    """Build a client's frame; ``length`` lies about it, ``length_size`` widens its encoding."""
    announced = len(payload) if length is None else length
    if length_size is None:
        length_size = 0 if announced < 126 else 2 if announced < 1 << 16 else 8
    short = {0: announced, 2: 126, 8: 127}[length_size]
    head = bytes(((fin << 7) | (rsv << 4) | opcode, ((mask is not None) << 7) | short))
    head += announced.to_bytes(length_size, "big") if length_size else b""
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    """Cut data into pieces of ``size`` bytes."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def cut_at(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """Cut data at the given places, whatever their order; empty pieces included."""
    places = sorted(cut % (len(data) + 1) for cut in cuts)
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]
