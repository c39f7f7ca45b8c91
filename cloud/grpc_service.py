"""The Open Inference Protocol v2 over gRPC, beside HTTP and on the same models, with gRPC's own health checks.

Sources: the protocol's service definition as Triton has it; the gRPC health checking protocol (grpc.health.v1).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import edge_sdk
from edge_sdk import oip
from edge_sdk.errors import DeviceError, EdgeSDKError, UnknownModelError

from .answer import CLIENT_LEFT, Clients, Failure, begin, complete, failure, refusal
from .configuration import configuration
from .grpc_tensors import decode_request, encode_response
from .guard import Guard
from .observer import Asked, Observer
from .protobuf import open_inference_pb2 as messages
from .replies import EXTENSIONS, MAX_MESSAGE, NEEDS_TOKEN, SERVER_NAME
from .repository import Repository
from .server import DRAIN_SECONDS, free_port
from .tls import TLS
from .tokens import TokenFile

__all__ = ["GrpcServer"]

SERVICE = "inference.GRPCInferenceService"
HEALTH = "/grpc.health.v1.Health/"
HEALTH_METHODS = ("ServerLive", "ServerReady")
"""Of the protocol itself: as over HTTP, no rate limits them."""

NOTICE_SECONDS = 0.1
"""For who watches the health to be told that the server stops."""


_log = logging.getLogger("edgesdk.requests")

Context = Any  # grpc ships no types
Method = Callable[[Any, Context], Awaitable[Message]]


class GrpcServer:
    """Serves a repository over gRPC, on the event loop that starts it.

    Args:
        repository: of the models.
        max_body_bytes: longer messages are refused.
        host: to listen on.
        port: to listen on; 0 takes a free one, which then stands in ``port``.
        tls: None serves in the clear.
        tokens: None asks for none.
        guard: decides which calls are let in; None lets in all.
        clients: that have asked of late, over other protocols too.
    """

    def __init__(
        self,
        repository: Repository,
        host: str,
        port: int,
        *,
        max_body_bytes: int,
        tls: TLS | None = None,
        tokens: TokenFile | None = None,
        guard: Guard | None = None,
        clients: Clients | None = None,
    ) -> None:
        self._repository, self._tls = repository, tls
        self._host, self.port = host, port
        self._options = [("grpc.max_receive_message_length", max_body_bytes), ("grpc.max_send_message_length", -1),
                         ("grpc.so_reuseport", 0)]  # fmt: skip
        self._interceptors = [_Tokens(tokens)] if tokens else []
        self._guard, self._clients, self._observer = guard, clients or Clients(), Observer()
        self._server: grpc.aio.Server | None = None
        self._health = _Health()

    async def start(self) -> None:
        """Listen.

        Raises:
            DeviceError: the address cannot be listened on.
        """
        server = grpc.aio.server(options=self._options, interceptors=self._interceptors)
        methods: dict[str, tuple[Method, Any]] = {
            "ServerLive": (self._live, messages.ServerLiveRequest),
            "ServerReady": (self._ready, messages.ServerReadyRequest),
            "ServerMetadata": (self._server_metadata, messages.ServerMetadataRequest),
            "ModelReady": (self._model_ready, messages.ModelReadyRequest),
            "ModelMetadata": (self._model_metadata, messages.ModelMetadataRequest),
            "ModelConfig": (self._model_config, messages.ModelConfigRequest),
            "ModelStatistics": (self._statistics, messages.ModelStatisticsRequest),
            "ModelInfer": (self._infer, messages.ModelInferRequest),
            "RepositoryIndex": (self._index, messages.RepositoryIndexRequest),
            "RepositoryModelLoad": (self._load, messages.RepositoryModelLoadRequest),
            "RepositoryModelUnload": (self._unload, messages.RepositoryModelUnloadRequest),
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answering(method, guarded=name not in HEALTH_METHODS),
                request_deserializer=kind.FromString,
                response_serializer=_serialized,
            )
            for name, (method, kind) in methods.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self.port = free_port(self._host, self.port)
        address = f"[{self._host}]:{self.port}" if ":" in self._host else f"{self._host}:{self.port}"
        try:
            if self._tls is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, _credentials(self._tls))
        except RuntimeError as error:
            raise DeviceError(f"cannot listen on {address} for gRPC: {error}") from error
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Refuse new calls, and finish those under way, 30 s at most."""
        if self._server is not None:
            await self._health.enter_graceful_shutdown()
            await asyncio.sleep(NOTICE_SECONDS)
            self._health.end_watching()  # which has no end of its own
            await self._server.stop(DRAIN_SECONDS)

    def _answering(self, method: Method, *, guarded: bool) -> Method:
        """The method for those that are let in, its errors as gRPC's."""
        guard = self._guard if guarded else None

        async def answered(request: Any, context: Context) -> Message:
            refused = None if guard is None else guard.enter(_headers(context), _client(context))
            if refused is not None:
                code = _REFUSALS[refused.status]
                _log.info("refused", extra={"status": code.name, "client": context.peer()})
                await context.abort(code, refused.message)
            try:
                return await method(request, context)
            except _Failed as error:
                failed = error.failure
            except Exception as error:
                failed = failure(error, getattr(request, "model_name", "") or getattr(request, "name", ""))
                _log.info("refused", extra={"status": failed.code, "client": context.peer()})
            finally:
                if guard is not None:
                    guard.leave()
            await context.abort(getattr(grpc.StatusCode, failed.code), failed.message[:MAX_MESSAGE])
            raise AssertionError("abort raises")

        return answered

    async def _live(self, request: Any, context: Context) -> Message:
        return messages.ServerLiveResponse(live=True)

    async def _ready(self, request: Any, context: Context) -> Message:
        return messages.ServerReadyResponse(ready=True)

    async def _server_metadata(self, request: Any, context: Context) -> Message:
        return messages.ServerMetadataResponse(
            name=SERVER_NAME, version=edge_sdk.__version__, extensions=[each for each in EXTENSIONS if each in SPOKEN]
        )

    async def _model_ready(self, request: Any, context: Context) -> Message:
        try:
            self._repository.find(request.name, request.version)
        except UnknownModelError:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=True)

    async def _model_metadata(self, request: Any, context: Context) -> Message:
        model = self._repository.find(request.name, request.version)
        return messages.ModelMetadataResponse(
            name=model.name,
            versions=self._repository.versions(model.name),
            platform=model.platform,
            inputs=[_tensor(**each) for each in oip.tensor_metadata(model.inputs)],
            outputs=[_tensor(**each) for each in oip.tensor_metadata(model.outputs)],
            properties=model.properties,
        )

    async def _model_config(self, request: Any, context: Context) -> Message:
        found = configuration(self._repository.find(request.name, request.version))
        return ParseDict({"config": found}, messages.ModelConfigResponse())

    async def _statistics(self, request: Any, context: Context) -> Message:
        model = self._repository.find(request.name, request.version) if request.name else None
        found = self._repository.statistics_json(model)
        return messages.ModelStatisticsResponse(model_stats=[messages.ModelStatistics(**each) for each in found])

    async def _index(self, request: Any, context: Context) -> Message:
        entries = self._repository.index(ready=request.ready)
        found = [messages.RepositoryIndexResponse.ModelIndex(**entry._asdict()) for entry in entries]
        return messages.RepositoryIndexResponse(models=found)

    async def _load(self, request: Any, context: Context) -> Message:
        try:
            await self._repository.load(request.model_name, request.parameters)
        except EdgeSDKError as error:
            raise _Failed(refusal(error)) from error
        return messages.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Context) -> Message:
        await self._repository.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    async def _infer(self, request: messages.ModelInferRequest, context: Context) -> Message:
        headers = dict(context.invocation_metadata()) if self._observer.wants_headers else {}
        asked = Asked(time.perf_counter_ns(), context.peer(), headers)
        model = self._repository.find(request.model_name, request.model_version)
        try:
            decoded_request = decode_request(request)
            decoded = time.perf_counter_ns()
            alone = self._clients.alone(context.peer())
            left = context.time_remaining()
            ran = await begin(model, decoded_request, alone=alone, time_left=left)
            outputs, parameters = complete(model, decoded_request, ran)
            ended = time.perf_counter_ns()
            encoded = encode_response(model.name, model.version, request, outputs, parameters)
        except asyncio.CancelledError:
            self._observer.failed(model, asked, CLIENT_LEFT, request.id)
            raise
        except Exception as error:
            failed = failure(error, model.name)
            self._observer.failed(model, asked, failed, request.id)
            raise _Failed(failed) from error
        self._observer.succeeded(model, asked, request.id, ran, decoded=decoded, ended=ended)
        return encoded


_REFUSALS = {429: grpc.StatusCode.RESOURCE_EXHAUSTED, 503: grpc.StatusCode.UNAVAILABLE}
_tensor = messages.ModelMetadataResponse.TensorMetadata
SPOKEN = ("statistics", "model_configuration", "model_repository")
"""Of the extensions, those that gRPC has."""


def _serialized(message: Message) -> bytes:
    content: bytes = message.SerializeToString()
    return content


def _headers(context: Context) -> list[tuple[bytes, bytes]]:
    """As HTTP has them; those whose values are binary are none of ours."""
    return [(name.encode(), value.encode()) for name, value in context.invocation_metadata() if isinstance(value, str)]


def _client(context: Context) -> tuple[str, int]:
    """Address and port: gRPC writes ``ipv4:1.2.3.4:5`` and ``ipv6:%5B::1%5D:5``."""
    address, _, port = unquote(context.peer()).partition(":")[2].rpartition(":")
    return address.strip("[]"), int(port) if port.isdigit() else 0


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """gRPC's health checks, whose watchers can be sent away."""

    def __init__(self) -> None:
        super().__init__()
        self._watching: set[asyncio.Task[None]] = set()

    async def Watch(self, request: Any, context: Context) -> None:  # noqa: N802
        task = asyncio.current_task()
        assert task is not None
        self._watching.add(task)
        try:
            await super().Watch(request, context)
        except asyncio.CancelledError:
            if task in self._watching:  # of the client's own doing
                raise
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server stops")
        finally:
            self._watching.discard(task)

    def end_watching(self) -> None:
        """End their calls, with a status: a call without one is waited for."""
        while self._watching:
            self._watching.pop().cancel()


class _Failed(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Tokens(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets nothing through without a right token but the health checks, as over HTTP: a kubelet has none."""

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens

        async def refuse(request: Any, context: Context) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, NEEDS_TOKEN)

        self._refusal = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method.startswith(HEALTH):
            return await continuation(details)
        given = [value for name, value in details.invocation_metadata if name == "authorization"]
        if len(given) == 1 and self._tokens.allows(given[0].encode("latin-1")):
            return await continuation(details)
        _log.info("refused", extra={"status": "UNAUTHENTICATED", "path": details.method})
        return self._refusal


def _credentials(tls: TLS) -> grpc.ServerCredentials:
    certificate = tls.certificate.read_bytes()
    pair = ((tls.key.read_bytes() if tls.key else certificate), certificate)
    authority = tls.client_ca.read_bytes() if tls.client_ca else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
