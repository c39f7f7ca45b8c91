"""``edgesdk serve``: a server's folder of a bundle as an endpoint."""

from __future__ import annotations

from pathlib import Path

import typer

from ..errors import ConfigError, needs_extra
from .execution import (
    SERVER_BATCH,
    BackendOption,
    BatchWindow,
    MaxBatch,
    MaxWaiting,
    Precision,
    PrecisionOption,
    Threads,
)


def serve(
    folder: Path = typer.Argument(..., help="BUNDLE/server0."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(8000, min=0, max=65535, help="Of HTTP; 0 takes a free one."),
    grpc_port: int | None = typer.Option(None, min=0, max=65535, help="Serve gRPC too; 0 takes a free one."),
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = Precision.FP32,
    threads: Threads = None,
    max_batch: MaxBatch = SERVER_BATCH,
    batch_window_ms: BatchWindow = 0.0,
    max_waiting: MaxWaiting = 256,
    max_body_mib: int = typer.Option(64, min=1, help="Longer request bodies are refused (413)."),
    max_concurrency: int | None = typer.Option(None, min=1, help="Requests under way at once; more are refused (503)."),
    max_rate: float | None = typer.Option(None, min=0.01, help="Requests a second from one address (429)."),
    token_file: Path | None = typer.Option(None, help="Bearer tokens to accept, one a line; read anew on change."),
    tls_cert: Path | None = typer.Option(None, help="PEM certificate: serve https."),
    tls_key: Path | None = typer.Option(None, help="PEM key of --tls-cert, where that file does not hold it."),
    tls_client_ca: Path | None = typer.Option(None, help="PEM: accept only clients that this authority signed."),
    insecure: bool = typer.Option(
        False, "--insecure", help="Listen beyond this machine without TLS and tokens: behind a proxy that has them."
    ),
) -> None:
    """Serve a tail over the Open Inference Protocol v2 (HTTP, with the binary tensor extension).

    SIGTERM or Ctrl-C stops accepting, finishes what was accepted, and exits.
    """
    with needs_extra("cloud", "edgesdk serve"):
        from cloud.app import Application
        from cloud.batcher import Batching
        from cloud.guard import Guard, Limits
        from cloud.models import Model
        from cloud.repository import Repository
        from cloud.server import bind
        from cloud.server import run as run_server
        from cloud.tls import TLS
        from cloud.tokens import TokenFile
    from ..backends import Execution
    from ..bundle import open_party
    from ..credentials import is_loopback

    if tls_cert is None and (tls_key or tls_client_ca):
        raise typer.BadParameter("--tls-key and --tls-client-ca need --tls-cert")
    guarded = tls_cert is not None and (token_file is not None or tls_client_ca is not None)
    if not is_loopback(host) and not guarded and not insecure:
        raise ConfigError(
            f"{host} can be reached from other machines: give --tls-cert and --token-file (or --tls-client-ca), "
            "or --insecure behind a proxy that has both"
        )
    tls = TLS(tls_cert, tls_key, tls_client_ca) if tls_cert else None
    if tls:
        tls.check()
    tokens = TokenFile(token_file) if token_file else None
    bundle = open_party(folder, "server")
    listener = bind(host, port)
    execution = Execution(backend, precision.value, threads, max_batch)
    model = Model.of_bundle(bundle, execution, Batching(max_batch, batch_window_ms / 1e3, max_waiting))
    repository = Repository([model])
    served = Application(repository, max_body_bytes=max_body_mib * 2**20)
    shown = f"[{host}]" if ":" in host else host
    limits = Limits(max_rate, max_concurrency)
    app = Guard(served, tokens, limits) if tokens or any(limits) else served
    address = f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}"
    beside = None
    if grpc_port is not None:
        with needs_extra("grpc", "edgesdk serve --grpc-port"):
            from cloud.grpc_service import GrpcServer
        limit = max_body_mib * 2**20
        beside = GrpcServer(repository, host, grpc_port, max_body_bytes=limit, tls=tls, tokens=tokens)

    def ready() -> None:
        also = f" and by gRPC at {shown}:{beside.port}" if beside else ""
        typer.echo(f"{model.name} ready at {address}{also}", err=True)

    try:
        run_server(app, listener, on_ready=ready, tls=tls, beside=beside)
    finally:
        repository.close()
