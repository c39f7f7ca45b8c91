"""The server's log on standard error: lines for people, or a JSON object each for a collector."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any, Literal

from pythonjsonlogger.msgspec import MsgspecFormatter

from edge_sdk.errors import words_of

__all__ = ["LONGEST_ID", "LogFormat", "configure", "told_id", "without_numbers"]

LogFormat = Literal["text", "json"]

LONGEST_ID = 100
"""Characters of a client's own request id in the log."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}


def configure(form: LogFormat, *, requests: bool) -> None:
    """Set up all loggers of the process.

    Args:
        form: of the lines.
        requests: whether each request gets a line.
    """
    handler = logging.StreamHandler()
    if form == "json":
        names = {"asctime": "time", "levelname": "level", "name": "logger"}
        handler.setFormatter(
            MsgspecFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields=names, datefmt=_ISO)
        )
    else:
        handler.setFormatter(_Text("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt=_ISO))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it warns of each client that sends it nonsense
    logging.getLogger("edgesdk").setLevel(logging.INFO)
    logging.getLogger("edgesdk.requests").setLevel(logging.INFO if requests else logging.WARNING)


def told_id(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """``request_id`` for the line of a request whose body says none: its header ``X-Request-Id``; nothing without."""
    found = next((value for name, value in headers if name == b"x-request-id"), b"")
    return {"request_id": found.decode("latin-1")[:LONGEST_ID]} if found else {}


def without_numbers(error: BaseException) -> BaseException:
    """An error of the same name, place and causes, and of the same words: numbers in them may be a tensor's values."""
    kind = type(type(error).__qualname__, (Exception,), {"__module__": type(error).__module__})
    found: BaseException = kind(words_of(str(error)))
    found.__traceback__ = error.__traceback__
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    found.__cause__ = None if cause is None else without_numbers(cause)
    return found


_ISO = "%Y-%m-%dT%H:%M:%S%z"


class _Text(logging.Formatter):
    """Fields beside the message as ``name=value``; strings are quoted, so that no client writes a line of his own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        fields: dict[str, Any] = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        told = "".join(f" {key}={json.dumps(value)}" for key, value in fields.items())
        return super().formatMessage(record) + told
