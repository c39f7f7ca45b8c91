"""Who is let in over gRPC, before what is sent; how many at once, and for how long."""

import asyncio
import re
import signal
import socket
import struct
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ..conftest import held_port, serving, wait_until

grpc = pytest.importorskip("grpc", reason="needs edgesdk[grpc]")
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402

from cloud import grpc_calls, grpc_health  # noqa: E402

SERVICE = "/inference.GRPCInferenceService"
ONE = [("grpc.use_local_subchannel_pool", 1)]  # a connection of each channel's own
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def _serving(bundle, *options):
    """gRPC's address and the process."""
    with held_port() as port, serving(bundle / "server0", "--grpc-port", str(port), *options) as (_, process):
        yield f"127.0.0.1:{port}", process


def _answers(call):
    """What it does, once the server knows that somebody has left."""
    try:
        return call()
    except grpc.RpcError:
        return None


class _Silent:
    """A call whose message never comes: only of such a stream can a client's library be told to wait with it."""

    def __init__(self, channel, method=f"{SERVICE}/ModelInfer", **how):
        self._end = threading.Event()
        self.call = channel.stream_unary(method).future(self._nothing(), timeout=60, **how)

    def _nothing(self):
        self._end.wait()
        return
        yield

    def status(self, seconds=3):
        """Its status; None where the server still waits for the message."""
        try:
            return self.call.exception(seconds).code().name
        except grpc.FutureTimeoutError:
            return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.call.cancel()
        self._end.set()


def test_a_wrong_token_is_refused_before_the_message_is_there(bundle, tmp_path):
    (tmp_path / "token").write_text("secret\n")
    right, wrong = (("authorization", "Bearer secret"),), (("authorization", "Bearer guess"),)
    with (
        _serving(bundle, "--token-file", str(tmp_path / "token")) as (address, _),
        grpc.insecure_channel(address) as channel,
    ):
        for method in ("ModelInfer", "ServerLive", "RepositoryModelLoad"):
            with _Silent(channel, f"{SERVICE}/{method}", metadata=wrong) as refused:
                assert refused.status() == "UNAUTHENTICATED"
        with _Silent(channel, metadata=right) as waits:
            assert waits.status(0.5) is None


@pytest.mark.parametrize("method", ["ModelInfer", "ServerLive"])
def test_guesses_of_tokens_are_counted_like_calls(bundle, tmp_path, method):
    (tmp_path / "token").write_text("secret\n")
    with (
        _serving(bundle, "--token-file", str(tmp_path / "token"), "--max-rate", "0.01") as (address, _),
        grpc.insecure_channel(address) as channel,
    ):
        for token, code in (("guess", "UNAUTHENTICATED"), ("secret", "RESOURCE_EXHAUSTED")):
            with _Silent(channel, f"{SERVICE}/{method}", metadata=(("authorization", f"Bearer {token}"),)) as call:
                assert call.status() == code


def test_what_finds_no_place_is_refused_before_its_message_is_there(bundle):
    with (
        _serving(bundle, "--max-concurrency", "1") as (address, _),
        grpc.insecure_channel(address) as channel,
    ):
        with _Silent(channel) as first:
            assert first.status(0.5) is None
            with _Silent(channel) as second:
                assert second.status() == "UNAVAILABLE"

        def waits():
            with _Silent(channel) as third:
                return third.status(0.5) is None

        wait_until(waits)


def _frames(raw):
    """Kind and content of each frame that a server of HTTP/2 sends until it closes (RFC 9113)."""
    stream = raw.makefile("rb")
    while len(head := stream.read(9)) == 9:
        yield head[3], stream.read(int.from_bytes(head[:3], "big"))


@contextmanager
def _connected(address):
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), 10) as raw:
        raw.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")  # no settings
        yield raw


def test_a_connection_has_so_many_calls_at_once(bundle):
    with _serving(bundle) as (address, _), _connected(address) as raw:
        settings = next(content for kind, content in _frames(raw) if kind == 4)
        found = dict(struct.iter_unpack(">HI", settings))
        assert found[3] == grpc_calls.MOST_STREAMS


@contextmanager
def _here(**sizes):
    """Health checks alone, in a thread, with such sizes and times in place of the server's own."""

    async def serve():
        server = grpc_calls.new_server(1000)
        server.add_generic_rpc_handlers((grpc_health.Health(("",)).handler(),))
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        return server

    loop, ports = asyncio.new_event_loop(), []
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(grpc_calls, name, value)
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            server = asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
            yield f"127.0.0.1:{ports[0]}"
            asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(10)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@pytest.mark.parametrize("bound", ["IDLE_SECONDS", "AGE_SECONDS"])
