"""gRPC's own health checks, for an orchestrator that has no token; they say nothing of the models.

Source: the gRPC health checking protocol, grpc.health.v1. The servicer of grpc_health takes any number of watchers, and
forgets the others of a service when one of them leaves.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from .answer import Failure
from .grpc_calls import CallFailed, Context, abort, client_of, received
from .guard import network_of

__all__ = ["Health"]

MOST_CHECKS = 256
"""That are under way at once, watchers included; a quarter of all calls, so that they leave room for the others."""

MOST_OF_ONE = 16
"""Of them, those of one client, as rates count clients."""

RECEIVE_SECONDS = 5.0
"""In which a check must have arrived: nobody was asked for a token."""

LONGEST_NAME = 200
"""Characters of a service's name."""

_Response = health_pb2.HealthCheckResponse


class Health:
    """Answers them until the server stops, which it tells whoever watches.

    Args:
        services: that are served as long; of others, their name alone is unknown.
    """

    def __init__(self, services: Collection[str]) -> None:
        self._services = services
        self._stopping = asyncio.Event()
        self._under_way: Counter[str] = Counter()

    def handler(self) -> grpc.GenericRpcHandler:
        """To be added to a server."""
        methods = {
            "Check": grpc.stream_unary_rpc_method_handler(self._check, response_serializer=_Response.SerializeToString),
            "Watch": grpc.stream_stream_rpc_method_handler(
                self._watch, response_serializer=_Response.SerializeToString
            ),
        }
        service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        return grpc.method_handlers_generic_handler(service, methods)

    def stop(self) -> None:
        """Nothing is served any more; who watches is told, and sent away."""
        self._stopping.set()

    async def _check(self, stream: object, context: Context) -> Message:
        async with self._asked(context) as service:
            if service not in self._services:
                raise CallFailed(Failure(404, "NOT_FOUND", "OTHER", "no such service here"))
            return _Response(status=_Response.NOT_SERVING if self._stopping.is_set() else _Response.SERVING)

    async def _watch(self, stream: object, context: Context) -> None:
        async with self._asked(context) as service:
            known = service in self._services
            if not self._stopping.is_set():
                await context.write(_Response(status=_Response.SERVING if known else _Response.SERVICE_UNKNOWN))
                await self._stopping.wait()
            if known:
                await context.write(_Response(status=_Response.NOT_SERVING))
            raise CallFailed(Failure(503, "UNAVAILABLE", "OTHER", "the server stops"))

    @asynccontextmanager
    async def _asked(self, context: Context) -> AsyncIterator[str]:
        """The service that a call asks for, which is one of those under way while it is answered."""
        client = network_of(client_of(context))
        if self._under_way[client] >= MOST_OF_ONE or self._under_way.total() >= MOST_CHECKS:
            await abort(context, "RESOURCE_EXHAUSTED", "too many health checks are under way; end one, or come back")
        self._under_way[client] += 1
        try:
            request = await received(health_pb2.HealthCheckRequest, context, seconds=RECEIVE_SECONDS)
            if len(request.service) > LONGEST_NAME:
                long = f"service is a name of {len(request.service)} characters; expected {LONGEST_NAME} at most"
                raise CallFailed(Failure(400, "INVALID_ARGUMENT", "OTHER", long))
            yield request.service
            return
        except CallFailed as error:
            failed = error.failure
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]
        await abort(context, failed.code, failed.message)
