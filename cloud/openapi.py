"""The server's OpenAPI 3.1 description, for generators of clients and of tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edge_sdk.oip import MAX_TENSORS
from edge_sdk.tensors import DTYPES

__all__ = ["description"]

Json = dict[str, Any]

STRING: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
DATATYPE: Json = {"enum": list(DTYPES)}
BYTES: Json = {"type": "string", "contentMediaType": "application/octet-stream"}


def description() -> Json:
    """The document, as JSON's types."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "edgesdk server",
            "version": "2",
            "description": "The Open Inference Protocol v2 with its extensions for binary tensors, statistics, model "
            "configuration and model repository.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"token": []}],
        "paths": {**_server_paths(), **_repository_paths(), **_model_paths()},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}, "schemas": _schemas()},
    }


def _server_paths() -> Json:
    live = _object({"live": {"const": True}})
    ready = _object({"ready": {"const": True}})
    metrics = {"description": "Prometheus' text format 0.0.4.", "content": {"text/plain": {"schema": STRING}}}
    return {
        "/v2/health/live": _get("live", "Whether the process answers.", _json("It does.", live), is_open=True),
        "/v2/health/ready": _get("ready", "Whether requests are taken.", _json("They are.", ready), is_open=True),
        "/v2": _get("serverMetadata", "The server's name, version and extensions.", _json("", _ref("ServerMetadata"))),
        "/v2/models/stats": _get("allStatistics", "Statistics of all models.", _json("", _ref("Statistics"))),
        "/metrics": _get("metrics", "Counts and durations for Prometheus.", metrics),
    }


def _repository_paths() -> Json:
    name = _in_path("name", "Of the model: its part's name in the bundle.")
    entries = {"type": "array", "items": _ref("IndexEntry")}
    wrong = {"400": _error("The body is not a JSON object."), "413": _error("The body is longer than 64 KiB.")}
    refused = {"403": _error("This server does not do that on request."), "404": _error("No such model.")}
    cannot = {**wrong, "400": _error("The body is not a JSON object, or a version cannot be served.")}
    done = {"description": "Done."}
    asked = _body(_object({"ready": {"type": "boolean"}}, required=()))
    index = _operation("repositoryIndex", "What is loaded, and what could be.", _json("", entries), wrong)
    load = _operation("load", "Have the versions of a model that the repository's folder has.", done, refused | cannot)
    unload = _operation("unload", "Serve no version of a model any more.", done, refused)
    return {
        "/v2/repository/index": {"post": {**index, "requestBody": asked}},
        "/v2/repository/models/{name}/load": {
            "parameters": [name],
            "post": {**load, "requestBody": _body({"type": "object"})},
        },
        "/v2/repository/models/{name}/unload": {"parameters": [name], "post": unload},
    }


def _model_paths() -> Json:
    """Each call twice: of the highest version, and of one that is named."""
    name, version = _in_path("name", "Of the model: its part's name in the bundle."), _in_path("version", "")
    config = _object({"name": STRING, "platform": STRING, "max_batch_size": COUNT})
    ready = _object({"name": STRING, "ready": {"const": True}})
    unknown = {"404": _error("No such model or version.")}
    paths: Json = {}
    for path, suffix, parameters in (
        ("/v2/models/{name}", "", [name]),
        ("/v2/models/{name}/versions/{version}", "OfVersion", [name, version]),
    ):
        calls = {
            "": _get(f"modelMetadata{suffix}", "A model's tensors.", _json("", _ref("ModelMetadata")), unknown),
            "/ready": _get(f"modelReady{suffix}", "Whether a model can be asked.", _json("It can.", ready), unknown),
            "/config": _get(f"modelConfig{suffix}", "Triton's configuration of it.", _json("", config), unknown),
            "/stats": _get(f"modelStatistics{suffix}", "Its statistics.", _json("", _ref("Statistics")), unknown),
            "/infer": {"post": _infer(f"infer{suffix}", unknown)},
        }
        paths |= {f"{path}{call}": {"parameters": parameters, **item} for call, item in calls.items()}
    return paths


def _infer(operation: str, unknown: Json) -> Json:
    length = "Inference-Header-Content-Length"
    framing = "The JSON, then the raw little-endian buffers of its binary tensors in the order of the JSON."
    answered = {
        "description": "The outputs; binary ones where the request asked for them.",
        "headers": {length: {"description": "Bytes of the JSON, where outputs are binary.", "schema": COUNT}},
        "content": {
            "application/json": {"schema": _ref("InferenceResponse")},
            "application/octet-stream": {"schema": BYTES},
        },
    }
    errors = {
        "400": _error("The request is not one of the protocol, or does not fit the model."),
        "413": _error("The body is longer than the server takes."),
        "415": _error("A Content-Encoding that is not spoken here."),
        "504": _error("The request's own timeout passed before it was begun."),
    }
    content = {
        "application/json": {"schema": _ref("InferenceRequest")},
        "application/octet-stream": {"schema": {**BYTES, "description": framing}},
    }
    return {
        **_operation(operation, "Run a model.", answered, unknown | errors),
        "parameters": [
            {
                "name": length,
                "in": "header",
                "description": "Bytes of the JSON, if tensors are binary.",
                "schema": COUNT,
            },
            {"name": "Content-Encoding", "in": "header", "schema": {"enum": ["gzip", "deflate", "identity"]}},
            {"name": "X-Request-Id", "in": "header", "description": "For the log, without an id.", "schema": STRING},
            {"name": "traceparent", "in": "header", "description": "W3C Trace Context.", "schema": STRING},
        ],
        "requestBody": {"required": True, "content": content},
    }


