"""``edgesdk serve``: a server's folder of a bundle as an endpoint."""

from __future__ import annotations

from contextlib import closing
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from ..bundle import PartyBundle, open_party
from ..errors import ConfigError, needs_extra
from .execution import (
    SERVER_BATCH,
    BackendOption,
    BatchWindow,
    MaxBatch,
    MaxWaiting,
    OtlpEndpoint,
    Precision,
    PrecisionOption,
    Threads,
)

if TYPE_CHECKING:
    from starlette.types import ASGIApp


def serve(
    folders: list[Path] | None = typer.Argument(
        None, metavar="FOLDER", help="BUNDLE/server0; of several, those of one name are versions 1, 2, …"
    ),
    model_repository: Path | None = typer.Option(None, help="Instead: DIR/NAME/VERSION/, a server's folder each."),
    allow_load: bool = typer.Option(
        False, "--allow-load", help="Clients may load and unload what --model-repository has; it starts with all."
    ),
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
    log_format: Literal["text", "json"] = typer.Option("text", help="Of the lines on standard error."),
    log_requests: bool = typer.Option(False, "--log-requests", help="A line for each request; never of its values."),
    otlp_endpoint: OtlpEndpoint = None,
    insecure: bool = typer.Option(
        False, "--insecure", help="Listen beyond this machine without TLS and tokens: behind a proxy that has them."
    ),
) -> None:
    """Serve tails over the Open Inference Protocol v2 (HTTP, with the binary tensor extension).

    SIGTERM or Ctrl-C stops accepting, finishes what was accepted, and exits.
    """
    with needs_extra("cloud", "edgesdk serve"):
        from cloud.app import Application
        from cloud.batcher import Batching
        from cloud.guard import Guard, Limits
        from cloud.logs import configure
        from cloud.model_folder import ModelFolder, numbered
        from cloud.models import Model
        from cloud.repository import Repository
        from cloud.server import bind
        from cloud.server import run as run_server
        from cloud.tls import TLS
        from cloud.tokens import TokenFile
    from ..backends import Execution
    from ..credentials import is_loopback
    from ..tracing import exporting

    if bool(folders) == (model_repository is not None):
        raise typer.BadParameter("give servers' folders, or --model-repository; one of the two")
    if allow_load and model_repository is None:
        raise typer.BadParameter("--allow-load needs --model-repository")
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
    execution = Execution(backend, precision.value, threads, max_batch)
    batching = Batching(max_batch, batch_window_ms / 1e3, max_waiting)

    def open_model(bundle: PartyBundle, version: str) -> Model:
        return Model.of_bundle(bundle, execution, batching, version)

    folder = ModelFolder(model_repository, open_model) if model_repository else None
    bundles = folder.all_bundles() if folder else numbered(open_party(each, "server") for each in folders or ())
    limit = max_body_mib * 2**20
    configure(log_format, requests=log_requests)
    with (
        exporting(otlp_endpoint, "edgesdk-server"),
        bind(host, port) as listener,
        closing(Repository(folder if allow_load else None)) as repository,
    ):
        for bundle, version in bundles:
            repository.add(open_model(bundle, version))
        app: ASGIApp = Application(repository, max_body_bytes=limit)
        limits = Limits(max_rate, max_concurrency)
        if tokens or any(limits):
            app = Guard(app, tokens, limits)
        beside = None
        if grpc_port is not None:
            with needs_extra("grpc", "edgesdk serve --grpc-port"):
                from cloud.grpc_service import GrpcServer
            beside = GrpcServer(repository, host, grpc_port, max_body_bytes=limit, tls=tls, tokens=tokens)

        def ready() -> None:
            shown = f"[{host}]" if ":" in host else host
            names = ", ".join(dict.fromkeys(model.name for model in repository)) or "no model"
            address = f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}"
            also = f" and by gRPC at {shown}:{beside.port}" if beside else ""
            if log_format == "json":
                getLogger("edgesdk.cloud").info(f"{names} ready at {address}{also}")
            else:
                typer.echo(f"{names} ready at {address}{also}", err=True)

        run_server(app, listener, on_ready=ready, tls=tls, beside=beside)
