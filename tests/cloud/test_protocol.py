"""Clients that send slowly, or headers without end."""

import asyncio
import threading
import time

import pytest
import requests

import cloud.protocol
from cloud.protocol import GuardedProtocol

from ..conftest import serving, uvicorn_here, wait_until


async def _application(scope, receive, send):
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def connect(monkeypatch):
    """Connections to a server in a thread, which waits a second for a whole request."""
    monkeypatch.setattr(cloud.protocol, "RECEIVE_SECONDS", 1)
    monkeypatch.setattr(cloud.protocol, "LOOK_SECONDS", 0.1)
    with uvicorn_here(_application, GuardedProtocol, timeout_keep_alive=3) as (connection, _):
        yield connection


@pytest.fixture
def patient():
    """The same of a server that only counts bytes, not seconds."""
    with uvicorn_here(_application, GuardedProtocol) as (connection, _):
        yield connection


REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize("sent_at_once", [0, 20, len(REQUEST) - 3])
def test_a_slow_client_is_hung_up_on(connect, sent_at_once):
    """Within its headers or its body: a byte every tenth of a second, and never the last one."""
    with connect() as raw:
        began = time.monotonic()
        raw.sendall(REQUEST[:sent_at_once])
        for i in range(sent_at_once, min(sent_at_once + 3, len(REQUEST) - 1)):
            time.sleep(0.1)
            raw.sendall(REQUEST[i : i + 1])
        assert raw.recv(100) == b""
        assert 0.9 < time.monotonic() - began < 2


def test_a_silent_connection_is_hung_up_on(connect):
    with connect() as raw:
        began = time.monotonic()
        assert raw.recv(100) == b""
        assert 0.9 < time.monotonic() - began < 2


def test_a_connection_may_rest_between_requests(connect):
    with connect() as raw:
        for _ in range(2):
            raw.sendall(REQUEST)
            assert raw.recv(1000).endswith(b"ok")
            time.sleep(1.3)  # longer than a request may take to arrive


@pytest.mark.parametrize("before", [b"", REQUEST])
def test_an_empty_line_does_not_hold_a_connection(connect, before):
    with connect() as raw:
        raw.sendall(before)
        if before:
            assert raw.recv(1000).endswith(b"ok")
        raw.sendall(b"\r\n")
        began = time.monotonic()
        assert raw.recv(100) == b""
        assert time.monotonic() - began < 1.5


def test_a_client_that_takes_no_answer_is_hung_up_on(monkeypatch):
    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not ended.is_set():
            await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})
            sent.append(1)

    sent, ended = [], threading.Event()
    monkeypatch.setattr(cloud.protocol, "RECEIVE_SECONDS", 0.5)
    monkeypatch.setattr(cloud.protocol, "LOOK_SECONDS", 0.1)
    with uvicorn_here(application, GuardedProtocol) as (connect, server), connect() as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_until(lambda: sent and not server.server_state.connections, seconds=5)
        ended.set()


def test_a_trailer_without_end_is_not_kept(patient):
    """The headers that may follow a chunked body: whole ones, and one that never ends."""
    body = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    for trailer in (b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(4000)), b"X: " + b"a" * 4_000_000):
        with patient() as raw:
            try:
                raw.sendall(body + trailer)
                assert raw.recv(1000)[:12] in (b"", b"HTTP/1.1 400")
            except (ConnectionResetError, BrokenPipeError):
                pass  # hung up on before all was sent


def test_a_head_that_comes_at_once_is_counted_too(connect):
    with connect() as raw:
        lines = b"".join(b"X-%d: %s\r\n" % (i, b"a" * 100) for i in range(400))
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("pieces", [1, 40])
def test_headers_without_end_are_refused(connect, pieces):
    head = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(pieces, 40))
    head = head if pieces == 1 else b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000
    with connect() as raw:
        try:
            for start in range(0, len(head), len(head) // pieces):
                raw.sendall(head[start : start + len(head) // pieces])
                time.sleep(0.001)
            answer = raw.recv(1000)
        except (ConnectionResetError, BrokenPipeError):
            return  # hung up on before all was sent
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"headers of more than 32768 bytes" in answer


def test_requests_that_come_at_once_are_not_taken_for_headers(patient):
    with patient() as raw:
        raw.sendall(REQUEST * 5000 + b"GET")
        received = b""
        while received.count(b"ok") < 5000:
            more = raw.recv(1 << 20)
            assert more, "hung up on"
            assert b" 400 " not in more
            received += more


def test_long_bodies_are_none_of_its_business(connect):
    with connect() as raw:
        raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\n" + bytes(200_000))
        assert raw.recv(1000).endswith(b"ok")


async def _answers_unread(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_no_more_requests_are_read_than_are_answered():
    """One connection that asks on and on fills no memory: it is read when what was read has been answered."""
    count = 30_000
    with uvicorn_here(_answers_unread, GuardedProtocol) as (connect, server), connect() as raw:
        request = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % (b"x" * 40)
        asking = threading.Thread(target=raw.sendall, args=(request * count,), daemon=True)
        asking.start()
        received = 0
        while received < count:
            more = raw.recv(1 << 20)
            assert more, "hung up on"
            received += more.count(b"ok")
            assert all(len(each.pipeline) < 8192 for each in list(server.server_state.connections))
        asking.join()


def test_a_client_that_asks_without_end_is_hung_up_on(monkeypatch, patient):
    """What reads a body reads on: then it is the number that counts."""
    monkeypatch.setattr(cloud.protocol, "MAX_PIPELINED", 100)
    with patient() as raw:
        received = b""
        try:
            raw.sendall(REQUEST * 5000)
            while more := raw.recv(1 << 20):
                received += more
        except (ConnectionResetError, BrokenPipeError):
            pass
        assert received.count(b"ok") < 5000


async def _slow(scope, receive, send):
    await asyncio.sleep(0.02)
    await _application(scope, receive, send)


def test_nonsense_is_not_refused_before_what_came_before_it_is_answered(caplog):
    with uvicorn_here(_slow, GuardedProtocol) as (connect, _), connect() as raw:
        raw.sendall(REQUEST)
        assert raw.recv(100).endswith(b"ok")
        raw.sendall(REQUEST * 3 + b"GET\r\n\r\n")
        received = b""
        try:
            while more := raw.recv(100):
                received += more
        except ConnectionResetError:
            pass
        assert b" 400 " not in received
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_who_asks_for_another_protocol_fills_no_log(bundle):
    with serving(bundle / "server0") as (url, process):
        for wanted in ("websocket", "h2c"):
            headers = {"Connection": "Upgrade", "Upgrade": wanted}
            assert requests.get(f"{url}/v2/health/live", headers=headers).status_code == 200
        process.terminate()
        assert process.stderr.read() == ""
