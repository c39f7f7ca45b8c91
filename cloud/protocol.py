"""HTTP connections that cannot be held open by sending slowly, or fill the memory with headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["GuardedProtocol"]

MAX_HEADER_BYTES = 32 * 1024
RECEIVE_SECONDS = 60.0
"""In which a request must have arrived whole, from its connection or its first byte on."""

LOOK_SECONDS = 5.0
"""Between looks at whether one has not: a look costs a connection less than a timer each request."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which has a limit for neither."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head = True
        self._ended = False
        self._since: float | None = self.loop.time()
        self._look: asyncio.Handle = self.loop.call_later(LOOK_SECONDS, self._check_time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._ended = False
        super().data_received(data)
        if self._in_head and not self._ended:  # else only some of these bytes are of the headers
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response(f"headers of more than {MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes, self._since = True, 0, self.loop.time()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._message_ended()
        super().on_message_complete()

    def _message_ended(self) -> None:
        self._since, self._ended = None, True

    def _check_time(self) -> None:
        if self._since is not None and self.loop.time() - self._since > RECEIVE_SECONDS:
            self.transport.abort()
        else:
            self._look = self.loop.call_later(LOOK_SECONDS, self._check_time)
