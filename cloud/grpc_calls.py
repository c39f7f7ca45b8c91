"""How a call comes in over gRPC: let in first, and its message taken from the connection only then.

A handler of single messages gets one that has arrived whole, whoever sent it. All of ours are handlers of streams, and
read the one message that there is; to a client it is the same.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from .answer import Failure
from .protocol import RECEIVE_SECONDS
from .replies import MAX_MESSAGE

__all__ = ["CallFailed", "Context", "abort", "client_of", "headers_of", "new_server", "received"]

MOST_CALLS = 1024
"""That are under way at once, waiting ones and health checks included; more get RESOURCE_EXHAUSTED."""

MOST_STREAMS = 256
"""Calls of one connection at once; a client's library holds back what is more."""

IDLE_SECONDS = RECEIVE_SECONDS
"""After which a connection without a call is closed, as over HTTP; libraries open another one for the next call."""

AGE_SECONDS = 3600.0
"""After which a connection takes no more calls, give or take a tenth."""

GRACE_SECONDS = 600.0
"""For the calls of a connection that has come of age."""

ENDED_SECONDS = 0.1
"""After which a call without a message has none: one that has ended looks the same until its task is cancelled."""

Context = Any  # grpc ships no types


class CallFailed(Exception):
    """Ends a call as its failure says."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def new_server(max_body_bytes: int) -> grpc.aio.Server:
    """A server with the bounds above.

    Args:
        max_body_bytes: longer messages are refused, by RESOURCE_EXHAUSTED.
    """
    options = [
        ("grpc.max_receive_message_length", max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
        ("grpc.max_concurrent_streams", MOST_STREAMS),
        ("grpc.max_connection_idle_ms", round(IDLE_SECONDS * 1e3)),
        ("grpc.max_connection_age_ms", round(AGE_SECONDS * 1e3)),
        ("grpc.max_connection_age_grace_ms", round(GRACE_SECONDS * 1e3)),
    ]
    return grpc.aio.server(options=options, maximum_concurrent_rpcs=MOST_CALLS)


async def received(kind: Any, context: Context, *, seconds: float = RECEIVE_SECONDS) -> Any:
    """The message of a call.

    Args:
        kind: class of the message.
        context: of the call, whose messages must not be deserialized.
        seconds: in which it must have arrived.

    Raises:
        CallFailed: it has not, there is none, or it is of another kind.
        CancelledError: its client has left, or gRPC has refused it as too long.
    """
    reading = asyncio.ensure_future(context.read())
    try:  # Python 3.11's wait_for forgets that it was cancelled where the read has ended as well
        await asyncio.wait({reading}, timeout=seconds)
    finally:
        in_time = not reading.cancel()
    if not in_time:
        late = f"the request did not arrive in {seconds:g} s"
        raise CallFailed(Failure(408, "DEADLINE_EXCEEDED", "OTHER", late))
    content = reading.result()
    name = kind.DESCRIPTOR.name
    if content is grpc.aio.EOF:
        await asyncio.sleep(ENDED_SECONDS)
        raise CallFailed(Failure(400, "INVALID_ARGUMENT", "OTHER", f"the call has no message; expected a {name}"))
    try:
        return kind.FromString(content)
    except DecodeError as error:
        raise CallFailed(Failure(400, "INVALID_ARGUMENT", "OTHER", f"the message is no {name}")) from error


async def abort(context: Context, code: str, message: str) -> NoReturn:
    """End a call by the code of that name."""
    try:
        await context.abort(getattr(grpc.StatusCode, code), message[:MAX_MESSAGE])
    except grpc.aio.InternalError as error:  # it has ended already
        raise asyncio.CancelledError from error
    raise AssertionError("abort raises")


def headers_of(context: Context) -> list[tuple[bytes, bytes]]:
    """As HTTP has them; those whose values are binary are none of ours."""
    return [(name.encode(), value.encode()) for name, value in context.invocation_metadata() if isinstance(value, str)]


def client_of(context: Context) -> tuple[str, int]:
    """Address and port: gRPC writes ``ipv4:1.2.3.4:5`` and ``ipv6:%5B::1%5D:5``."""
    address, _, port = unquote(context.peer()).partition(":")[2].rpartition(":")
    return address.strip("[]"), int(port) if port.isdigit() else 0
