"""``edgesdk run``: classify images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .execution import BackendOption, OtlpEndpoint, Precision, PrecisionOption, Threads
from .servers import (
    CaFile,
    Certificate,
    Colocated,
    Key,
    Missing,
    Server,
    ServersFile,
    Timeout,
    TokenFile,
    addresses,
    credentials,
)

if TYPE_CHECKING:
    from PIL.Image import Image


def run(
    edge: Path = typer.Argument(..., help="BUNDLE/edge."),
    images: list[str] = typer.Argument(..., help="Image files or folders; - reads one image from standard input."),
    server: Server = None,
    servers_file: ServersFile = None,
    top: int = typer.Option(3, min=1, help="How many classes to print."),
    timeout: Timeout = 10.0,
    on_missing: Missing = "fail",
    allow_colocated: Colocated = False,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    certificate: Certificate = None,
    key: Key = None,
    backend: BackendOption = "onnxruntime",
    precision: PrecisionOption = Precision.FP32,
    threads: Threads = None,
    otlp_endpoint: OtlpEndpoint = None,
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line."),
) -> None:
    """Classify images: encode here, finish on the server. Only features leave this machine."""
    import json

    from ..backends import Execution
    from ..images import fit_image
    from ..runtime import EdgeRuntime
    from ..tracing import exporting

    urls = addresses(server, servers_file)
    with (
        exporting(otlp_endpoint, "edgesdk-device"),
        EdgeRuntime(
            edge,
            urls,
            execution=Execution(backend, precision.value, threads),
            timeout_s=timeout,
            on_missing=on_missing,
            allow_colocated=allow_colocated,
            credentials=credentials(len(urls), token_file, ca_file, certificate, key),
        ) as runtime,
    ):
        labels = runtime.manifest.labels
        for name, image in _decoded(images):
            prediction = runtime.predict(fit_image(image, *runtime.image_size)[None])
            chances = prediction.probabilities[0]
            best = chances.argsort()[::-1][:top]
            if as_json:
                classes = [{"label": labels[i], "probability": round(float(chances[i]), 6)} for i in best]
                result = {
                    "image": name,
                    "classes": classes,
                    "timing": prediction.timing._asdict(),
                    "missing": {party: str(error) for party, error in prediction.missing.items()},
                }
                typer.echo(json.dumps(result))
            else:
                answered, asked = len(prediction.servers), len(prediction.servers) + len(prediction.missing)
                note = f"  (degraded: {answered} of {asked} servers)" if prediction.missing else ""
                typer.echo(f"{name}: " + ", ".join(f"{labels[i]} {chances[i]:.1%}" for i in best) + note)


def _decoded(sources: list[str]) -> Iterator[tuple[str, Image]]:
    import io
    import sys

    from ..errors import DataError
    from ..images import decode_image, find_images

    for source in sources:
        if source == "-":
            content = sys.stdin.buffer.read()
            if not content:
                raise DataError("standard input: not an image, it is empty; send one image, as in  run … - < photo.jpg")
            yield "-", decode_image(io.BytesIO(content), "standard input")
            continue
        for found in find_images([Path(source)]):
            # A name that is no UTF-8 can be opened, not printed.
            yield str(found.path).encode(errors="replace").decode(), decode_image(found.path)
