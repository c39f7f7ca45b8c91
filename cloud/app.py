"""Starlette routes of the Open Inference Protocol v2 over HTTP; the only place that knows HTTP statuses.

Sources: the protocol's REST text, its binary tensor data extension as Triton states it. Errors are
``{"error": "<message>"}``: 400 for what the client sent, 404 for an unknown model, 405 for a wrong verb, 413 for too
long a body, 415 for an encoding that is not spoken, 500 for a model that failed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

import edge_sdk
from edge_sdk import oip
from edge_sdk.errors import BackendError, TensorError

from .models import Model

__all__ = ["build_app"]

SERVER_NAME = "edgesdk"
EXTENSIONS = ("binary_tensor_data",)
DEFAULT_MAX_BODY = 64 * 2**20
"""Bytes; Triton's default as well."""

MAX_MESSAGE = 500
"""Characters of an error: a client's own names are not echoed without end."""

ALONE_SECONDS = 1.0
"""After which a connection that nobody else has asked beside counts as the only one."""

_log = logging.getLogger("edgesdk.cloud")


def build_app(models: list[Model], *, max_body_bytes: int = DEFAULT_MAX_BODY) -> Starlette:
    """An ASGI application that serves these models.

    Args:
        models: loaded and warm.
        max_body_bytes: longer request bodies are refused with 413, before they are read where their length is stated.
    """
    service = _Service({model.name: model for model in models}, max_body_bytes)
    model = "/v2/models/{name}"
    version = model + "/versions/{version}"
    routes = [Route(f"{prefix}/infer", service.infer, methods=["POST"]) for prefix in (model, version)]  # matched first
    for prefix in (model, version):
        routes += [Route(prefix, service.model_metadata), Route(f"{prefix}/ready", service.model_ready)]
    routes += [
        Route("/v2", service.server_metadata),
        Route("/v2/health/live", service.live),
        Route("/v2/health/ready", service.ready),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _our_fault})


Handler = Callable[[Request], Awaitable[Response]]


class _Service:
    """The routes' handlers over a set of models."""

    def __init__(self, models: dict[str, Model], max_body_bytes: int) -> None:
        self.models = models
        self.max_body_bytes = max_body_bytes
        self._clients = _Clients()

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        return _json({"ready": True})

    async def server_metadata(self, request: Request) -> Response:
        return _json({"name": SERVER_NAME, "version": edge_sdk.__version__, "extensions": EXTENSIONS})

    async def model_ready(self, request: Request) -> Response:
        return _json({"name": self._model(request).name, "ready": True})

    async def model_metadata(self, request: Request) -> Response:
        model = self._model(request)
        return _json(
            {
                "name": model.name,
                "versions": [model.version],
                "platform": "onnx_onnxv1",
                "inputs": oip.tensor_metadata(model.inputs),
                "outputs": oip.tensor_metadata(model.outputs),
                "properties": model.properties,
            }
        )

    async def infer(self, request: Request) -> Response:
        model = self._model(request)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise HTTPException(415, f"content-encoding {encoding[:40]!r} is not spoken here; send the body as it is")
        body = await self._body(request)
        try:
            decoded = oip.decode_request(body, request.headers.get(oip.HEADER_LENGTH))
            wanted = self._wanted(model, decoded)
            self._check_bundle(model, decoded)
            answer = await model.infer(decoded.inputs, alone=self._clients.alone(request))
            headers, chunks = oip.encode_response(
                model.name,
                model.version,
                {name: answer.outputs[name] for name in wanted},
                request=decoded,
                parameters={"queue_us": answer.queue_us, "compute_us": answer.compute_us},
            )
        except TensorError as error:
            raise HTTPException(400, str(error)) from error
        except BackendError as error:
            _log.exception("model %s failed", model.name)
            raise HTTPException(500, f"model {model.name!r} failed; the server's log says how") from error
        return Response(b"".join(chunks), headers=headers)

    def _model(self, request: Request) -> Model:
        name = request.path_params["name"]
        model = self.models.get(name)
        if model is None:
            raise HTTPException(404, f"no model {name[:100]!r} here; it serves {', '.join(sorted(self.models))}")
        version = request.path_params.get("version", model.version)
        if version != model.version:
            raise HTTPException(404, f"model {name!r} has no version {version[:40]!r}, only {model.version}")
        return model

    def _wanted(self, model: Model, request: oip.InferRequest) -> list[str]:
        known = [spec.name for spec in model.outputs]
        wanted = known if request.outputs is None else [output.name for output in request.outputs]
        if not wanted or not set(wanted) <= set(known) or len(set(wanted)) < len(wanted):
            raise TensorError(f"outputs {wanted} were asked for; each may be asked for once, and there are {known}")
        return wanted

    def _check_bundle(self, model: Model, request: oip.InferRequest) -> None:
        """A client that names its bundle gets no answer from another one, deployed here since it connected."""
        named = request.parameters.get("edgesdk_bundle_id")
        served = model.properties.get("edgesdk_bundle_id")
        if named is not None and named != served:
            raise TensorError(f"this server holds bundle {str(served)[:12]}, the request is for {str(named)[:12]}")

    async def _body(self, request: Request) -> bytes:
        too_long = HTTPException(413, f"the body is longer than {self.max_body_bytes} bytes")
        stated = request.headers.get("content-length", "0")
        if stated.isdigit() and int(stated[:20]) > self.max_body_bytes:
            raise too_long
        chunks, length = [], 0
        try:
            async for chunk in request.stream():
                length += len(chunk)
                if length > self.max_body_bytes:
                    raise too_long
                chunks.append(chunk)
        except ClientDisconnect as error:
            raise HTTPException(400, "the body ended before its stated length") from error
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class _Clients:
    """Whether one connection alone has asked for inference of late."""

    def __init__(self) -> None:
        self._last: object = None
        self._since = 0.0

    def alone(self, request: Request) -> bool:
        now = time.monotonic()
        if request.client is None or request.client != self._last:
            self._last, self._since = request.client, now
        return now - self._since >= ALONE_SECONDS


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    response = _json({"error": error.detail[:MAX_MESSAGE]}, error.status_code)
    response.headers.update(error.headers or {})
    return response


async def _our_fault(request: Request, error: Exception) -> Response:
    return _json({"error": "internal error; the server's log says more"}, 500)
