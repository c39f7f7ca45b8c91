"""What tools/load.py makes of a server's answers, with real connections to a server of any manners."""

import asyncio
import importlib
import socket
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from edge_sdk import oip

from ..conftest import ROOT

SECONDS = 0.3


@pytest.fixture(scope="module")
def load():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        yield importlib.import_module("load")


@pytest.fixture(scope="module")
def questions(load, tmp_path_factory):
    return load.Questions(importlib.import_module("bench_models").tiny(tmp_path_factory.mktemp("tiny")))


def _read(connection):
    """A request's id; None where there is none any more."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (chunk := connection.recv(2**16)):
            return None
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    while len(body) < int(fields[b"content-length"]):
        body += connection.recv(2**16)
    return oip.decode_request(body, fields[oip.HEADER_LENGTH.lower().encode()].decode()).id


@contextmanager
def _served(manner):
    """The address of a server that gives each connection to ``manner(connection)``, and then closes it."""

    def serve(connection):
        with connection, suppress(OSError):
            manner(connection)

    def accept():
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def _outcomes(load, questions, url):
    """Of two clients for a while. It would not end if a connection had left the pool."""

    async def run():
        sender = load.Load(url, questions, 2)
        await sender.closed(SECONDS, 2)
        await sender.opened(SECONDS, 100)
        await sender.closed(0, 2)
        assert sender._free.qsize() == 2
        await sender.hang_up()
        return sender

    sender = asyncio.run(run())
    assert len(sender.outcomes) == sender._sent > 5
    return sender.outcomes


def _verdicts(load, questions, manner):
    with _served(manner) as url:
        return {(each.status, each.right) for each in _outcomes(load, questions, url)}


def _answer(load, questions, request_id, *, name="logits", shift=0.0, shape=(1, 10)):
    outputs = {name: np.resize(questions.answers[int(request_id) % load.KINDS] + shift, shape).astype(np.float32)}
    asked = oip.InferRequest({}, request_id, {"binary_data_output": True})
    headers, chunks = oip.encode_response("tail", "1", outputs, request=asked, parameters={})
    return headers, b"".join(chunks)


def _http(headers, body, status="200 OK", length=None):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    length = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\n{lines}Content-Length: {length}\r\n\r\n".encode() + body


def _always(reply):
    def manner(connection):
        while (request_id := _read(connection)) is not None:
            connection.sendall(reply(request_id))

    return manner


def test_the_right_answer_to_each_is_right(load, questions):
    seen = set()

    def reply(request_id):
        seen.add(request_id)
        return _http(*_answer(load, questions, request_id))

    assert _verdicts(load, questions, _always(reply)) == {(200, True)}
    assert len(seen) > 5


@pytest.mark.parametrize(
    "wrong",
    [{"shift": 1.0}, {"shift": np.nan}, {"name": "other"}, {"shape": (1, 3)}, {"shape": (1, 1)}, {"shape": (2, 10)}],
    ids=str,
)
def test_another_answer_is_wrong(load, questions, wrong):
    manner = _always(lambda request_id: _http(*_answer(load, questions, request_id, **wrong)))
    assert _verdicts(load, questions, manner) == {(200, False)}


def test_the_answer_to_another_request_is_wrong(load, questions):
    manner = _always(lambda request_id: _http(*_answer(load, questions, str(int(request_id) + load.KINDS))))
    assert _verdicts(load, questions, manner) == {(200, False)}


@pytest.mark.parametrize(
    "broken",
    [
        lambda headers, body: _http({}, b"no JSON"),
        lambda headers, body: _http(headers, body[:-4]),
        lambda headers, body: _http({**headers, oip.HEADER_LENGTH: "many"}, body),
        lambda headers, body: _http(headers, body, length="many"),
        lambda headers, body: _http(headers, body, length=-1),
        lambda headers, body: b"HTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_an_answer_that_cannot_be_read_is_wrong_and_its_connection_is_replaced(load, questions, broken):
    manner = _always(lambda request_id: broken(*_answer(load, questions, request_id)))
    assert _verdicts(load, questions, manner) == {(200, False)}


def test_an_answer_that_ends_early_is_wrong(load, questions):
    def manner(connection):
        connection.sendall(_http(*_answer(load, questions, _read(connection)))[:-4])

    assert _verdicts(load, questions, manner) == {(200, False)}


@pytest.mark.parametrize("head", [b"", b"HTTP/1.1 200", b"what?\r\n\r\n", b"HTTP/1.1 fine\r\n\r\n", b"a" * 100_000])
def test_what_was_read_and_got_no_answer_is_told_from_what_was_not(load, questions, head):
    def manner(connection):
        _read(connection)
        connection.sendall(head)

    assert _verdicts(load, questions, manner) == {(load.NO_ANSWER, False)}


def test_a_request_that_was_not_read_was_not_taken(load, questions):
    def manner(connection):
        connection.recv(1)

    assert _verdicts(load, questions, manner) == {(load.NOT_TAKEN, False)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    assert {each.status for each in _outcomes(load, questions, url)} == {load.NOT_TAKEN}


def test_a_connection_that_ends_after_an_answer_has_taken_nothing_more(load, questions):
    def manner(connection):
        connection.sendall(_http(*_answer(load, questions, _read(connection))))
        time.sleep(0.001)  # in which the next request has come, or has not

    assert _verdicts(load, questions, manner) == {(200, True), (load.NOT_TAKEN, False)}


def test_one_that_the_server_says_ends_is_not_used_again(load, questions):
    def manner(connection):
        headers, body = _answer(load, questions, _read(connection))
        connection.sendall(_http({**headers, "Connection": "Close"}, body))

    assert _verdicts(load, questions, manner) == {(200, True)}


@pytest.mark.parametrize(("headers", "right"), [({"Retry-After": "1"}, True), ({}, False)])
def test_a_refusal_says_when_to_come_again(load, questions, headers, right):
    manner = _always(lambda request_id: _http(headers, b"{}", "503 Service Unavailable"))
    assert _verdicts(load, questions, manner) == {(503, right)}


def test_sigterm_may_refuse_and_must_lose_nothing(load):
    after = importlib.import_module("overload").after_sigterm

    def outcome(request_id, status, *, right=False):
        return load.Outcome(request_id, status, 1.0, right)

    well = [outcome("1", 200, right=True), outcome("2", 503, right=True), outcome("3", load.NOT_TAKEN)]
    assert after(well, {"1"})[0]
    assert not after(well, {"1", "3"})[0]  # the log says so, and it has not come
    assert not after(well, set())[0]
    for bad in (outcome("4", load.NO_ANSWER), outcome("4", 200), outcome("4", 500), outcome("4", 503)):
        assert not after([*well, bad], {"1"})[0], bad
