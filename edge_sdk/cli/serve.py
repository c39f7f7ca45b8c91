"""``edgesdk serve``: a server's folder of a bundle as an endpoint."""

from __future__ import annotations

from pathlib import Path

import typer

from ..errors import needs_extra
from .execution import SERVER_BATCH, BackendOption, MaxBatch, Precision, PrecisionOption, Threads


def serve(
    folder: Path = typer.Argument(..., help="BUNDLE/server0."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port; 0 takes a free one."),
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = Precision.FP32,
    threads: Threads = None,
    max_batch: MaxBatch = SERVER_BATCH,
    batch_window_ms: float = typer.Option(0.0, min=0, help="That an idle model waits for more requests to join."),
    max_waiting: int = typer.Option(256, min=1, help="Requests that may wait; more are refused (503)."),
    max_body_mib: int = typer.Option(64, min=1, help="Longer request bodies are refused (413)."),
) -> None:
    """Serve a tail over the Open Inference Protocol v2 (HTTP, with the binary tensor extension).

    SIGTERM or Ctrl-C stops accepting, finishes what was accepted, and exits.
    """
    with needs_extra("cloud", "edgesdk serve"):
        from cloud.app import Application
        from cloud.batcher import Batching
        from cloud.models import Model
        from cloud.server import bind
        from cloud.server import run as run_server
    from ..backends import Execution
    from ..bundle import open_party

    bundle = open_party(folder, "server")
    listener = bind(host, port)
    execution = Execution(backend, precision.value, threads, max_batch)
    model = Model.of_bundle(bundle, execution, Batching(max_batch, batch_window_ms / 1e3, max_waiting))
    app = Application([model], max_body_bytes=max_body_mib * 2**20)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}"
    try:
        run_server(app, listener, lambda: typer.echo(f"{model.name} ready at {address}", err=True))
    finally:
        model.close()
