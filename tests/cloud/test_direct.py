"""Which calls are answered without ASGI, and that those behave on their connection as HTTP/1.1 says."""

import gzip
import http.client
import os
import socket
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cloud.direct import Direct, DirectProtocol
from cloud.guard import Guard, Limits
from cloud.infer import InferHandler
from cloud.models import Model
from edge_sdk import oip
from edge_sdk.backends.onnxruntime import OnnxRuntimeBackend

from ..conftest import again_and_again, serving, uvicorn_here

FEATURES = np.random.default_rng(0).random((1, 12, 8, 8), np.float32)
PATH = "/v2/models/tail/infer"
LIMIT = 1_000_000


async def _application(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 299, "headers": [(b"content-length", b"4")]})
    await send({"type": "http.response.body", "body": b"ASGI"})


@pytest.fixture
def model(bundle):
    model = Model("tail", OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes(), 1), {})
    yield model
    model.close()


@contextmanager
def _serving(model, limits=None, max_body_bytes=LIMIT):
    """Connections to a server in a thread, whose application does nothing."""
    infer = InferHandler(max_body_bytes, {PATH.encode(): model}.get)
    direct = Direct(infer, Guard(_application, None, limits) if limits else None)
    with uvicorn_here(_application, partial(DirectProtocol, direct=direct)) as served:
        yield served


@pytest.fixture
def connect(model):
    with _serving(model) as (connect, _):
        yield connect


def _call(request_id="", *lines, path=PATH, version="1.1", method="POST", features=FEATURES):
    headers, chunks = oip.encode_request({"features": features}, request_id)
    body = b"".join(chunks)
    named = {"Host": "x", **headers, "Content-Length": len(body)}
    head = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in named.items()), *lines]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def _answers(raw, count):
    """Status, headers and body of each."""
    found = []
    stream = raw.makefile("rb")
    for _ in range(count):
        status = stream.readline()
        if not status:
            return found
        headers = http.client.parse_headers(stream)
        found.append((int(status.split()[1]), headers, stream.read(int(headers["content-length"]))))
    return found


def _id(answer):
    status, headers, body = answer
    assert status == 200
    return oip.decode_response(body, headers[oip.HEADER_LENGTH]).id


def test_a_call_is_answered_without_the_application(connect, model):
    with connect() as raw:
        for k in range(3):
            raw.sendall(_call(str(k)))
            [answer] = _answers(raw, 1)
            assert _id(answer) == str(k)
            assert "date" in answer[1]
    assert model.statistics.success.count == 3


@pytest.mark.parametrize("pause_after", [10, 200, 2000])
def test_a_call_may_come_in_pieces(connect, pause_after):
    call = _call("a")
    with connect() as raw:
        raw.sendall(call[:pause_after])
        time.sleep(0.1)
        raw.sendall(call[pause_after:])
        assert _id(_answers(raw, 1)[0]) == "a"


@pytest.mark.parametrize(
    "request_bytes",
    [
        _call(path="/v2/models/other/infer"),
        _call(path=f"{PATH}?x=1"),
        _call(path="/v2/models/t%61il/infer"),
        _call(method="PUT"),
        _call("", "Expect: 100-continue"),
        _call(version="1.0"),
        b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % PATH.encode(),
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (PATH.encode(), LIMIT + 1),
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %b%d\r\n\r\n" % (PATH.encode(), b"0" * 20, LIMIT + 1),
        b"POST %b HTTP/1.1\r\nHost: x\r\n\r\n" % PATH.encode(),
    ],
    ids=[
        "another model",
        "query",
        "escaped path",
        "PUT",
        "expects 100",
        "HTTP 1.0",
        "chunked",
        "too long",
        "too long behind zeros",
        "no length",
    ],
)
def test_what_is_unusual_goes_to_the_application(connect, request_bytes):
    with connect() as raw:
        raw.sendall(request_bytes)
        if b"Expect" in request_bytes:
            assert raw.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        if b"%d" % (LIMIT + 1) in request_bytes:
            raw.sendall(bytes(LIMIT + 1))
        assert _answers(raw, 1)[0][2] == b"ASGI"


def test_calls_that_come_at_once_are_answered_in_their_order(connect):
    """The first by itself; the others wait for it, and then go the usual way."""
    other = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect() as raw:
        raw.sendall(_call("a") + other + _call("b") + other)
        first, *rest = _answers(raw, 4)
        assert _id(first) == "a"
        assert [body for _, _, body in rest] == [b"ASGI"] * 3
        raw.sendall(_call("c"))
        assert _id(_answers(raw, 1)[0]) == "c"


def test_a_bad_call_costs_its_client_no_connection(connect):
    with connect() as raw:
        raw.sendall(_call(features=FEATURES * np.float32(np.nan)))
        raw.sendall(_call("a"))
        (status, _, body), good = _answers(raw, 2)
        assert (status, b"not finite" in body) == (400, True)
        assert _id(good) == "a"


def test_a_connection_that_shall_close_does(connect):
    with connect() as raw:
        raw.sendall(_call("a", "Connection: close"))
        [answer] = _answers(raw, 1)
        assert _id(answer) == "a"
        assert answer[1]["connection"] == "close"
        assert raw.recv(1) == b""


