"""Who may ask, and how often: an ASGI application before another one."""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import AddressValueError, IPv6Address
from typing import NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

from .logs import told_id
from .replies import NEEDS_TOKEN, error_body
from .status_page import STATUS_PATHS
from .tokens import TokenFile

__all__ = ["REFUSED", "Guard", "Limits", "RateLimit", "Refusal", "network_of"]

OPEN_PATHS = frozenset(("/v2/health/live", "/v2/health/ready", *STATUS_PATHS))
"""For an orchestrator's probes and a browser's first look, which have no token; they say nothing of the models."""

MOST_CLIENTS = 10_000
"""Whose rates are remembered."""

REFUSED = "edgesdk.refused"
"""In an ASGI scope: the refusal of a request that was judged already."""


_log = logging.getLogger("edgesdk.requests")


class Limits(NamedTuple):
    """What is too much.

    Attributes:
        max_rate: requests a second from one address, or one /64 network of IPv6, on average; None sets no limit.
        max_concurrency: requests that are under way at once; None sets no limit.
    """

    max_rate: float | None = None
    max_concurrency: int | None = None


class Refusal(NamedTuple):
    """A request that is not let in: status, message and one header."""

    status: int
    message: str
    header: tuple[bytes, bytes]


class Guard:
    """Answers 429 to too many requests of one address, 401 without a right token, 503 beyond the concurrency.

    Args:
        app: what is guarded.
        tokens: None asks for none.
        limits: of all requests but the health checks.

    Attributes:
        refused: requests that were not let in, by status.
    """

    def __init__(self, app: ASGIApp, tokens: TokenFile | None, limits: Limits) -> None:
        self._app, self._tokens, self._limits = app, tokens, limits
        self._rate = RateLimit(limits.max_rate) if limits.max_rate else None
        self._under_way = 0
        self.refused: dict[int, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        refused = scope.get(REFUSED) or self.enter(scope["headers"], scope["client"])
        if refused is not None:
            await _refuse(scope, send, refused)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self.leave()

    def enter(self, headers: Iterable[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Refusal | None:
        """Let a request in, or say why not. Who is let in must ``leave``."""
        refused = self._known(headers, client)
        if refused is not None:
            return refused
        most = self._limits.max_concurrency
        if most is not None and self._under_way >= most:
            self._give_back(client)
            return self._noted(Refusal(503, f"{most} requests are under way already", (b"retry-after", b"1")))
        self._under_way += 1
        return None

    def check(self, headers: Iterable[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Refusal | None:
        """The same for a health check that needs a token: where that is right, no limit counts it."""
        if self._tokens is None:
            return None
        refused = self._known(headers, client)
        if refused is None:
            self._give_back(client)
        return refused

    def leave(self) -> None:
        """A request that was let in has ended."""
        self._under_way -= 1

    def _known(self, headers: Iterable[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Refusal | None:
        """Whether its address may ask and its token is right: in this order, or guesses would have no rate."""
        if self._rate is not None:
            wait = self._rate.wait_seconds(network_of(client))
            if wait > 0:
                message = f"more than {self._limits.max_rate:g} requests a second"
                return self._noted(Refusal(429, message, (b"retry-after", b"%d" % math.ceil(wait))))
        if self._tokens is not None and not self._tokens.allows(_authorization(headers)):
            return self._noted(Refusal(401, NEEDS_TOKEN, (b"www-authenticate", b'Bearer realm="edgesdk"')))
        return None

    def _noted(self, refusal: Refusal) -> Refusal:
        self.refused[refusal.status] = self.refused.get(refusal.status, 0) + 1
        return refusal

    def _give_back(self, client: tuple[str, int] | None) -> None:
        if self._rate is not None:
            self._rate.give_back(network_of(client))


class RateLimit:
    """A bucket for each client: it fills at the rate, holds a second's worth but at least one, and a request takes one.

    Args:
        rate: requests a second.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._size = rate, max(rate, 1.0)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_seconds(self, client: str) -> float:
        """0 where the client may go on, which is then counted; else how long until it may."""
        now = time.monotonic()
        level, seen = self._buckets.pop(client, (self._size, now))
        level = min(level + (now - seen) * self._rate, self._size)
        wait = 0.0 if level >= 1 else (1 - level) / self._rate
        self._buckets[client] = (level if wait else level - 1, now)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)  # unseen for the longest
        return wait

    def give_back(self, client: str) -> None:
        """What the client was counted for last did not take place."""
        level, seen = self._buckets[client]
        self._buckets[client] = (level + 1, seen)


def network_of(client: tuple[str, int] | None) -> str:
    """What counts as one client: an address of IPv4, or of IPv6 the first 64 bits, all of which one subscriber has."""
    address = client[0] if client else ""
    if ":" not in address:
        return address
    try:
        found = IPv6Address(address.partition("%")[0])
    except AddressValueError:
        return address
    mapped = found.ipv4_mapped
    return str(mapped) if mapped else found.packed[:8].hex()


def _authorization(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    found = [value for name, value in headers if name == b"authorization"]
    return found[0] if len(found) == 1 else None


async def _refuse(scope: Scope, send: Send, refused: Refusal) -> None:
    if _log.isEnabledFor(logging.INFO):
        host, port = scope["client"] or ("", "")
        told = {"status": refused.status, "client": f"{host}:{port}", "path": scope["path"][:200]}
        _log.info("refused", extra={**told, **told_id(scope["headers"])})
    content = error_body(refused.message)
    length = (b"content-length", b"%d" % len(content))
    headers = [(b"content-type", b"application/json"), length, refused.header]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