def test_connections_end(bound):
    """By GOAWAY, on which a client opens another one."""
    with _here(**{bound: 1.0}) as address, _connected(address) as raw:
        began = time.monotonic()
        assert any(kind == 7 for kind, _ in _frames(raw))
        assert time.monotonic() - began > 0.5


def test_more_calls_than_may_be_under_way_are_refused():
    with _here(MOST_CALLS=2) as address, ExitStack() as stack:
        stubs = []
        for _ in range(3):
            channel, stub = _health(address)
            stack.enter_context(channel)
            stubs.append(stub)
        watched = [stub.Watch(health_pb2.HealthCheckRequest()) for stub in stubs[:2]]
        assert [next(each).status for each in watched] == [SERVING] * 2
        with pytest.raises(grpc.RpcError, match="limit exceeded") as error:
            stubs[2].Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        watched[0].cancel()
        wait_until(lambda: _answers(lambda: stubs[2].Check(health_pb2.HealthCheckRequest(), timeout=10)))


def _ask(channel, method, content, **how):
    return channel.unary_unary(method)(content, timeout=10, **how)


def test_what_is_no_message_is_refused_and_logged_as_nobodys_fault(bundle):
    with _serving(bundle) as (address, process):
        with grpc.insecure_channel(address) as channel:
            for content in (b"\xff\xff", b"\x0a\x05ab"):
                with pytest.raises(grpc.RpcError, match="the message is no ModelInferRequest") as error:
                    _ask(channel, f"{SERVICE}/ModelInfer", content)
                assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            with pytest.raises(grpc.RpcError, match="no message; expected a ModelReadyRequest"):
                channel.stream_unary(f"{SERVICE}/ModelReady")(iter([]), timeout=10)
        process.terminate()
        assert process.stderr.read() == ""


@pytest.mark.parametrize("how", [{}, {"compression": grpc.Compression.Gzip}])
def test_a_message_that_is_too_long_is_refused_before_it_is_unpacked(bundle, how):
    def peak_mib():
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text()).group(1)) / 1024

    with _serving(bundle, "--max-body-mib", "1", "--log-requests") as (address, process):
        with grpc.insecure_channel(address) as channel:
            _ask(channel, f"{SERVICE}/ServerLive", b"")
            before = peak_mib()
            with pytest.raises(grpc.RpcError) as error:
                _ask(channel, f"{SERVICE}/ModelInfer", bytes(256 * 2**20), **how)
            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert peak_mib() < before + 64
        process.terminate()
        assert re.fullmatch(
            r'\S+ INFO \S+ refused status="CANCELLED" client="ipv4:127.0.0.1:\d+" path="\S+/ModelInfer"\n',
            process.stderr.read(),
        )


def _health(address):
    channel = grpc.insecure_channel(address, ONE)
    return channel, health_pb2_grpc.HealthStub(channel)


def test_watchers_and_checks_of_one_client_are_so_many(bundle):
    with _serving(bundle) as (address, process), ExitStack() as stack:
        channel, stub = _health(address)
        stack.enter_context(channel)
        request = health_pb2.HealthCheckRequest()
        watched = [stub.Watch(request) for _ in range(grpc_health.MOST_OF_ONE)]
        assert [next(each).status for each in watched] == [SERVING] * len(watched)
        for refused in (lambda: next(stub.Watch(request)), lambda: stub.Check(request, timeout=10)):
            with pytest.raises(grpc.RpcError, match="too many health checks") as error:
                refused()
            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        watched.pop().cancel()
        wait_until(lambda: _answers(lambda: stub.Check(request, timeout=10).status == SERVING))
        process.send_signal(signal.SIGTERM)
        for each in watched:  # all of them, though one has left
            assert next(each).status == NOT_SERVING
            with pytest.raises(grpc.RpcError, match="the server stops"):
                next(each)
        assert process.wait(10) == 0


def test_a_health_check_is_small_and_comes_soon(bundle):
    with _serving(bundle) as (address, _):
        channel, stub = _health(address)
        with channel, _Silent(channel, "/grpc.health.v1.Health/Check") as silent:
            for method in (stub.Check, lambda request: next(stub.Watch(request))):
                with pytest.raises(grpc.RpcError, match="service is a name of 201 characters; expected 200") as error:
                    method(health_pb2.HealthCheckRequest(service="a" * 201))
                assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            unknown = next(stub.Watch(health_pb2.HealthCheckRequest(service="a" * 200)))
            assert unknown.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            assert silent.status(15) == "DEADLINE_EXCEEDED"
            assert re.search("did not arrive in 5 s", silent.call.details())
