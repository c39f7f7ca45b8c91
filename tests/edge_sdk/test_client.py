"""The client against real sockets that answer what a broken or busy server would."""

import json
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from edge_sdk.client import Client
from edge_sdk.errors import RemoteError, RemoteRejected, RemoteTimeout

from ..conftest import read_request

X = {"x": np.ones((1, 2), np.float32)}


def _http(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def _good(request_id: str) -> bytes:
    header = json.dumps(
        {
            "model_name": "m",
            "id": request_id,
            "parameters": {"queue_us": 1500, "compute_us": 2500},
            "outputs": [{"name": "y", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4}}],
        }
    ).encode()
    return _http("200 OK", header + np.float32(7).tobytes(), f"Inference-Header-Content-Length: {len(header)}")


@contextmanager
def answering(*answers):
    """A server that gives these answers in turn, one a request.

    None drops the connection, a number does so after as many seconds; a number and an answer are a late answer.
    """
    seen = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        left = list(answers)
        while left:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while left and (request := read_request(connection)):
                    seen.append(request)
                    answer = left.pop(0)
                    if isinstance(answer, float):
                        time.sleep(answer)
                        break
                    if answer is None:
                        break
                    if isinstance(answer, tuple):
                        time.sleep(answer[0])
                        answer = answer[1]
                    connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        listener.close()
        thread.join(5)


def test_an_answer_and_its_timing():
    with answering(_good("r")) as (url, _), Client(url) as client:
        outputs, timing = client.infer("m", X, "r")
    assert outputs["y"].tolist() == [[7.0]]
    assert (timing.queue_ms, timing.compute_ms) == (1.5, 2.5)
    assert timing.round_trip_ms > 0


def test_the_connection_is_kept():
    with answering(_good(""), _good("")) as (url, seen), Client(url) as client:
        client.infer("m", X)
        client.infer("m", X)
    assert len(seen) == 2  # on one connection: the server would wait for the second request on the first


@pytest.mark.parametrize("first", [None, _http("503 Service Unavailable", b'{"error": "warming up"}')])
def test_a_dropped_connection_and_503_are_tried_again(first):
    with answering(first, first, _good("")) as (url, seen), Client(url) as client:
        began = time.monotonic()
        client.infer("m", X)
    assert len(seen) == 3
    assert 0.3 <= time.monotonic() - began < 3  # pauses of 0.1 and 0.2 s


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "429 Too Many Requests", "500 Internal"])
def test_no_other_answer_is_tried_again(status):
    with answering(_http(status, b'{"error": "because"}'), _good("")) as (url, seen), Client(url) as client:
        with pytest.raises(RemoteRejected, match=f"answered {status[:3]}: because") as caught:
            client.infer("m", X)
        assert caught.value.status == int(status[:3])
    assert len(seen) == 1


def test_a_server_that_stays_busy_is_reported():
    busy = _http("503 Service Unavailable", b'{"error": "full"}')
    with answering(*[busy] * 4) as (url, seen), Client(url) as client, pytest.raises(RemoteRejected, match="503: full"):
        client.infer("m", X)
    assert len(seen) == 4


def test_a_busy_server_says_when_to_come_back():
    busy = _http("503 Service Unavailable", b"{}", "Retry-After: 1")
    with answering(busy, _good("")) as (url, seen), Client(url) as client:
        began = time.monotonic()
        client.infer("m", X)
        assert 1 <= time.monotonic() - began < 3
    assert len(seen) == 2
    busy = _http("503 Service Unavailable", b"{}", "Retry-After: 5")
    with answering(busy, _good("")) as (url, seen), Client(url, timeout_s=2) as client:
        began = time.monotonic()
        with pytest.raises(RemoteRejected):  # what would come too late is not waited for
            client.infer("m", X)
        assert time.monotonic() - began < 2


