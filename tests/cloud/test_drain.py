"""A server that stops before it has answered all: it says how much is lost, and its exit status does."""

import gzip
import http.client
import re
import signal
import socket
from contextlib import ExitStack

import numpy as np
import pytest
import requests

from edge_sdk import oip

from ..conftest import held_port, serving, wait_until

MOST_ROWS = 512
"""Of a request, in batches of 1."""

SLOW = ["--drain-seconds", "0.05", "--max-batch", "1", "--threads", "1", "--max-waiting", "40000"]


def _request(rows, *, compressed=False, chunked=False):
    """As its bytes; one in chunks is answered by the application, others on their connection."""
    headers, chunks = oip.encode_request({"features": np.zeros((rows, 12, 8, 8), np.float32)})
    body = b"".join(chunks)
    if compressed:
        body, headers = gzip.compress(body), {**headers, "Content-Encoding": "gzip"}
    if chunked:
        headers, body = {**headers, "Transfer-Encoding": "chunked"}, b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    else:
        headers = {**headers, "Content-Length": str(len(body))}
    lines = ["POST /v2/models/tail/infer HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


REQUESTS = [_request(MOST_ROWS, compressed=True)] * 10 + [_request(1), _request(1, chunked=True)] * 5
"""The first keep it at work for seconds, the others wait; each is small enough for the system to take at once."""


def _have_arrived(url, count):
    """Whether so many requests have, by what waits and has been answered; one runs, or has just begun to."""
    text = requests.get(f"{url}/metrics", timeout=60).text
    waiting, done = (
        float(re.findall(rf"^nv_inference_{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)[0])
        for name in ("pending_request_count", "request_success")
    )
    return waiting and waiting + done + 1 >= count


def _is_answered(raw):
    answer = http.client.HTTPResponse(raw)
    try:
        answer.begin()
        answer.read()
    except (http.client.HTTPException, ConnectionError):
        return False
    assert answer.status == 200
    return True


@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
def test_what_a_short_drain_leaves_is_counted(bundle, options):
    with serving(bundle / "server0", *SLOW, *options) as (url, process), ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        connections = []
        for request in REQUESTS:
            raw = stack.enter_context(socket.create_connection((host, int(port)), 60))
            raw.sendall(request)
            connections.append(raw)
        half = stack.enter_context(socket.create_connection((host, int(port)), 60))
        half.sendall(REQUESTS[0][:-1])  # of which nothing is owed
        wait_until(lambda: _have_arrived(url, 3))
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
        lines = process.stderr.read().splitlines()
        lost = len(REQUESTS) - sum(map(_is_answered, connections))
    assert status == 1
    assert lost > 0
    told = [re.fullmatch(r"\S+ ERROR edgesdk.cloud: accepted requests were lost lost=(\d+) drain_s=0.05", line)
            for line in lines]  # fmt: skip
    assert None not in told, lines
    assert sum(int(each[1]) for each in told) == lost


def test_a_request_that_has_not_arrived_is_not_lost(bundle):
    with serving(bundle / "server0", "--drain-seconds", "0.2") as (url, process):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 60) as raw:
            raw.sendall(_request(1)[:-1])
            assert requests.get(f"{url}/v2/health/live", timeout=60).ok
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_calls_over_grpc_are_counted_too(bundle):
    grpc = pytest.importorskip("grpc", reason="needs edgesdk[grpc]")
    from tritonclient.grpc import service_pb2 as messages

    call = messages.ModelInferRequest(model_name="tail")
    call.inputs.add(name="features", datatype="FP32", shape=[MOST_ROWS, 12, 8, 8])
    call.raw_input_contents.append(bytes(MOST_ROWS * 768 * 4))
    content = call.SerializeToString()
    with (
        held_port() as port,
        serving(bundle / "server0", *SLOW, "--grpc-port", str(port)) as (url, process),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        calls = [infer.future(content, timeout=120) for _ in range(10)]
        wait_until(lambda: _have_arrived(url, len(calls)))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 1
        lost = sum(call.exception() is not None for call in calls)
        (line,) = process.stderr.read().splitlines()
    assert f"accepted requests were lost lost={lost} " in line
