"""Runs an application on uvicorn until SIGTERM or SIGINT, which drain it."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import uvicorn
from starlette.types import ASGIApp

from edge_sdk.errors import DeviceError, reason

from .direct import Direct, DirectProtocol
from .protocol import RECEIVE_SECONDS
from .tls import TLS

__all__ = ["DRAIN_SECONDS", "bind", "free_port", "run"]

DRAIN_SECONDS = 30


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        DeviceError: the address is in use, or not one of this machine's.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:
        raise DeviceError(f"cannot listen on {host}:{port}: {reason(error)}") from error


def free_port(host: str, port: int) -> int:
    """The port, or a free one for 0, for a library that binds by itself and would explain a failure less well.

    Raises:
        DeviceError: as for ``bind``.
    """
    with bind(host, port) as free:
        number: int = free.getsockname()[1]
    return number


class Beside(Protocol):
    """A second server on the same event loop."""

    async def start(self) -> None:
        """Listen."""

    async def stop(self) -> None:
        """Finish what was accepted."""


def run(
    app: ASGIApp,
    direct: Direct,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None],
    tls: TLS | None = None,
    beside: Beside | None = None,
) -> None:
    """Serve until a signal; then refuse new connections and finish the accepted requests (at most 30 s).

    Args:
        app: over HTTP.
        direct: answers the inference calls in its place.
        listener: for it.
        on_ready: called once everything listens.
        tls: None serves in the clear.
        beside: started and stopped with it.

    Raises:
        DeviceError: the server beside cannot listen.
    """
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        loop="uvloop",
        http=cast(Any, partial(DirectProtocol, direct=direct)),
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        ssl_ca_certs=str(tls.client_ca) if tls and tls.client_ca else None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
        ws="none",
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # what a client says of its address is no ground for a limit
        timeout_keep_alive=int(RECEIVE_SECONDS),
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = _Server(config, on_ready, beside)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], beside: Beside | None) -> None:
        super().__init__(config)
        self._on_ready, self._beside = on_ready, beside

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's own, but a drained server ends with status 0 instead of raising the signal again."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._beside is not None:
            await self._beside.start()
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        stopping = [super().shutdown(sockets)]
        if self._beside is not None:
            stopping.append(self._beside.stop())
        await asyncio.gather(*stopping)
