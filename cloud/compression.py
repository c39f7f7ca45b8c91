"""Compressed bodies: gzip and deflate, both ways, as Triton speaks them (RFC 9110, section 8.4)."""

from __future__ import annotations

import zlib

from edge_sdk.errors import TensorError

__all__ = ["ENCODINGS", "choose_encoding", "compress", "decompress"]

ENCODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Window bits of zlib by name; deflate is the zlib format (RFC 1950)."""

LEVEL = 1
"""Features are noise to a compressor: more effort gains little."""

WORTH_BYTES = 1024
"""Shorter answers are sent as they are."""


def decompress(body: bytes, encoding: str, limit: int) -> bytes | None:
    """The body as it was; None where that is longer than ``limit`` bytes, which is found before it is unpacked.

    Raises:
        TensorError: the body is not that, or goes on behind its end.
    """
    unpacker = zlib.decompressobj(ENCODINGS[encoding])
    try:
        whole = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise TensorError(f"the body is not {encoding}: {error}") from error
    if len(whole) > limit:
        return None
    if not unpacker.eof or unpacker.unused_data:
        raise TensorError(f"the body is not {encoding}: it {'goes on behind its' if unpacker.eof else 'has no'} end")
    return whole


def choose_encoding(accepted: str, length: int) -> str | None:
    """Which to use for an answer of this length to a client with this ``Accept-Encoding``; None for neither."""
    if length < WORTH_BYTES:
        return None
    wanted = set()
    for item in accepted.lower().split(","):
        name, _, weight = item.replace(" ", "").partition(";")
        if weight.rstrip("0.") != "q=":  # a weight of nought
            wanted.add(name)
    return next((name for name in ENCODINGS if name in wanted), None)


def compress(body: bytes, encoding: str) -> bytes:
    """The body, compressed."""
    packer = zlib.compressobj(LEVEL, wbits=ENCODINGS[encoding])
    return packer.compress(body) + packer.flush()
