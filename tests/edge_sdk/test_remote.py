"""Nothing is sent to who has not said who it is: on sockets that end, come back, and answer as another."""

import json
import re
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

from edge_sdk import oip
from edge_sdk.bundle import BUNDLE_KEY, PARTY_KEY, Part
from edge_sdk.errors import RemoteError, RemoteTimeout
from edge_sdk.remote import LONGEST_REST_S, RemotePart
from edge_sdk.tensors import TensorSpec

from ..conftest import read_request

PART = Part(
    "tail0", "server0", (TensorSpec("share_0", "FP32", (None, 4)),), (TensorSpec("logits_0", "FP32", (None, 10)),)
)
FEEDS = {"share_0": np.full((1, 4), 42, np.float32)}
OURS, OTHER = "aa" * 32, "bb" * 32


@contextmanager
def serving_by(*connections):
    """A listener whose connections are each answered by a function of method and request; None ends a connection."""
    listener, seen = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        for number, answer in enumerate(connections):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while request := read_request(connection):
                    method = request.split(b" ", 1)[0].decode()
                    seen.append((number, method))
                    reply = answer(method, request)
                    if reply is None:
                        break
                    connection.sendall(reply)
                    if b"Connection: close" in reply:
                        break

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", seen
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        listener.close()
        thread.join(5)


def _reply(body, *headers):
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


def _party(bundle=OURS, *headers, logit=1.0, calls=99):
    """Answers as a server of that bundle, and ends the connection after so many calls."""
    left = [calls]

    def answer(method, request):
        if not left[0]:
            return None
        left[0] -= 1
        if method == "GET":
            said = {"name": "tail0", "versions": ["1"], "properties": {BUNDLE_KEY: bundle, PARTY_KEY: "server0"}}
            return _reply(json.dumps(said).encode(), *headers)
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)inference-header-content-length: (\d+)", head).group(1).decode()
        asked = oip.decode_request(body, length)
        logits = {"logits_0": np.full((1, 10), logit, np.float32)}
        fields, chunks = oip.encode_response("tail0", "1", logits, request=asked, parameters={})
        return _reply(b"".join(chunks), *(f"{name}: {value}" for name, value in fields.items()), *headers)

    return answer


def _ended_after(calls, **options):
    """The server goes between two calls."""
    inner = _party(**options)
    left = [calls]

    def answer(method, request):
        left[0] -= 1
        reply = inner(method, request)
        return reply if left[0] else reply.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

    return answer


def _logit(remote):
    return remote.ask(FEEDS)[0]["logits_0"][0, 0]


@contextmanager
def _remote(url, timeout_s=3.0):
    remote = RemotePart(PART, url, OURS, timeout_s=timeout_s)
    try:
        yield remote
    finally:
        remote.close()


def test_identity_is_asked_once_a_connection():
    with serving_by(_party()) as (url, seen), _remote(url) as remote:
        assert [_logit(remote) for _ in range(3)] == [1, 1, 1]
    assert seen == [(0, "GET"), (0, "POST"), (0, "POST"), (0, "POST")]


def test_after_a_failure_a_new_connection_is_made():
    """Only where it connects is it seen whose address that is by now."""

    def refuses(method, request):
        return ours(method, request) if method == "GET" else b"HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\n{}"

    ours = _party()
    with serving_by(refuses, ours) as (url, seen), _remote(url) as remote:
        with pytest.raises(RemoteError, match="answered 400"):
            remote.ask(FEEDS)
        assert _logit(remote) == 1
    assert seen == [(0, "GET"), (0, "POST"), (1, "GET"), (1, "POST")]


@pytest.mark.parametrize("announced", [True, False])
def test_whoever_answers_after_a_restart_is_asked_first(announced):
    """Between two calls, with a word or without; the other party is never sent the share."""
    first = _ended_after(2) if announced else _party(calls=2)
    with serving_by(first, _party(OTHER, logit=7)) as (url, seen), _remote(url) as remote:
        assert _logit(remote) == 1
        time.sleep(0.05)
        with pytest.raises(RemoteError, match="serves bundle bbbbbbbbbbbb"):
            remote.ask(FEEDS)
        assert not remote.identified
    assert (1, "POST") not in seen


def test_whoever_answers_after_a_connection_broke_in_a_call_is_asked_first():
    refused = pytest.raises(RemoteError, match="serves bundle bbbbbbbbbbbb")
    with serving_by(_party(calls=1), _party(OTHER, logit=7)) as (url, seen), _remote(url) as remote, refused:
        remote.ask(FEEDS)
    assert seen == [(0, "GET"), (0, "POST"), (1, "GET")]


@pytest.mark.parametrize("calls", [1, 2])
def test_the_same_server_on_a_new_connection_is_asked_again_and_answers(calls):
    with serving_by(_party(calls=calls), _party(logit=2)) as (url, seen), _remote(url) as remote:
        found = [_logit(remote) for _ in range(calls)]
    assert found == [1, 2][2 - calls :]
    assert seen[-2:] == [(1, "GET"), (1, "POST")]


def test_a_server_that_keeps_no_connection_gets_nothing():
    answers = [_party(OURS, "Connection: close") for _ in range(4)]
    refused = pytest.raises(RemoteError, match="must keep connections open")
    with serving_by(*answers) as (url, seen), _remote(url) as remote, refused:
        remote.ask(FEEDS)
    assert {method for _, method in seen} == {"GET"}


def test_who_is_there_and_the_answer_have_the_time_of_one_call():
    def slow(method, request):
        time.sleep(0.6)
        return answer(method, request)

    answer = _party()
    with serving_by(slow) as (url, _), _remote(url, timeout_s=1.0) as remote:
        began = time.monotonic()
        with pytest.raises(RemoteTimeout):
            remote.ask(FEEDS)
        assert 0.9 < time.monotonic() - began < 1.8  # of both calls, 2


def test_the_rest_after_failures_has_an_end():
    with _remote("http://127.0.0.1:9") as remote:
        error = RemoteError("down")
        for _ in range(3000):
            remote.failed(error)
        assert remote.resting is error
        assert remote._rests_until - time.monotonic() <= LONGEST_REST_S