@pytest.mark.parametrize("sent", [300, None])
def test_a_client_that_leaves_is_noted_and_forgotten(model, sent):
    """In the middle of its body, or before its answer; neither is under way any more afterwards."""
    with _serving(model, Limits(max_concurrency=1)) as (connect, _):
        with connect() as raw:
            raw.sendall(_call()[:sent])
            time.sleep(0.1 if sent else 0)
        deadline = time.monotonic() + 5
        while not (model.statistics.failures or model.statistics.success.count) and time.monotonic() < deadline:
            time.sleep(0.01)
        # Before its answer, it may have been answered already.
        assert list(model.statistics.failures) in ([["CANCELED"]] if sent else [["CANCELED"], []])
        with connect() as raw:
            raw.sendall(_call("a"))
            assert _id(_answers(raw, 1)[0]) == "a"


def test_what_a_client_that_left_has_queued_is_not_run(model):
    """One that stays has its turn next; nobody's slot is lost."""
    features = np.repeat(FEATURES, 200, 0)
    with _serving(model, Limits(max_concurrency=9)) as (connect, _), connect() as stays:
        stays.sendall(_call("first", features=features))
        for _ in range(8):
            with connect() as leaves:
                leaves.sendall(_call("", features=features))
                time.sleep(0.01)
        assert _id(_answers(stays, 1)[0]) == "first"
        stays.sendall(_call("last"))
        assert _id(_answers(stays, 1)[0]) == "last"
    assert model.statistics.failures["CANCELED"].count + model.statistics.success.count == 10
    assert model.statistics.failures["CANCELED"].count >= 6


def _packed(rows=4000):
    """A few bytes that unpack to 12 MB."""
    headers, chunks = oip.encode_request({"features": np.zeros((rows, 12, 8, 8), np.float32)})
    return {**headers, "Content-Encoding": "gzip"}, gzip.compress(b"".join(chunks), 1)


def _long_json(rows=2000):
    tensor = b'{"name":"features","shape":[%d,12,8,8],"datatype":"FP32","data":[%b0]}'
    return {}, b'{"inputs":[' + tensor % (rows, b"0," * (rows * 12 * 8 * 8 - 1)) + b"]}"


@pytest.mark.parametrize("made", [_packed, _long_json])
def test_a_client_that_leaves_while_its_call_is_read_is_not_run_for(bundle, made):
    """It has left before its body is unpacked and decoded."""
    headers, body = made()
    head = [f"POST {PATH} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    call = "\r\n".join([*head, f"Content-Length: {len(body)}"]).encode() + b"\r\n\r\n" + body
    model = Model("tail", OnnxRuntimeBackend((bundle / "server0" / "tail.onnx").read_bytes(), 1), {})
    try:
        with _serving(model, Limits(max_concurrency=1), max_body_bytes=64 * LIMIT) as (connect, _):
            with connect() as raw:
                raw.sendall(call)
            deadline = time.monotonic() + 20
            while not (model.statistics.failures or model.statistics.success.count) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert model.statistics.failures["CANCELED"].count == 1
            assert model.statistics.execution_count == 0
            with connect() as raw:  # and its place is free
                raw.sendall(_call("a"))
                assert _id(_answers(raw, 1)[0]) == "a"
    finally:
        model.close()


def test_whom_the_guard_refuses_is_told_by_the_application(model):
    with _serving(model, Limits(max_rate=1)) as (connect, _), connect() as raw:
        raw.sendall(_call("a"))
        assert _id(_answers(raw, 1)[0]) == "a"
        raw.sendall(_call("b"))
        assert _answers(raw, 1)[0][2] == b"ASGI"


def test_a_call_is_counted_once(bundle, tmp_path):
    """Refused on the connection, then told so by the application."""
    (tmp_path / "token").write_text("secret\n")
    with serving(bundle / "server0", "--token-file", str(tmp_path / "token"), "--max-rate", "2") as (url, _):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 5) as raw:
            raw.sendall(_call() * 3)
            assert [status for status, _, _ in _answers(raw, 3)] == [401, 401, 429]


def test_a_server_that_stops_answers_what_it_has_begun(model):
    calls = _call("a")
    with _serving(model) as (connect, server), connect() as raw:
        raw.sendall(calls[:-10])
        time.sleep(0.2)
        server.should_exit = True
        with pytest.raises(ConnectionRefusedError):  # it stops
            again_and_again(lambda: connect().close())
        raw.sendall(calls[-10:])
        [answer] = _answers(raw, 1)
        assert _id(answer) == "a"
        assert answer[1]["connection"] == "close"


def test_a_client_that_reads_nothing_fills_no_memory(model):
    """The system holds some megabytes of answers for it; the server then takes no more calls."""
    call = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % PATH.encode()
    with _serving(model) as (connect, _), connect() as raw:
        raw.settimeout(1)
        with pytest.raises(TimeoutError):
            _send_for_ever(raw, call * 1000)
        answered = model.statistics.failures["OTHER"].count
        time.sleep(0.5)
        assert model.statistics.failures["OTHER"].count == answered
        assert answered > 0


def _send_for_ever(raw, data):
    for _ in range(200):
        raw.sendall(data)


def test_what_was_asked_is_not_kept_with_an_idle_connection(bundle):
    def resident_mib(process):
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    body = bytes(4 * 2**20)
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: 9\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with serving(bundle / "server0") as (url, process), ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        before = resident_mib(process)
        for _ in range(30):
            raw = stack.enter_context(socket.create_connection((host, int(port)), 10))
            raw.sendall(head.encode() + body)
            ((status, *_),) = _answers(raw, 1)
            assert status == 400
        assert resident_mib(process) < before + 60
