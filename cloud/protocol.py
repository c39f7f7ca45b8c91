"""HTTP connections that cannot be held open by sending or reading slowly, or fill the memory with headers."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .replies import error_body

__all__ = ["GuardedProtocol"]

_log = logging.getLogger("edgesdk.requests")

MAX_HEADER_BYTES = 32 * 1024
RECEIVE_SECONDS = 60.0
"""In which a request must have arrived whole, from its connection or its first byte on, and a client must have taken
what was sent; a connection may be idle as long."""

MAX_PIPELINED = 8192
"""Requests that may wait on one connection for the answer to the one before them."""

CLOSE_SECONDS = 1.0
"""That the other side of a TLS connection has to agree to its end."""

LOOK_SECONDS = 5.0
"""Between looks at whether one has not: a look costs a connection less than a timer each request."""


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which has a limit for neither, nor for requests that come before others are answered."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._header_bytes = self._bytes_without_body = 0
        self._moved = False
        self._num_arrived = self._num_answered = 0
        self._cycles = deque[RequestResponseCycle]()
        self._stuck_since: float | None = None
        self._since: float | None = self.loop.time()
        self._look: asyncio.Handle = self.loop.call_later(LOOK_SECONDS, self._check_time)
        self._leaving: asyncio.Handle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._look.cancel()
        if self._leaving is not None:
            self._leaving.cancel()
        self._end_cycles()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """As uvicorn's own, but over TLS that waits, once all is sent, until the client closes too: it may never."""
        super().shutdown()
        self._leave_soon()

    def data_received(self, data: bytes) -> None:
        self._moved = False
        super().data_received(data)
        if not self._moved:  # a head, a trailer or a chunk's extension, whole or not: the parser keeps it
            self._bytes_without_body += len(data)
            if self._bytes_without_body > MAX_HEADER_BYTES:
                self._refuse_headers()
        waits = self.cycle is None or self.cycle.response_complete
        if waits and self._since is None and self.timeout_keep_alive_task is None:
            self._since = self.loop.time()  # these bytes, of no request so far, have ended uvicorn's own waiting

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = self._bytes_without_body = 0
        self._since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)  # of the trailer too, which comes after a body's last chunk
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse_headers()
        else:
            super().on_header(name, value)

    # The parser goes on with what it was given after a refusal; nothing of that is answered any more.

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._hang_up()
        if not self.transport.is_closing():
            super().on_headers_complete()
            self._cycles.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._body_came()
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._message_ended()
        if not self.transport.is_closing():
            super().on_message_complete()

    def _body_came(self) -> None:
        self._moved, self._bytes_without_body = True, 0

    def _message_ended(self) -> None:
        self._since, self._moved = None, True
        self._num_arrived += 1

    def on_response_complete(self) -> None:
        self._num_answered += 1
        if self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        super().on_response_complete()
        if self.pipeline:  # uvicorn reads on after every answer, and so more requests than it answers
            self.flow.pause_reading()

    @property
    def num_owed(self) -> int:
        """Requests that have arrived whole and are not answered yet."""
        if self.transport.is_closing():
            return 0
        return max(self._num_arrived - self._num_answered, 0)  # an answer may come before its request has arrived

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's own, in the protocol's shape; never before the answers to requests that came before."""
        if self.transport.is_closing():
            return
        host, port = self.client or ("", "")
        _log.info("refused", extra={"status": 400, "client": f"{host}:{port}", "reason": msg})
        if self.num_owed:
            self._hang_up()
            return
        content = error_body(msg)
        head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(head + b"content-length: %d\r\n\r\n" % len(content) + content)
        self.transport.close()

    def _hang_up(self) -> None:
        """At once, and before uvicorn is told so, which takes a turn of the loop, nothing is written any more."""
        self._end_cycles()
        self.transport.abort()

    def _end_cycles(self) -> None:
        """Of all requests: uvicorn tells the last one that has come, and the others write to what is closed."""
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()
        self._cycles.clear()

    def _refuse_headers(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            self.send_400_response(f"headers of more than {MAX_HEADER_BYTES} bytes")
        else:
            self._hang_up()  # in a request that is being answered

    def _leave_soon(self) -> None:
        if self._leaving is not None and self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self._leaving = self.loop.call_later(CLOSE_SECONDS, self._leave_soon)

    def _check_time(self) -> None:
        now = self.loop.time()
        if not self.flow.write_paused and not self.transport.is_closing():
            self._stuck_since = None
        elif self._stuck_since is None:
            self._stuck_since = now
        began = min((each for each in (self._since, self._stuck_since) if each is not None), default=now)
        if now - began > RECEIVE_SECONDS:
            self._hang_up()
        else:
            self._look = self.loop.call_later(LOOK_SECONDS, self._check_time)
