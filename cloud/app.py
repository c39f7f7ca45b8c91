"""The Open Inference Protocol v2 over HTTP: inference by the short way, all else by Starlette's routes.

Sources: the protocol's REST text; its binary tensor data and statistics extensions as Triton states them. Errors are
``{"error": "<message>"}``: 404 for an unknown model, 405 for a wrong verb; those of inference stand in ``infer``.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import edge_sdk
from edge_sdk import oip
from edge_sdk.errors import EdgeSDKError, ForbiddenError

from .answer import CLIENT_LEFT, refusal
from .configuration import configuration
from .infer import InferHandler
from .logs import told_id
from .metrics import CONTENT_TYPE, exposition
from .models import Model
from .openapi import description
from .replies import EXTENSIONS, SERVER_NAME, error_answer, json_answer
from .repository import Repository
from .status_page import status_routes

__all__ = ["DEFAULT_MAX_BODY", "Application"]

DEFAULT_MAX_BODY = 64 * 2**20
"""Bytes; Triton's default as well."""

MAX_SETTINGS = 64 * 2**10
"""Bytes of a body that holds no tensors."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")

_log = logging.getLogger("edgesdk.requests")


class Application:
    """An ASGI application that serves these models.

    Args:
        repository: of the models.
        max_body_bytes: longer request bodies are refused with 413, before they are read where their length is stated.
    """

    def __init__(self, repository: Repository, *, max_body_bytes: int = DEFAULT_MAX_BODY) -> None:
        self._repository = repository
        self._paths: dict[bytes, Model] = {}
        self.infer = InferHandler(max_body_bytes, lambda path: self._paths.get(path))
        repository.on_change = self._find_paths
        self._find_paths()
        self._rest = self._routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"].encode("utf-8", "surrogatepass")
            if model := self._paths.get(path):
                await self.infer(model, path, scope, receive, send)
                return
        if scope["type"] == "http" and _CONTROL.search(scope["path"]):  # Starlette's patterns end before a last newline
            await _not_found()(scope, receive, send)
            return
        await self._rest(scope, receive, send)

    def _find_paths(self) -> None:
        paths = {}
        for model in self._repository:
            name = f"/v2/models/{model.name}"
            paths[f"{name}/infer".encode()] = self._repository.find(model.name)
            paths[f"{name}/versions/{model.version}/infer".encode()] = model
        self._paths = paths

    def _routes(self) -> Starlette:
        routes = [
            *status_routes(),
            Route("/v2", self._server_metadata),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/v2/models/stats", self._all_statistics),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            Route("/v2/repository/models/{name}/load", self._load, methods=["POST"]),
            Route("/v2/repository/models/{name}/unload", self._unload, methods=["POST"]),
            Route("/metrics", self._metrics),
            Route("/openapi.json", self._description),
        ]
        for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                Route(f"{path}/infer", self._no_such_model, methods=["POST"]),
                Route(f"{path}/ready", self._model_ready),
                Route(f"{path}/config", self._model_config),
                Route(f"{path}/stats", self._model_statistics),
                Route(path, self._model_metadata),
            ]
        application = Starlette(routes=routes, exception_handlers=_ERRORS)
        # It would name http:// and what the client calls this host: behind a proxy for TLS features would go in clear.
        application.router.redirect_slashes = False
        return application

    async def _live(self, request: Request) -> Response:
        return json_answer({"live": True})

    async def _ready(self, request: Request) -> Response:
        return json_answer({"ready": True})

    async def _server_metadata(self, request: Request) -> Response:
        return json_answer({"name": SERVER_NAME, "version": edge_sdk.__version__, "extensions": EXTENSIONS})

    async def _metrics(self, request: Request) -> Response:
        return Response(exposition(self._repository.statistics()), headers={"Content-Type": CONTENT_TYPE})

    async def _description(self, request: Request) -> Response:
        return json_answer(description())

    async def _all_statistics(self, request: Request) -> Response:
        return json_answer({"model_stats": self._repository.statistics_json()})

    async def _index(self, request: Request) -> Response:
        asked = await self._body(request)
        return json_answer([entry._asdict() for entry in self._repository.index(ready=asked.get("ready") is True)])

    async def _load(self, request: Request) -> Response:
        _refuse_other_sites(request)
        parameters = (await self._body(request)).get("parameters", {})
        await self._repository.load(request.path_params["name"], parameters)
        return Response()

    async def _unload(self, request: Request) -> Response:
        _refuse_other_sites(request)
        await self._repository.unload(request.path_params["name"])
        return Response()

    async def _body(self, request: Request) -> dict[str, Any]:
        """A JSON object, or nothing."""
        content = b""
        async for chunk in request.stream():
            content += chunk
            if len(content) > MAX_SETTINGS:
                raise HTTPException(413, f"the body is longer than {MAX_SETTINGS} bytes")
        try:
            found = msgspec.json.decode(content or b"{}")
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise HTTPException(400, "the body is not JSON") from error
        if not isinstance(found, dict):
            raise HTTPException(400, "the body is not a JSON object")
        return found

    async def _model_statistics(self, request: Request) -> Response:
        model = self._model(request)
        return json_answer({"model_stats": self._repository.statistics_json(model)})

    async def _model_ready(self, request: Request) -> Response:
        return json_answer({"name": self._model(request).name, "ready": True})

    async def _model_metadata(self, request: Request) -> Response:
        model = self._model(request)
        return json_answer(
            {
                "name": model.name,
                "versions": self._repository.versions(model.name),
                "platform": model.platform,
                "inputs": oip.tensor_metadata(model.inputs),
                "outputs": oip.tensor_metadata(model.outputs),
                "properties": model.properties,
            }
        )

    async def _model_config(self, request: Request) -> Response:
        return json_answer(configuration(self._model(request)))

    async def _no_such_model(self, request: Request) -> Response:
        self._model(request)
        return _not_found()  # one that is here has gone the short way

    def _model(self, request: Request) -> Model:
        return self._repository.find(request.path_params["name"], request.path_params.get("version", ""))


def _refuse_other_sites(request: Request) -> None:
    """A browser on the operator's machine reaches what listens there, whatever page it shows (Fetch Metadata)."""
    headers = request.headers  # to an address without TLS a browser sends Origin alone; our page asks for nothing here
    if "origin" in headers or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ForbiddenError("a page of another site asked for this")


def _not_found() -> Response:
    return error_answer("no such path here", 404)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_answer(error.detail, error.status_code, error.headers)


async def _our_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EdgeSDKError)
    refused = refusal(error)
    _log_refused(request, refused.status)
    return error_answer(refused.message, refused.status)


async def _client_left(request: Request, error: Exception) -> Response:
    _log_refused(request, CLIENT_LEFT.status)
    return Response(status_code=CLIENT_LEFT.status)  # which nobody reads


def _log_refused(request: Request, status: int) -> None:
    scope = request.scope
    _log.info("refused", extra={"status": status, "path": scope["path"][:200], **told_id(scope["headers"])})


async def _our_fault(request: Request, error: Exception) -> Response:
    return error_answer("internal error; the server's log says more", 500)


_ERRORS: dict[Any, Any] = {
    HTTPException: _http_error,
    ClientDisconnect: _client_left,
    EdgeSDKError: _our_error,
    Exception: _our_fault,
}
