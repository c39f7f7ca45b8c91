"""Inference calls answered on the connection itself: ASGI's tasks and messages cost more than a small model's run.

Where anything about a call is unusual, it goes to the ASGI application, as all other requests do.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from .guard import REFUSED, Guard
from .infer import Call, InferHandler, Reply
from .protocol import GuardedProtocol

__all__ = ["Direct", "DirectProtocol"]


class Direct(NamedTuple):
    """Who answers inference calls, and who decides which are let in; None lets in all."""

    infer: InferHandler
    guard: Guard | None


class DirectProtocol(GuardedProtocol):
    """uvicorn's protocol; inference calls never reach its application.

    Args:
        direct: who answers them.
        *arguments, **named: as uvicorn has them.
    """

    def __init__(self, *arguments: Any, direct: Direct, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._infer, self._guard = direct
        self._receiving: _Exchange | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._receiving is not None:
            self._infer.gone(self._receiving.call)
            self._leave()
        if isinstance(self.cycle, _Exchange):
            self.cycle.call.cancel()
            self.cycle = cast(Any, None)  # it has nobody to wake
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        self._receiving = exchange = None if self.transport.is_closing() else self._begun()
        if exchange is None:
            super().on_headers_complete()
        else:
            self.cycle = cast(Any, exchange)

    def on_body(self, body: bytes) -> None:
        if self._receiving is None:
            super().on_body(body)
        else:
            self._body_came()
            self._receiving.chunks.append(body)

    def on_message_complete(self) -> None:
        exchange = self._receiving
        if exchange is None:
            super().on_message_complete()
            return
        self._message_ended()
        self._receiving = None
        body = b"".join(exchange.chunks)
        exchange.chunks.clear()  # what it holds stays until the connection's next request
        self._infer.answer(exchange.call, body, partial(self._reply, exchange))

    def _begun(self) -> _Exchange | None:
        """The call whose headers are there, unless it is no such call, or an unusual one."""
        model = self._infer.find(self.url)
        if model is None or self.expect_100_continue or self.flow.write_paused:
            return None
        if self.cycle is not None and not self.cycle.response_complete:
            return None  # it comes before the answer to the last one has gone
        parser = self.parser
        if parser.get_method() != b"POST" or parser.get_http_version() != "1.1" or parser.should_upgrade():
            return None
        length = b""
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                return None
        if not length.isdigit() or len(length) > 20 or int(length) > self._infer.max_body_bytes:
            return None
        if self._guard is not None and (refused := self._guard.enter(self.headers, self.client)) is not None:
            cast(Any, self.scope)[REFUSED] = refused  # the application is guarded as well, and says why
            return None
        call = Call(model, self.url, self.headers, self.client, time.perf_counter_ns())
        return _Exchange(call, keep_alive=parser.should_keep_alive())

    def _reply(self, exchange: _Exchange, reply: Reply) -> None:
        exchange.response_complete = True
        exchange.call.running = None
        self._leave()
        if self.transport.is_closing():  # the client has left
            return
        parts = [STATUS_LINE[reply.status]]
        for name, value in (*self.server_state.default_headers, *reply.headers):
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"\r\n" if exchange.keep_alive else b"connection: close\r\n\r\n")
        parts.append(reply.content)
        self.transport.write(b"".join(parts))
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _leave(self) -> None:
        if self._guard is not None:
            self._guard.leave()


class _Exchange:
    """A call on its way to its answer: of uvicorn's own class, what uvicorn looks at between them."""

    __slots__ = ("call", "chunks", "keep_alive", "response_complete")

    def __init__(self, call: Call, *, keep_alive: bool) -> None:
        self.call, self.keep_alive = call, keep_alive
        self.chunks: list[bytes] = []
        self.response_complete = False
