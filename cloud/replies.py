"""What the server says of itself, and the bodies of answers that hold no tensors."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

__all__ = ["EXTENSIONS", "MAX_MESSAGE", "NEEDS_TOKEN", "SERVER_NAME", "error_answer", "error_body", "json_answer"]

SERVER_NAME = "edgesdk"
EXTENSIONS = ("binary_tensor_data", "statistics", "model_configuration", "model_repository")
NEEDS_TOKEN = "a bearer token is needed: Authorization: Bearer TOKEN"  # noqa: S105 (a message)

MAX_MESSAGE = 500
"""Characters of an error: a client's own names are not echoed without end."""


def error_body(message: str) -> bytes:
    """An error as the protocol shapes it."""
    return msgspec.json.encode({"error": message[:MAX_MESSAGE]})


def error_answer(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An error as an answer."""
    return Response(error_body(message), status, headers, media_type="application/json")


def json_answer(content: object, status: int = 200) -> Response:
    """Anything as JSON."""
    return Response(msgspec.json.encode(content), status, media_type="application/json")
