"""``edgesdk serve``: a server's folder of a bundle as an endpoint."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from logging import getLogger
from pathlib import Path
from typing import Literal

import typer

from ..errors import ConfigError, needs_extra
from .execution import (
    SERVER_BATCH,
    BackendOption,
    BatchWindow,
    MaxBatch,
    MaxWait,
    MaxWaiting,
    OtlpEndpoint,
    Precision,
    PrecisionOption,
    Threads,
    finite,
)


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
    max_wait_ms: MaxWait = None,
    max_body_mib: int = typer.Option(64, min=1, help="Longer request bodies are refused (413)."),
    max_concurrency: int | None = typer.Option(None, min=1, help="Requests under way at once in a process; more: 503."),
    max_rate: float | None = typer.Option(
        None, min=0.01, callback=finite, help="Requests and wrong tokens a second to a process from one address (429)."
    ),
    token_file: Path | None = typer.Option(None, help="Bearer tokens to accept, one a line; read anew on change."),
    tls_cert: Path | None = typer.Option(None, help="PEM certificate: serve https."),
    tls_key: Path | None = typer.Option(None, help="PEM key of --tls-cert, where that file does not hold it."),
    tls_client_ca: Path | None = typer.Option(None, help="PEM: accept only clients that this authority signed."),
    log_format: Literal["text", "json"] = typer.Option("text", help="Of the lines on standard error."),
    log_requests: bool = typer.Option(
        False, "--log-requests", help="A line for each inference and refusal; no values."
    ),
    otlp_endpoint: OtlpEndpoint = None,
    drain_seconds: float = typer.Option(
        30.0, min=0, callback=finite, help="For accepted requests to be answered after SIGTERM."
    ),
    workers: int = typer.Option(
        1,
        min=1,
        help="Processes that share the port; each has --threads, limits and a queue of its own. "
        "Not for --grpc-port, --allow-load and --engine ray.",
    ),
    engine: Literal["uvicorn", "ray"] = typer.Option("uvicorn", help="One process here, or replicas on Ray Serve."),
    replicas: int = typer.Option(1, min=1, help="Of --engine ray, always."),
    max_replicas: int | None = typer.Option(None, min=1, help="Of --engine ray, under load."),
    insecure: bool = typer.Option(
        False, "--insecure", help="Listen beyond this machine without TLS and tokens: behind a proxy that has them."
    ),
) -> None:
    """Serve tails over the Open Inference Protocol v2 (HTTP, with the binary tensor extension).

    SIGTERM or Ctrl-C stops accepting, finishes what was accepted, and exits. What takes longer than --drain-seconds is
    lost: the status is then 1, and a line says how many requests.
    """
    with needs_extra("cloud", "edgesdk serve"):
        from cloud.batcher import Batching
        from cloud.guard import Limits
        from cloud.logs import configure
        from cloud.server import bind
        from cloud.server import run as run_server
        from cloud.service import SPAN_SERVICE, Service, Settings
        from cloud.tls import TLS
    from ..backends import Execution
    from ..credentials import is_loopback
    from ..tracing import exporting

    if bool(folders) == (model_repository is not None):
        raise typer.BadParameter("give servers' folders, or --model-repository; one of the two")
    if allow_load and model_repository is None:
        raise typer.BadParameter("--allow-load needs --model-repository")
    if tls_cert is None and (tls_key or tls_client_ca):
        raise typer.BadParameter("--tls-key and --tls-client-ca need --tls-cert")
    if workers > 1 and (grpc_port is not None or allow_load or engine == "ray"):
        raise typer.BadParameter("--workers is not for --grpc-port, --allow-load or --engine ray")
    on_ray = engine == "ray"
    if on_ray and (grpc_port is not None or allow_load or otlp_endpoint or tls_client_ca):
        raise typer.BadParameter("--grpc-port, --allow-load, --otlp-endpoint, --tls-client-ca: not for --engine ray")
    if max_replicas is not None and max_replicas < replicas:
        raise typer.BadParameter("--max-replicas is less than --replicas")
    if not on_ray and (replicas, max_replicas) != (1, None):
        raise typer.BadParameter("--replicas and --max-replicas are for --engine ray")
    guarded = tls_cert is not None and (token_file is not None or tls_client_ca is not None)
    if not is_loopback(host) and not guarded and not insecure:
        raise ConfigError(
            f"{host} can be reached from other machines: give --tls-cert and --token-file (or --tls-client-ca), "
            "or --insecure behind a proxy that has both"
        )
    tls = TLS(tls_cert, tls_key, tls_client_ca) if tls_cert else None
    if tls:
        tls.check()
    settings = Settings(
        folders=tuple(folders or ()),
        model_repository=model_repository,
        allow_load=allow_load,
        execution=Execution(backend, precision.value, threads, max_batch),
        batching=Batching(max_batch, batch_window_ms / 1e3, max_waiting, max_wait_ms and max_wait_ms / 1e3),
        limits=Limits(max_rate, max_concurrency),
        token_file=token_file,
        max_body_bytes=max_body_mib * 2**20,
        log_format=log_format,
        log_requests=log_requests,
        drain_seconds=drain_seconds,
        otlp_endpoint=otlp_endpoint,
    )

    shown = f"[{host}]" if ":" in host else host

    def ready(names: Iterable[str], port: int, also: str = "") -> None:
        address = f"{'https' if tls else 'http'}://{shown}:{port}"
        text = f"{', '.join(dict.fromkeys(names)) or 'no model'} ready at {address}{also}"
        if log_format == "json":
            getLogger("edgesdk.cloud").info(text)
        else:
            typer.echo(text, err=True)

    if on_ray:
        from cloud.ray_serve import Replicas
        from cloud.ray_serve import run as run_on_ray

        configure(log_format, requests=log_requests)
        execution = settings.execution._replace(num_threads=threads or 1)
        settings = settings._replace(execution=execution)
        names = settings.check()
        gpus = 0.0 if backend == "onnxruntime" else 1.0
        wanted = Replicas(replicas, max_replicas or replicas, float(threads or 1), gpus, max_waiting)
        run_on_ray(settings, wanted, host, port, on_ready=lambda port: ready(names, port), tls=tls)
        return
    if workers > 1:
        from cloud.workers import run_workers

        from ..profile.machine import usable_cpus

        if threads is None:  # together they have the cores that one process would have
            mine = max(usable_cpus() // workers, 1)
            settings = settings._replace(execution=settings.execution._replace(num_threads=mine))
        configure(log_format, requests=log_requests)
        names = settings.check()
        with bind(host, port) as listener:
            port = listener.getsockname()[1]
            answered = run_workers(settings, workers, listener, on_ready=lambda: ready(names, port), tls=tls)
        if not answered:
            raise typer.Exit(1)
        return
    with (
        exporting(otlp_endpoint, SPAN_SERVICE),
        bind(host, port) as listener,
        closing(Service(settings)) as service,
    ):
        beside = None
        if grpc_port is not None:
            with needs_extra("grpc", "edgesdk serve --grpc-port"):
                from cloud.grpc_service import GrpcServer
            beside = GrpcServer(
                service.repository,
                host,
                grpc_port,
                max_body_bytes=settings.max_body_bytes,
                tls=tls,
                guard=service.direct.guard,
                clients=service.direct.infer.clients,
                drain_seconds=drain_seconds,
            )

        def on_ready() -> None:
            also = f" and by gRPC at {shown}:{beside.port}" if beside else ""
            ready((model.name for model in service.repository), listener.getsockname()[1], also)

        lost = run_server(
            service.app,
            service.direct,
            listener,
            on_ready=on_ready,
            tls=tls,
            beside=beside,
            drain_seconds=drain_seconds,
        )
    if lost:
        raise typer.Exit(1)