def test_the_server_is_told_how_long_it_is_waited_for():
    late = _http("504 Gateway Timeout", b'{"error": "the deadline passed"}')
    with (
        answering(late) as (url, seen),
        Client(url, timeout_s=2.5) as client,
        pytest.raises(RemoteTimeout, match="504: the deadline passed"),
    ):
        client.infer("m", X)
    assert b'"timeout":2500000' in seen[0]


def test_no_server_is_a_clear_error():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}", retries=1) as client,
        pytest.raises(RemoteError, match=r"no connection in 2 tries .*refused.*is the server running"),
    ):
        client.infer("m", X)


def test_a_silent_server_times_out():
    with answering(2.0) as (url, _), Client(url, timeout_s=0.3) as client:
        began = time.monotonic()
        with pytest.raises(RemoteTimeout, match=r"within 0\.3 s"):
            client.infer("m", X)
        assert time.monotonic() - began < 1.5


def test_retries_end_with_the_timeout():
    busy = _http("503 Service Unavailable", b"{}")
    with answering(*[busy] * 20) as (url, _), Client(url, timeout_s=2, retries=20) as client:
        began = time.monotonic()
        with pytest.raises(RemoteRejected):
            client.infer("m", X)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_http("200 OK", b"garbage"), "not an inference response"),
        (_http("200 OK", b"{}"), "not an inference response"),
        (_http("200 OK", b'{"model_name": "m", "outputs": []}'), "for request '', not 'mine'"),
        (_http("200 OK", b"{}xxxx", "Inference-Header-Content-Length: 99"), "expected an integer from 1"),
        (_http("301 Moved", b"", "Location: http://127.0.0.1:1/"), "answered 301"),
        (_http("302 Found", b"", "Location: http://[::1"), "answered 302"),
    ],
)
def test_an_answer_that_is_none_is_refused(answer, words):
    with answering(answer) as (url, _), Client(url) as client, pytest.raises(RemoteError) as caught:
        client.infer("m", X, "mine")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://host", "http://", "http://host:99999", "http://h:0", "//h"]
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(RemoteError, match="not a server address"):
        Client(url)


@pytest.mark.parametrize("url", ["http://a..b:8000", "http://" + "a" * 70 + ":8000"])
def test_a_host_name_that_is_none_is_an_error_of_ours(url):
    with Client(url, retries=0) as client, pytest.raises(RemoteError):
        client.metadata("m")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e10])
def test_a_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(RemoteError, match="timeout must be"):
        Client("http://127.0.0.1:1", timeout_s=timeout)


def test_an_answer_that_stops_half_way_times_out():
    stalled = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    expected = pytest.raises(RemoteTimeout, match=r"no whole answer .* within 0\.3 s")
    with answering(stalled, 1.0) as (url, _), Client(url, timeout_s=0.3) as client, expected:
        client.infer("m", X)


@pytest.mark.parametrize("where", [20, -5])
def test_an_answer_that_drips_ends_with_the_timeout(where):
    """In its head or its body: every read brings a byte in time, the whole does not."""
    whole = _good("")
    pieces = [whole[:where], *(whole[i : i + 1] for i in range(len(whole))[where:])]
    listener = socket.create_server(("127.0.0.1", 0))

    def drip():
        connection, _ = listener.accept()
        with connection:
            read_request(connection)
            for piece in pieces:
                try:
                    connection.sendall(piece)
                except OSError:
                    return
                time.sleep(0.2)

    thread = threading.Thread(target=drip)
    thread.start()
    with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=1) as client:
        began = time.monotonic()
        with pytest.raises(RemoteTimeout, match=r"within 1 s"):
            client.infer("m", X)
        assert 0.9 < time.monotonic() - began < 1.4
    thread.join()
    listener.close()


def test_all_addresses_of_a_name_have_the_time_of_one_call(monkeypatch):
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(2):  # more than it queues: the next are not answered
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address)] * 4
        monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: found)
        client = stack.enter_context(Client("http://many.test:1", timeout_s=1))
        began = time.monotonic()
        with pytest.raises(RemoteTimeout):
            client.infer("m", X)
        assert 0.9 < time.monotonic() - began < 1.8