def _schemas() -> Json:
    parameters: Json = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    sizes = {"type": "array", "items": COUNT}
    open_sizes = {"type": "array", "items": {"type": "integer", "minimum": -1}}
    data = {"type": "array", "description": "Row-major, nested or flat; absent where binary_data_size stands."}
    tensor = {"name": STRING, "shape": sizes, "datatype": DATATYPE, "parameters": _ref("Parameters"), "data": data}
    tensors, described = ({"type": "array", "items": _ref(name)} for name in ("Tensor", "TensorMetadata"))
    output = _object({"name": STRING, "parameters": _ref("Parameters")}, required=("name",))
    asked = "timeout: microseconds that the client waits. edgesdk_bundle_id: the bundle that must be served. "
    told = "queue_us, compute_us: how long the request waited, and its batch ran."
    return {
        "Error": {**_object({"error": STRING}), "additionalProperties": False},
        "Parameters": parameters,
        "Tensor": _object(tensor, required=("name", "shape", "datatype")),
        "TensorMetadata": _object({"name": STRING, "datatype": DATATYPE, "shape": open_sizes}),
        "ServerMetadata": _object({"name": STRING, "version": STRING, "extensions": _strings()}),
        "ModelMetadata": _object(
            {
                "name": STRING,
                "versions": _strings(),
                "platform": STRING,
                "inputs": described,
                "outputs": described,
                "properties": {"type": "object", "additionalProperties": STRING},
            }
        ),
        "InferenceRequest": _object(
            {
                "id": STRING,
                "parameters": {**parameters, "description": f"{asked}binary_data_output: whether outputs are binary."},
                "inputs": {**tensors, "minItems": 1, "maxItems": MAX_TENSORS},
                "outputs": {"type": "array", "items": output, "maxItems": MAX_TENSORS},
            },
            required=("inputs",),
        ),
        "InferenceResponse": _object(
            {
                "model_name": STRING,
                "model_version": STRING,
                "id": STRING,
                "parameters": {**parameters, "description": told},
                "outputs": tensors,
            },
            required=("model_name", "outputs"),
        ),
        "IndexEntry": _object(
            {"name": STRING, "version": STRING, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": STRING}
        ),
        "Tally": _object({"count": COUNT, "ns": COUNT}),
        "Statistics": _object({"model_stats": {"type": "array", "items": _ref("ModelStatistics")}}),
        "ModelStatistics": _object(
            {
                "name": STRING,
                "version": STRING,
                "last_inference": {**COUNT, "description": "Milliseconds since 1970."},
                "inference_count": COUNT,
                "execution_count": COUNT,
                "inference_stats": {"type": "object", "additionalProperties": _ref("Tally")},
                "batch_stats": {
                    "type": "array",
                    "items": _object({"batch_size": COUNT, "compute_infer": _ref("Tally")}),
                },
            }
        ),
    }


def _operation(name: str, summary: str, ok: Json, errors: Json, *, is_open: bool = False) -> Json:
    wait = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    guard = {
        "401": _error("No right bearer token, where the server asks for one."),
        "429": {**_error("More requests a second than one address may send."), "headers": wait},
        "503": {**_error("Too many requests wait or are under way."), "headers": wait},
    }
    made: Json = {"operationId": name, "summary": summary, "responses": {"200": ok, **errors}}
    if is_open:
        return {**made, "security": []}
    made["responses"] |= guard
    return made


def _get(name: str, summary: str, ok: Json, errors: Json | None = None, *, is_open: bool = False) -> Json:
    return {"get": _operation(name, summary, ok, errors or {}, is_open=is_open)}


def _ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(properties: Json, required: Iterable[str] | None = None) -> Json:
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": properties, **({"required": needed} if needed else {})}


def _strings() -> Json:
    return {"type": "array", "items": STRING}


def _json(text: str, schema: Json) -> Json:
    return {"description": text or "They are.", "content": {"application/json": {"schema": schema}}}


def _error(text: str) -> Json:
    return _json(text, _ref("Error"))


def _body(schema: Json) -> Json:
    return {"required": False, "content": {"application/json": {"schema": schema}}}


def _in_path(name: str, text: str) -> Json:
    return {"name": name, "in": "path", "required": True, "description": text, "schema": {**STRING, "minLength": 1}}
