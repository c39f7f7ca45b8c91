"""``edgesdk run``: classify images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from PIL.Image import Image


def run(
    edge: Path = typer.Argument(..., help="BUNDLE/edge."),
    images: list[str] = typer.Argument(..., help="Image files or folders; - reads one image from standard input."),
    server: list[str] = typer.Option(..., help="http://HOST:PORT; once per server of the bundle."),
    top: int = typer.Option(3, min=1, help="How many classes to print."),
    timeout: float = typer.Option(10.0, min=0.001, help="Seconds for one call of a server."),
    threads: int | None = typer.Option(None, min=1, help="That an operator of the encoder may use."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line."),
) -> None:
    """Classify images: encode here, finish on the server. Only features leave this machine."""
    import json

    from ..images import fit_image
    from ..runtime import EdgeRuntime

    with EdgeRuntime(edge, server, num_threads=threads, timeout_s=timeout) as runtime:
        labels = runtime.manifest.labels
        for name, image in _decoded(images):
            prediction = runtime.predict(fit_image(image, *runtime.image_size)[None])
            chances = prediction.probabilities[0]
            best = chances.argsort()[::-1][:top]
            if as_json:
                classes = [{"label": labels[i], "probability": round(float(chances[i]), 6)} for i in best]
                typer.echo(json.dumps({"image": name, "classes": classes, "timing": prediction.timing._asdict()}))
            else:
                typer.echo(f"{name}: " + ", ".join(f"{labels[i]} {chances[i]:.1%}" for i in best))


def _decoded(sources: list[str]) -> Iterator[tuple[str, Image]]:
    import io
    import sys

    from ..images import decode_image, find_images

    for source in sources:
        if source == "-":
            yield "-", decode_image(io.BytesIO(sys.stdin.buffer.read()), "standard input")
            continue
        for found in find_images([Path(source)]):
            # A name that is no UTF-8 can be opened, not printed.
            yield str(found.path).encode(errors="replace").decode(), decode_image(found.path)
