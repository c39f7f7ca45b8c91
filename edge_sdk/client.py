"""A client of one Open Inference Protocol server: metadata and inference over kept-alive HTTP."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from http.client import RemoteDisconnected
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests
import urllib3

from . import oip
from .credentials import NO_CREDENTIALS, Credentials, read_token
from .deadline import Deadline
from .errors import ConfigError, RemoteError, RemoteRejected, RemoteTimeout, TensorError
from .tensors import Array
from .tracing import TRACE_HEADERS, Spans
from .transport import BeforeConnect, Transport

__all__ = ["Client", "RemoteTiming"]

MAX_ANSWER_BYTES = 64 * 2**20
"""Longer answers are refused: a broken server must not fill the device's memory."""

MOST_VERSIONS = 16
"""Of a model that are asked whose they are."""

NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""What OpenSSL, by its version, says of an answer in the clear."""

VERSION = re.compile("[1-9][0-9]{0,17}")


class RemoteTiming(NamedTuple):
    """Where one call's time went, in milliseconds; a server that does not say leaves its two figures None.

    ``serialize_ms`` is encoding the request and decoding the answer; ``round_trip_ms`` from the first byte out to the
    last byte in, of which the server reports ``queue_ms`` and ``compute_ms``.
    """

    serialize_ms: float
    round_trip_ms: float
    queue_ms: float | None
    compute_ms: float | None


class _Answer(NamedTuple):
    headers: Mapping[str, str]
    content: bytes
    status: int
    reason: str | None


class Client:
    """Calls models on one server.

    Connection errors and answers of 503 are tried again after 0.1, 0.2, 0.4, … seconds, or when the server says, within
    the timeout; nothing else is. Use one client per thread.

    Args:
        url: ``http://HOST:PORT`` or https.
        timeout_s: for a whole call, from connecting to the answer's last byte, retries included.
        retries: how many more times a call is tried.
        credentials: what is shown to the server, and by what it is known.
        before_connect: called with each address and port before connecting; what it raises ends the call.

    Raises:
        RemoteError: the URL is not one of HTTP.
        ConfigError: the credentials cannot be used with it.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 10.0,
        retries: int = 3,
        credentials: Credentials = NO_CREDENTIALS,
        before_connect: BeforeConnect | None = None,
    ) -> None:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise RemoteError(f"{url!r} is not a server address; expected http://HOST:PORT")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            # Not shown: a password may be in it.
            raise RemoteError(
                "a server address has a user, a password, a query or a fragment; a token goes into a file"
            )
        if not 0 < timeout_s <= 86400:
            raise RemoteError(f"timeout must be more than 0 and at most 86400 s, got {timeout_s}")
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.retries = retries
        self._headers = {**requests.utils.default_headers(), "Accept-Encoding": "identity"}
        self._deadline = Deadline()
        # Not through a requests.Session: features go where the user said, by no proxy, redirect, cookie or netrc.
        self._transport = Transport(self._deadline, before_connect)
        credentials.check(url)
        self._token_file = credentials.token_file
        if self._token_file is not None:
            self._headers["Authorization"] = f"Bearer {read_token(self._token_file)}"
        self._verify = True if credentials.ca_file is None else str(credentials.ca_file)
        self._certificate: str | tuple[str, str] | None = None
        if credentials.certificate is not None:
            own = str(credentials.certificate)
            self._certificate = own if credentials.key is None else (own, str(credentials.key))
        self._prepared: dict[str, requests.PreparedRequest] = {}
        self._spans = Spans()

    def metadata(self, model: str, version: str = "") -> dict[str, Any]:
        """The model's metadata as the server states it: name, versions, inputs, outputs, perhaps properties.

        Args:
            model: its name there.
            version: of it; the server's choice where none is named.

        Raises:
            RemoteError: no answer, or not a JSON object.
        """
        return self._get_object(_path(model, version))

    def identities(self, model: str, seconds: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """What the server says of each version of the model besides names and shapes, whoever the server is.

        Ours has properties in the metadata, Triton parameters in the model's configuration, the same for all versions.
        Of many versions the newest are asked, and all within ``seconds``, or the timeout of one call. What is yielded
        was said on the connection that is open.

        Yields:
            The version, empty where only the server's choice can be asked for, and what it says.

        Raises:
            RemoteTimeout: the server did not say in time.
            RemoteError: no answer, or not a JSON object.
        """
        end = time.monotonic() + (self.timeout_s if seconds is None else seconds)
        metadata = self._get_object(_path(model), end - time.monotonic())
        if not isinstance(metadata.get("properties"), dict):
            yield "", self._parameters(model, end - time.monotonic())
            return
        listed = metadata.get("versions")
        versions = (
            [v for v in listed if isinstance(v, str) and VERSION.fullmatch(v)] if isinstance(listed, list) else []
        )
        newest = sorted(versions, key=int, reverse=True)[:MOST_VERSIONS]
        if len(newest) < 2:
            yield "".join(newest), metadata["properties"]
            return
        for version in newest:
            try:
                properties = self._get_object(_path(model, version), end - time.monotonic()).get("properties")
            except RemoteRejected:  # unloaded meanwhile
                continue
            yield version, properties if isinstance(properties, dict) else {}

    def _parameters(self, model: str, seconds: float) -> dict[str, Any]:
        try:
            given = self._get_object(f"{_path(model)}/config", seconds).get("parameters")
        except RemoteRejected:  # a server that is neither
            return {}
        if not isinstance(given, dict):
            return {}
        return {name: value.get("string_value") for name, value in given.items() if isinstance(value, dict)}

    def _get_object(self, path: str, seconds: float | None = None) -> dict[str, Any]:
        content = self._send("GET", path, seconds=seconds).content
        if len(content) > oip.MAX_JSON_BYTES:
            raise RemoteError(f"{self.url}: {path}: the answer has more than {oip.MAX_JSON_BYTES} bytes")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RemoteError(f"{self.url}: {path}: the answer is not JSON") from error
        if not isinstance(found, dict):
            raise RemoteError(f"{self.url}: {path}: the answer is not a JSON object")
        return found

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Array],
        request_id: str = "",
        parameters: dict[str, oip.Scalar] | None = None,
        version: str = "",
        *,
        seconds: float | None = None,
        same_connection: bool = False,
    ) -> tuple[dict[str, Array], RemoteTiming]:
        """Run a model on the server.

        Args:
            model: its name there.
            inputs: arrays by name.
            request_id: echoed by the server, and checked.
            parameters: of the request; ``timeout``, of the protocol's schedule policy, is this client's own.
            version: of the model; the server's choice where none is named.
            seconds: for the call, in place of the client's timeout.
            same_connection: send over the connection of the call before, and over no other.

        Returns:
            Outputs by name, and where the time went.

        Raises:
            RemoteTimeout: no answer in time.
            RemoteRejected: the server refused; its own message is in this one.
            ConnectionEnded: the connection of the call before has ended.
            RemoteError: no connection, or an answer that is not one of the protocol.
            TensorError: an array has no dtype of the protocol.
        """
        start = time.perf_counter()
        # A server that knows how long it is waited for need not run what nobody waits for any more.
        left = self.timeout_s if seconds is None else max(seconds, 0.001)
        timed: oip.Parameters = {"timeout": round(left * 1e6), **(parameters or {})}
        headers, chunks = oip.encode_request(inputs, request_id, timed)
        headers |= self._spans.headers()
        body = b"".join(chunks)
        sent = time.perf_counter()
        path = f"{_path(model, version)}/infer"
        answer_headers, content, _, _ = self._send("POST", path, headers, body, left, same_connection)
        received = time.perf_counter()
        try:
            answer = oip.decode_response(content, answer_headers.get(oip.HEADER_LENGTH))
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
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | None = None,
        body: bytes | None = None,
        seconds: float | None = None,
        same_connection: bool = False,
    ) -> _Answer:
        self._deadline.start(self.timeout_s if seconds is None else max(seconds, 0.001))
        self._transport.may_connect = not same_connection
        attempt = 0
        while True:
            problem, answer = self._try_once(method, path, headers, body)
            pause = 0.1 * 2**attempt
            attempt += 1
            if answer is not None:
                if answer.status == 401 and self._has_new_token():
                    continue
                if answer.status != 503:
                    break
                pause = max(pause, _retry_after(answer))
            if attempt > self.retries or pause >= self._deadline.left():
                break
            time.sleep(pause)
        if answer is None:
            told = str(problem) or type(problem).__name__
            raise RemoteError(f"{self.url}: no connection in {attempt} tries ({told}); {_advice(problem)}")
        if answer.status == 504:
            raise RemoteTimeout(f"{self.url}: {path} answered 504: {_reason(answer)}")
        if answer.status != 200:
            raise RemoteRejected(f"{self.url}: {path} answered {answer.status}: {_reason(answer)}", answer.status)
        return answer

    def _try_once(
        self, method: str, path: str, headers: dict[str, str] | None, body: bytes | None
    ) -> tuple[BaseException | None, _Answer | None]:
        """The answer, or why there was no connection."""
        try:
            request = self._prepare(method, path, headers, body)
            timeout = max(self._deadline.left(), 0.001)
            with self._transport.send(
                request, stream=True, timeout=timeout, verify=self._verify, cert=self._certificate
            ) as response:
                content = response.raw.read(MAX_ANSWER_BYTES + 1)
        except (requests.RequestException, urllib3.exceptions.HTTPError, UnicodeError) as error:
            cause = _cause(error)
            if isinstance(cause, TimeoutError) or isinstance(error, requests.Timeout):
                raise RemoteTimeout(
                    f"{self.url}: no whole answer to {path} within {self._deadline.seconds:g} s"
                ) from error
            if isinstance(error, requests.ConnectionError | urllib3.exceptions.ProtocolError):
                return cause, None
            raise RemoteError(f"{self.url}: {path}: {error}") from error
        if len(content) > MAX_ANSWER_BYTES:
            raise RemoteError(f"{self.url}: the answer to {path} has more than {MAX_ANSWER_BYTES} bytes")
        return None, _Answer(response.headers, content, response.status_code, response.reason)

    def _has_new_token(self) -> bool:
        """Whether the file holds another token than the one sent, which is sent from now on."""
        try:
            token = f"Bearer {read_token(self._token_file)}" if self._token_file else None
        except ConfigError:  # half written
            return False
        if token is None or token == self._headers["Authorization"]:
            return False
        self._headers["Authorization"] = token
        self._prepared.clear()
        return True

    def _prepare(
        self, method: str, path: str, headers: dict[str, str] | None, body: bytes | None
    ) -> requests.PreparedRequest:
        """The request of the last call of this path with another body: parsing the URL anew costs a fifth of a call."""
        if path not in self._prepared:
            self._prepared[path] = requests.Request(method, self.url + path, self._headers).prepare()
        request = self._prepared[path]
        for name in TRACE_HEADERS:  # of the call before
            request.headers.pop(name, None)
        request.headers.update(headers or {})
        request.prepare_body(body, None)
        return request


