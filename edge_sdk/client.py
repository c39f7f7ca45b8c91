"""A client of one Open Inference Protocol server: metadata and inference over kept-alive HTTP."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3

from . import oip
from .errors import RemoteError, RemoteRejected, RemoteTimeout, TensorError
from .tensors import Array

__all__ = ["Client", "RemoteTiming"]


class RemoteTiming(NamedTuple):
    """Where one call's time went, in milliseconds; a server that does not say leaves its two figures None.

    ``serialize_ms`` is encoding the request and decoding the answer; ``round_trip_ms`` from the first byte out to the
    last byte in, of which the server reports ``queue_ms`` and ``compute_ms``.
    """

    serialize_ms: float
    round_trip_ms: float
    queue_ms: float | None
    compute_ms: float | None


class Client:
    """Calls models on one server.

    Connection errors and answers of 503 are tried again after 0.1, 0.2, 0.4, … seconds within the timeout; nothing
    else is. Use one client per thread.

    Args:
        url: ``http://HOST:PORT`` or https.
        timeout_s: for connecting and for each piece of an answer; no try begins after it has passed.
        retries: how many more times a call is tried.

    Raises:
        RemoteError: the URL is not one of HTTP.
    """

    def __init__(self, url: str, *, timeout_s: float = 10.0, retries: int = 3) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise RemoteError(f"{url!r} is not a server address; expected http://HOST:PORT")
        if not 0 < timeout_s <= 86400:
            raise RemoteError(f"timeout must be more than 0 and at most 86400 s, got {timeout_s}")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.retries = retries
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy or netrc lookups per request; features go where the user said

    def metadata(self, model: str) -> dict[str, Any]:
        """The model's metadata as the server states it: name, versions, inputs, outputs, perhaps properties.

        Raises:
            RemoteError: no answer, or not a JSON object.
        """
        response = self._send("GET", f"/v2/models/{model}")
        try:
            metadata = response.json()
        except (ValueError, RecursionError) as error:
            raise RemoteError(f"{self.url}: model {model!r}: the metadata is not JSON") from error
        if not isinstance(metadata, dict):
            raise RemoteError(f"{self.url}: model {model!r}: the metadata is not a JSON object")
        return metadata

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        request_id: str = "",
        parameters: dict[str, oip.Scalar] | None = None,
    ) -> tuple[dict[str, Array], RemoteTiming]:
        """Run a model on the server.

        Args:
            model: its name there.
            inputs: arrays by name.
            request_id: echoed by the server, and checked.
            parameters: of the request.

        Returns:
            Outputs by name, and where the time went.

        Raises:
            RemoteTimeout: no answer in time.
            RemoteRejected: the server refused; its own message is in this one.
            RemoteError: no connection, or an answer that is not one of the protocol.
            TensorError: an array has no dtype of the protocol.
        """
        start = time.perf_counter()
        headers, chunks = oip.encode_request(inputs, request_id, parameters)
        body = b"".join(chunks)
        sent = time.perf_counter()
        response = self._send("POST", f"/v2/models/{model}/infer", headers, body)
        content = response.content
        received = time.perf_counter()
        try:
            answer = oip.decode_response(content, response.headers.get(oip.HEADER_LENGTH))
        except TensorError as error:
            raise RemoteError(f"{self.url}: model {model!r}: {error}") from error
        if answer.id != request_id:
            raise RemoteError(f"{self.url}: the answer is for request {answer.id!r}, not {request_id!r}")
        done = time.perf_counter()
        timing = RemoteTiming(
            serialize_ms=(sent - start + done - received) * 1e3,
            round_trip_ms=(received - sent) * 1e3,
            queue_ms=_milliseconds(answer.parameters.get("queue_us")),
            compute_ms=_milliseconds(answer.parameters.get("compute_us")),
        )
        return answer.outputs, timing

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> requests.Response:
        deadline = time.monotonic() + self.timeout_s
        attempt = 0
        while True:
            problem, response = self._try_once(method, path, headers, body, deadline)
            if response is not None and response.status_code != 503:
                return self._accepted(response, path)
            pause = 0.1 * 2**attempt
            attempt += 1
            if attempt > self.retries or time.monotonic() + pause >= deadline:
                if response is not None:
                    return self._accepted(response, path)
                raise RemoteError(f"{self.url}: no connection in {attempt} tries ({problem}); is the server running?")
            time.sleep(pause)

    def _try_once(
        self, method: str, path: str, headers: dict[str, str] | None, body: bytes | None, deadline: float
    ) -> tuple[str, requests.Response | None]:
        left = deadline - time.monotonic()
        try:
            return "", self._session.request(
                method, self.url + path, headers=headers, data=body, timeout=max(left, 0.001), allow_redirects=False
            )
        except requests.Timeout as error:
            raise RemoteTimeout(f"{self.url}: no answer to {path} within {self.timeout_s:g} s") from error
        except requests.ConnectionError as error:
            if isinstance(_cause(error), TimeoutError):  # requests calls a stall within the answer a lost connection
                raise RemoteTimeout(f"{self.url}: the answer to {path} stopped for {self.timeout_s:g} s") from error
            return str(_cause(error)) or type(_cause(error)).__name__, None
        except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
            raise RemoteError(f"{self.url}: {path}: {error}") from error

    def _accepted(self, response: requests.Response, path: str) -> requests.Response:
        if response.status_code == 200:
            return response
        try:
            message = str(response.json()["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            message = response.reason or "no reason given"
        raise RemoteRejected(
            f"{self.url}: {path} answered {response.status_code}: {message[:500]}", response.status_code
        )


def _milliseconds(microseconds: oip.Scalar | None) -> float | None:
    if isinstance(microseconds, int | float) and 0 <= microseconds < 1e12:
        return float(microseconds) / 1e3
    return None  # not reported, or not a time


def _cause(error: BaseException) -> BaseException:
    """The innermost cause: requests and urllib3 wrap it in several layers."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error
