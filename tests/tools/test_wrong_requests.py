"""What tools/fuzz_server.py sends: as many requests as are asked for, the same for the same seed."""

import importlib
import multiprocessing
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

import pytest

from ..conftest import ROOT

COUNT = 1500


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module


@pytest.fixture
def right(tool, tmp_path):
    return tool("right_request").Right(tool("bench_models").tiny(tmp_path))


def test_over_http(tool, right):
    mutators = [tool("wrong_http").Mutator(right, 5) for _ in range(2)]
    # In turns: what one changes must not be what the other begins with.
    pairs = [[mutator.requests() for mutator in mutators] for _ in range(COUNT)]
    assert all(first == second for first, second in pairs)
    assert {len(first) for first, _ in pairs} == {1, 2, 8, 40}  # sent before the first is answered
    requests = {request for first, _ in pairs for request in first}
    assert len(requests) > COUNT / 2
    targets = [request.split(b" ")[1] for request in requests]
    for odd in (b"%0A", b"%00", b"%2F", b"//", b"/v2/repository/models/tail/"):
        assert any(odd in target for target in targets), odd
    assert max(map(len, targets)) > 9000


BODY = b'{"timeout": 1000}'
WHOLE = b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CUT = WHOLE.replace(b"Length: 1", b"Length: 9")


def _became(wrong_http, manner, *requests, times=1):
    """Of requests that are sent to a server which gives a connection, with the bytes that came, to ``manner``."""

    def serve():
        for _ in range(times):
            connection, _ = listener.accept()
            with connection:
                manner(connection, connection.recv(2**16))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        sender = wrong_http.Sender(f"http://127.0.0.1:{listener.getsockname()[1]}")
        for _ in range(times):
            sender.send(*requests)
        thread.join()
    return dict(sender.statuses)


def _waits(connection):
    """For more, as a server does whose request is not whole; it is told that there is none."""
    connection.settimeout(5)
    assert connection.recv(1) == b""


def _answers(status, after=0.0):
    def manner(connection, request):
        time.sleep(after)
        connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % status)

    return manner


def test_a_silent_server_is_found(tool, monkeypatch):
    wrong_http = tool("wrong_http")
    monkeypatch.setattr(wrong_http, "SECONDS", 1.0)
    for request in (WHOLE, CUT):
        found = _became(wrong_http, lambda connection, request: time.sleep(2), request)
        assert found == {wrong_http.NO_ANSWER: 1}
    assert wrong_http.NO_ANSWER not in wrong_http.FINE

    def stops(connection, request):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(2)

    assert _became(wrong_http, stops, WHOLE) == {wrong_http.NO_ANSWER: 1}


@pytest.mark.parametrize("after", [0.0, 0.6])  # the second where it is no more waited for as for most
def test_an_answer_is_judged_however_late(tool, after):
    wrong_http = tool("wrong_http")
    assert _became(wrong_http, _answers(b"500 No", after), WHOLE) == {"500": 1}
    assert _became(wrong_http, _answers(b"400 No", after), WHOLE) == {"400": 1}
    assert "400" in wrong_http.FINE
    assert "500" not in wrong_http.FINE


def test_a_request_that_is_not_whole_is_answered_or_its_connection_closed(tool):
    wrong_http = tool("wrong_http")
    assert _became(wrong_http, lambda connection, request: _waits(connection), CUT) == {wrong_http.WAITED: 1}

    def fails(connection, request):
        _waits(connection)
        _answers(b"500 No")(connection, request)

    assert _became(wrong_http, fails, CUT) == {"500": 1}
    assert wrong_http.WAITED in wrong_http.FINE


def test_who_hangs_up_on_one_whole_request_is_found(tool):
    wrong_http = tool("wrong_http")

    def hangs_up(connection, request):
        pass

    assert _became(wrong_http, hangs_up, WHOLE, times=3) == {wrong_http.LOST: 3}
    assert _became(wrong_http, hangs_up, CUT) == {wrong_http.HUNG_UP: 1}  # it may be none
    assert _became(wrong_http, hangs_up, WHOLE, WHOLE) == {wrong_http.HUNG_UP: 1}  # or stand behind a wrong one
    assert _became(wrong_http, lambda connection, request: connection.sendall(b"what?\r\n"), WHOLE) == {
        wrong_http.NO_HTTP: 1
    }
    assert wrong_http.HUNG_UP in wrong_http.FINE
    assert not {wrong_http.LOST, wrong_http.NO_HTTP} & wrong_http.FINE


@pytest.mark.parametrize(
    ("timeout", "own"), [(b"1000", True), (b"50000000", False), (b"0", False), (b"-1", False), (b'"1000"', False)]
)
def test_504_is_for_a_timeout_of_the_requests_own(tool, timeout, own):
    wrong_http = tool("wrong_http")
    body = b'{"timeout": %b}' % timeout
    request = b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    found = _became(wrong_http, _answers(b"504 Late", 0.05), request)
    assert found == ({wrong_http.OWN_TIMEOUT: 1} if own else {"504": 1})
    assert "504" not in wrong_http.FINE


def test_what_is_sent_is_whole_where_its_framing_is_kept(tool, right):
    wrong_http = tool("wrong_http")
    mutator = wrong_http.Mutator(right, 3)
    found = Counter(wrong_http.is_whole(mutator.request()) for _ in range(COUNT))
    assert 0.9 < found[True] / COUNT < 0.96  # a twentieth has another length, some of them twice or another coding
    chunked = b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert wrong_http.is_whole(chunked)
    assert not wrong_http.is_whole(CUT)
    assert not wrong_http.is_whole(WHOLE.replace(b"Host: x", b"Content-Length: 3"))


def test_over_grpc(tmp_path):
    """In a process of its own: one cannot hold both our service definition and that of Triton's client."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        process.submit(_over_grpc, tmp_path).result()


def _over_grpc(folder):
    sys.path.insert(0, str(ROOT / "tools"))
    from google.protobuf.message import DecodeError

    from cloud.protobuf.open_inference_pb2 import ModelInferRequest

    right = importlib.import_module("right_request").Right(importlib.import_module("bench_models").tiny(folder))
    mutators = [importlib.import_module("wrong_grpc").MessageMutator(right, 5) for _ in range(2)]
    pairs = [[mutator.call() for mutator in mutators] for _ in range(COUNT)]
    assert all(path == again for (path, _), (again, _) in pairs)
    asked = [content for (path, content), _ in pairs if path == "/inference.GRPCInferenceService/ModelInfer"]
    assert len({path for (path, _), _ in pairs}) > 10

    def decodes(content: bytes) -> bool:
        try:
            ModelInferRequest.FromString(content)
        except DecodeError:
            return False
        return True

    assert len(asked) * 0.1 < sum(map(decodes, asked)) < len(asked) * 0.9
