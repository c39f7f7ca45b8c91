"""Runs an application on uvicorn until SIGTERM or SIGINT, which drain it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from edge_sdk.errors import DeviceError, reason

from .direct import Direct, DirectProtocol
from .protocol import RECEIVE_SECONDS, GuardedProtocol
from .tls import TLS

__all__ = ["DRAIN_SECONDS", "bind", "free_port", "run"]

DRAIN_SECONDS = 30.0
"""In which a server that stops finishes what it accepted, unless it is told otherwise."""

_log = logging.getLogger("edgesdk.cloud")


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

    async def stop(self) -> int:
        """Finish what was accepted; the number of requests that could not be finished in time."""


def run(
    app: ASGIApp,
    direct: Direct,
    listener: socket.socket,
    *,
    on_ready: Callable[[], None],
    tls: TLS | None = None,
    beside: Beside | None = None,
    drain_seconds: float = DRAIN_SECONDS,
) -> int:
    """Serve until a signal; then refuse new connections, and finish the requests that have arrived.

    Args:
        app: over HTTP.
        direct: answers the inference calls in its place.
        listener: for it.
        on_ready: called once everything listens.
        tls: None serves in the clear.
        beside: started and stopped with it.
        drain_seconds: in which they are finished; a second SIGINT cuts it short.

    Raises:
        DeviceError: the server beside cannot listen.

    Returns:
        How many of them were not, of the server's beside too; the log says so.
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
    )
    server = _Server(config, on_ready, beside, drain_seconds)
    server.run(sockets=[listener])
    if server.lost:
        _log.error("accepted requests were lost", extra={"lost": server.lost, "drain_s": drain_seconds})
    return server.lost


class _Server(uvicorn.Server):
    """uvicorn's server, which says what it did not finish.

    Attributes:
        lost: requests, once it has ended.
    """

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], beside: Beside | None, drain_seconds: float
    ) -> None:
        super().__init__(config)
        self._on_ready, self._beside, self._drain_seconds = on_ready, beside, drain_seconds
        self.lost = 0

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
        timer = asyncio.get_running_loop().call_later(self._drain_seconds, self._give_up)
        await asyncio.gather(super().shutdown(sockets), self._stop_beside())
        timer.cancel()
        connections = [cast(GuardedProtocol, each) for each in self.server_state.connections]
        self.lost += sum(each.num_owed for each in connections)
        if self.force_exit:
            # uvicorn calls the end of an application's task a fault of it: to its client, and to the log.
            for each in connections:
                if isinstance(each.cycle, RequestResponseCycle):
                    each.transport.abort()
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    def _give_up(self) -> None:
        self.force_exit = True  # uvicorn's word for not waiting any more

    async def _stop_beside(self) -> None:
        if self._beside is not None:
            self.lost += await self._beside.stop()