def _path(model: str, version: str = "") -> str:
    return f"/v2/models/{model}/versions/{version}" if version else f"/v2/models/{model}"


def _retry_after(answer: _Answer) -> float:
    """Seconds that the server asks to stay away; 0 where it says nothing, or gives a date."""
    asked = answer.headers.get("Retry-After", "")
    return float(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 0.0


def _reason(answer: _Answer) -> str:
    """The server's own words where it has any."""
    try:
        return str(json.loads(answer.content)["error"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return answer.reason or "no reason given"


def _advice(problem: BaseException | None) -> str:
    """What to look at where there was no connection."""
    if isinstance(problem, ssl.SSLCertVerificationError):
        return "is it the right server? A private authority is named by ca_file (--ca-file)"
    if isinstance(problem, ssl.SSLError) and problem.reason in NO_TLS:
        return "it answers without TLS: is its address http://…?"
    if isinstance(problem, RemoteDisconnected):
        return "is the server running? One with TLS has an https:// address"
    return "is the server running?"


def _milliseconds(microseconds: oip.Scalar | None) -> float | None:
    if isinstance(microseconds, int | float) and 0 <= microseconds < 1e12:
        return float(microseconds) / 1e3
    return None  # not reported, or not a time


def _cause(error: BaseException) -> BaseException:
    """The innermost cause: requests and urllib3 wrap it in several layers."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error