def test_a_cookie_is_not_sent_back():
    answers = _http("200 OK", b"{}", "Set-Cookie: who=this"), _http("200 OK", b"{}")
    with answering(*answers) as (url, seen), Client(url) as client:
        client.metadata("m")
        client.metadata("m")
    assert b"cookie" not in seen[1].lower()


def test_a_server_that_does_not_read_times_out():
    listener = socket.create_server(("127.0.0.1", 0))
    big = {"x": np.zeros((1, 2**24), np.float32)}
    with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5) as client:
        began = time.monotonic()
        with pytest.raises(RemoteTimeout):
            client.infer("m", big)
        assert time.monotonic() - began < 1.5
    listener.close()


def test_a_kept_connection_gets_the_next_calls_whole_time():
    with answering(_good(""), 0.4, _good("")) as (url, _), Client(url, timeout_s=1) as client:
        client.infer("m", X)
        time.sleep(0.8)
        client.infer("m", X)


def test_an_endless_answer_is_refused(monkeypatch):
    monkeypatch.setattr("edge_sdk.client.MAX_ANSWER_BYTES", 1000)
    for status, body in (("200 OK", b"x" * 1001), ("200 OK", b"x" * 100_000), ("302 Found", b"x" * 1001)):
        refused = pytest.raises(RemoteError, match="more than 1000 bytes")
        with answering(_http(status, body, "Location: /elsewhere")) as (url, _), Client(url) as client, refused:
            client.infer("m", X)


@pytest.mark.parametrize("body", [b"[]", b"x", b'"m"'])
def test_metadata_that_is_none_is_refused(body):
    with (
        answering(_http("200 OK", body)) as (url, _),
        Client(url) as client,
        pytest.raises(RemoteError, match="answer is not"),
    ):
        client.metadata("m")


def _metadata(versions, bundle="b") -> bytes:
    return _http("200 OK", json.dumps({"versions": versions, "properties": {"edgesdk_bundle_id": bundle}}).encode())


def test_of_many_versions_the_newest_are_asked_and_one_that_has_gone_is_left_out():
    listed = [str(n) for n in range(1, 100_000)] + ["x", "-1", "007", "9" * 400]
    answers = [_metadata(listed), *(_metadata(listed, f"b{n}") for n in range(15)), _http("404 Not Found", b"{}")]
    with answering(*answers) as (url, seen), Client(url) as client:
        found = list(client.identities("m"))
    assert [version for version, _ in found] == [str(n) for n in range(99_999, 99_984, -1)]
    assert found[3][1] == {"edgesdk_bundle_id": "b3"}
    assert len(seen) == 17


def test_all_versions_have_the_time_of_one_call():
    slow = [(1.2, _metadata(["1", "2", "3"])), (1.2, _metadata([])), (1.2, _metadata([])), (1.2, _metadata([]))]
    with answering(*slow) as (url, seen), Client(url, timeout_s=3, retries=0) as client:
        began = time.monotonic()
        with pytest.raises(RemoteTimeout):
            list(client.identities("m"))
        assert time.monotonic() - began < 4.4
    assert len(seen) == 3


def test_a_server_that_lists_no_version_is_asked_for_its_choice():
    for versions in ([], None, ["x"], "1"):
        with answering(_metadata(versions)) as (url, _), Client(url) as client:
            assert list(client.identities("m")) == [("", {"edgesdk_bundle_id": "b"})]


@pytest.mark.parametrize(
    "url", ["http://alice:s3cret@127.0.0.1:9", "http://127.0.0.1:9/?a=s3cret", "http://127.0.0.1:9#s3cret"]
)
def test_an_address_with_more_than_an_address_is_refused_and_not_shown(url):
    with pytest.raises(RemoteError, match="a user, a password, a query or a fragment") as error:
        Client(url)
    assert "s3cret" not in str(error.value)
