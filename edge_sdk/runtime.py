"""Executes a bundle's placement graph on the device: edge parts here, remote parts on their servers."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from .backends import Backend
from .backends.onnxruntime import OnnxRuntimeBackend
from .bundle import EDGE, Manifest, Part, open_party
from .client import Client, RemoteTiming
from .errors import RemoteError, TensorError
from .tensors import Array, TensorSpec, check_feeds

__all__ = ["EdgeRuntime", "Prediction", "StepTiming"]


class StepTiming(NamedTuple):
    """Milliseconds of one request by step; ``tail_ms`` is None where the server does not report it.

    ``network_ms`` is the round trip less what the server says it computed: the network, the server's queue and HTTP.
    Steps of several remote parts are summed.
    """

    encode_ms: float
    serialize_ms: float
    network_ms: float
    tail_ms: float | None
    fuse_ms: float


class Prediction(NamedTuple):
    """``logits`` ``(N, num_classes)`` float32, softmax ``probabilities`` of the same shape, and the time it took."""

    logits: Array
    probabilities: Array
    timing: StepTiming


class EdgeRuntime:
    """A bundle's edge folder, opened and verified, ready to encode images and to ask the servers for the rest.

    Args:
        path: ``BUNDLE/edge``.
        servers: one address per server of the bundle, in the order of its parties; none for encoding alone.
        num_threads: for an operator of an edge part; None lets the backend choose.
        timeout_s: for one call of a server, retries included.

    Raises:
        BundleError: the folder is not a whole, unaltered edge party.
        BackendError: a part cannot be loaded.
        RemoteError: the number of addresses is not the number of servers.
    """

    def __init__(
        self, path: Path | str, servers: Sequence[str] = (), *, num_threads: int | None = None, timeout_s: float = 10.0
    ) -> None:
        bundle = open_party(Path(path), EDGE)
        self.manifest: Manifest = bundle.manifest
        parts = self.manifest.parts
        placements = list(dict.fromkeys(part.placement for part in parts if part.placement != EDGE))
        if servers and len(servers) != len(placements):
            raise RemoteError(f"this bundle has {len(placements)} server(s), got {len(servers)} address(es)")
        self._encoder, self._after = parts[0], parts[1:]
        self._backends: dict[str, Backend] = {
            part.name: OnnxRuntimeBackend(bundle.onnx(part), num_threads) for part in parts if part.placement == EDGE
        }
        self._clients = {
            placement: Client(url, timeout_s=timeout_s) for placement, url in zip(placements, servers, strict=False)
        }
        self._random = np.random.default_rng(secrets.randbits(256))
        self._identified: set[str] = set()

    @property
    def image_spec(self) -> TensorSpec:
        """The image input: uint8 ``(N, H, W, 3)``."""
        return next(spec for spec in self._encoder.inputs if spec.source == "data")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that images must have."""
        _, height, width, _ = self.image_spec.shape
        return height or 0, width or 0  # open in the batch axis alone, so never None

    def encode(self, images: Array) -> dict[str, Array]:
        """What leaves the device for these images.

        Args:
            images: uint8 ``(N, H, W, 3)``, RGB, of the bundle's size.

        Returns:
            Features by tensor name.

        Raises:
            TensorError: the images are not that.
        """
        feeds = {self.image_spec.name: images}
        for spec in self._encoder.inputs:
            if spec.source == "normal":
                shape = [len(images) if size is None else size for size in spec.shape]
                feeds[spec.name] = self._random.standard_normal(shape, dtype=np.float32).astype(spec.numpy_dtype)
        check_feeds(self._encoder.inputs, feeds)
        return self._backends[self._encoder.name].run(feeds)

    def predict(self, images: Array) -> Prediction:
        """Encode, send, receive, and fuse where the bundle says so.

        Args:
            images: uint8 ``(N, H, W, 3)``, RGB, of the bundle's size.

        Raises:
            TensorError: the images are not that.
            RemoteError: a server is not the one this bundle belongs to, could not be reached, or failed.
        """
        if not self._clients:
            raise RemoteError("no server address was given; pass servers=[…]")
        start = time.perf_counter()
        tensors = self.encode(images)
        encode_ms = (time.perf_counter() - start) * 1e3
        serialize_ms = network_ms = fuse_ms = 0.0
        tail_ms: float | None = 0.0
        for part in self._after:
            feeds = {spec.name: tensors[spec.name] for spec in part.inputs}
            if part.placement == EDGE:
                began = time.perf_counter()
                tensors.update(self._backends[part.name].run(feeds))
                fuse_ms += (time.perf_counter() - began) * 1e3
                continue
            outputs, timing = self._ask(part, feeds)
            tensors.update(outputs)
            serialize_ms += timing.serialize_ms
            network_ms += timing.round_trip_ms - (timing.compute_ms or 0.0)
            tail_ms = None if timing.compute_ms is None or tail_ms is None else tail_ms + timing.compute_ms
        logits = tensors[self.manifest.parts[-1].outputs[0].name]
        return Prediction(logits, _softmax(logits), StepTiming(encode_ms, serialize_ms, network_ms, tail_ms, fuse_ms))

    def close(self) -> None:
        """Free the models and close the connections."""
        for backend in self._backends.values():
            backend.close()
        for client in self._clients.values():
            client.close()
        self._backends.clear()

    def __enter__(self) -> EdgeRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, part: Part, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], RemoteTiming]:
        client = self._clients[part.placement]
        if part.name not in self._identified:
            self._identify(client, part)
        outputs, timing = client.infer(
            part.name, feeds, uuid.uuid4().hex, {"edgesdk_bundle_id": self.manifest.bundle_id}
        )
        try:
            check_feeds(part.outputs, outputs)
            for spec in part.outputs:
                spec.check_finite(outputs[spec.name])
                if len(outputs[spec.name]) != len(next(iter(feeds.values()))):
                    raise TensorError(f"tensor {spec.name!r}: batch of {len(outputs[spec.name])} answered")
        except TensorError as error:
            raise RemoteError(f"{client.url}: part {part.name!r} answered wrongly: {error}") from error
        return outputs, timing

    def _identify(self, client: Client, part: Part) -> None:
        """Nothing is sent to a server before it says that it holds this bundle's part."""
        properties = client.metadata(part.name).get("properties")
        found = properties.get("edgesdk_bundle_id") if isinstance(properties, dict) else None
        if found != self.manifest.bundle_id:
            raise RemoteError(
                f"{client.url}: serves bundle {str(found)[:12]}, this edge belongs to {self.manifest.bundle_id[:12]}; "
                "deploy both from one export"
            )
        self._identified.add(part.name)


def _softmax(logits: Array) -> Array:
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities
