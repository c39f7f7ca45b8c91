"""The Open Inference Protocol v2 over gRPC, beside HTTP and on the same models, with gRPC's own health checks.

Source: the protocol's service definition as Triton has it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message

import edge_sdk
from edge_sdk import oip
from edge_sdk.errors import DeviceError, EdgeSDKError, UnknownModelError

from .answer import CLIENT_LEFT, DECODED_AT_ONCE, Clients, begin, complete, failure, refusal
from .configuration import configuration
from .grpc_calls import CallFailed, Context, abort, client_of, headers_of, new_server, received
from .grpc_health import Health
from .grpc_tensors import decode_request, encode_response
from .guard import Guard
from .logs import told_id
from .observer import Asked, Observer
from .protobuf import open_inference_pb2 as messages
from .replies import EXTENSIONS, SERVER_NAME
from .repository import Repository
from .server import DRAIN_SECONDS, free_port
from .tls import TLS

__all__ = ["GrpcServer"]

SERVICE = "inference.GRPCInferenceService"
HEALTH_METHODS = ("ServerLive", "ServerReady")
"""Of the protocol itself: as over HTTP no limit counts them, but they need a token where others do."""

NOTICE_SECONDS = 0.1
"""For who watches the health to be told that the server stops."""


_log = logging.getLogger("edgesdk.requests")

Method = Callable[[Any, Context], Awaitable[Message]]


class GrpcServer:
    """Serves a repository over gRPC, on the event loop that starts it.

    Args:
        repository: of the models.
        max_body_bytes: longer messages are refused.
        host: to listen on.
        port: to listen on; 0 takes a free one, which then stands in ``port``.
        tls: None serves in the clear.
        guard: decides which calls are let in, before their messages are received; None lets in all.
        clients: that have asked of late, over other protocols too.
        drain_seconds: in which calls are finished when it stops.
    """

    def __init__(
        self,
        repository: Repository,
        host: str,
        port: int,
        *,
        max_body_bytes: int,
        tls: TLS | None = None,
        guard: Guard | None = None,
        clients: Clients | None = None,
        drain_seconds: float = DRAIN_SECONDS,
    ) -> None:
        self._repository, self._tls = repository, tls
        self._host, self.port = host, port
        self._max_body_bytes, self._drain_seconds = max_body_bytes, drain_seconds
        self._guard, self._clients, self._observer = guard, clients or Clients(), Observer()
        self._server: grpc.aio.Server | None = None
        self._num_begun = self._under_way = 0  # calls that have begun and not ended, and those whose message is there
        self._health = Health(("", SERVICE))

    async def start(self) -> None:
        """Listen.

        Raises:
            DeviceError: the address cannot be listened on.
        """
        server = new_server(self._max_body_bytes)
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
            name: grpc.stream_unary_rpc_method_handler(
                self._answering(name, method, kind), response_serializer=_serialized
            )
            for name, (method, kind) in methods.items()
        }
        own = grpc.method_handlers_generic_handler(SERVICE, handlers)
        server.add_generic_rpc_handlers((own, self._health.handler()))
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

    async def stop(self) -> int:
        """Refuse new calls and finish those whose request has arrived; the number of those that were not."""
        if self._server is None:
            return 0
        self._health.stop()
        await asyncio.sleep(NOTICE_SECONDS)
        stopping = asyncio.create_task(self._server.stop(self._drain_seconds + 1))  # a second that is not waited for
        await asyncio.wait({stopping}, timeout=self._drain_seconds)
        lost = self._under_way
        await self._server.stop(None)
        await stopping
        return lost

    def _answering(self, name: str, method: Method, kind: Any) -> Method:
        """The method for those that are let in, its errors as gRPC's."""
        guard, counted, path = self._guard, name not in HEALTH_METHODS, f"/{SERVICE}/{name}"

        async def answered(stream: object, context: Context) -> Message:
            peer = context.peer()  # of a call that has ended there is none

            def log_refused(code: str) -> None:
                told = {"status": code, "client": peer, "path": path, **told_id(headers_of(context))}
                _log.info("refused", extra=told)

            if guard is not None:
                let_in = guard.enter if counted else guard.check
                refused = let_in(headers_of(context), client_of(context))
                if refused is not None:
                    code = _REFUSALS[refused.status]
                    log_refused(code)
                    await abort(context, code, refused.message)
            request = None
            self._num_begun += 1
            try:
                request = await received(kind, context)
                self._under_way += 1
                return await method(request, context)
            except asyncio.CancelledError:
                if request is None:
                    log_refused(CLIENT_LEFT.code)
                raise
            except CallFailed as error:
                failed = error.failure
                told = request is not None and kind is messages.ModelInferRequest
            except Exception as error:
                failed = failure(error, getattr(request, "model_name", "") or getattr(request, "name", ""))
                told = False
            finally:
                self._num_begun -= 1
                self._under_way -= request is not None
                if guard is not None and counted:
                    guard.leave()
            if not told:  # by the observer of inference
                log_refused(failed.code)
            return await abort(context, failed.code, failed.message)

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
            raise CallFailed(refusal(error)) from error
        return messages.RepositoryModelLoadResponse()

    async def _unload(self, request: Any, context: Context) -> Message:
        await self._repository.unload(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    async def _infer(self, request: messages.ModelInferRequest, context: Context) -> Message:
        headers = dict(context.invocation_metadata()) if self._observer.wants_headers else {}
        asked = Asked(time.perf_counter_ns(), context.peer(), headers)
        model = self._repository.find(request.model_name, request.model_version)
        try:
            if request.raw_input_contents or request.ByteSize() <= DECODED_AT_ONCE:
                decoded_request = decode_request(request)
            else:
                decoded_request = await asyncio.get_running_loop().run_in_executor(None, decode_request, request)
            decoded = time.perf_counter_ns()
            alone = self._clients.alone(context.peer()) and self._num_begun == 1  # a connection has many calls
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
            raise CallFailed(failed) from error
        self._observer.succeeded(model, asked, request.id, ran, decoded=decoded, ended=ended)
        return encoded


_REFUSALS = {401: "UNAUTHENTICATED", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}
_tensor = messages.ModelMetadataResponse.TensorMetadata
SPOKEN = ("statistics", "model_configuration", "model_repository")
"""Of the extensions, those that gRPC has."""


def _serialized(message: Message) -> bytes:
    content: bytes = message.SerializeToString()
    return content


def _credentials(tls: TLS) -> grpc.ServerCredentials:
    certificate = tls.certificate.read_bytes()
    pair = ((tls.key.read_bytes() if tls.key else certificate), certificate)
    authority = tls.client_ca.read_bytes() if tls.client_ca else None
    return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)
