"""Executes a bundle's placement graph on the device: edge parts here, remote parts on their servers, all at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np

from .backends import DEFAULT_EXECUTION, Backend, Execution, open_backend
from .bundle import EDGE, Manifest, Part, open_party
from .client import RemoteTiming
from .collusion import Endpoint, Origins, resolve
from .credentials import NO_CREDENTIALS, Credentials
from .errors import BackendError, CollusionError, ConfigError, RemoteError, TensorError
from .noise import draw_noise
from .remote import RemotePart
from .tensors import Array, TensorSpec, check_feeds
from .tracing import Spans

__all__ = ["EdgeRuntime", "OnMissing", "Prediction", "StepTiming"]

OnMissing = Literal["fail", "degrade"]
Answer = tuple[dict[str, Array], RemoteTiming]


class StepTiming(NamedTuple):
    """Milliseconds of one request by step; ``tail_ms`` is None where the server does not report it.

    ``network_ms`` is the round trip less what the server says it computed: the network, the server's queue and HTTP.
    Of several servers that are asked at once, the three are those of the one that took longest.
    """

    encode_ms: float
    serialize_ms: float
    network_ms: float
    tail_ms: float | None
    fuse_ms: float


class Prediction(NamedTuple):
    """``logits`` ``(N, num_classes)`` float32, softmax ``probabilities`` of the same shape, and the time it took.

    ``servers`` has the time of each server that answered, by party; ``missing`` why each of the others did not. With
    some missing the answer is degraded.
    """

    logits: Array
    probabilities: Array
    timing: StepTiming
    servers: dict[str, RemoteTiming]
    missing: dict[str, RemoteError]


class EdgeRuntime:
    """A bundle's edge folder, opened and verified, ready to encode images and to ask the servers for the rest.

    Threads may share one; their predictions are made one after the other.

    Args:
        path: ``BUNDLE/edge``.
        servers: one address per server of the bundle, in the order of its parties; a text is the address of the only
            one; none for encoding alone.
        execution: how the parts that run here are run.
        timeout_s: for one call of a server, retries included; servers are called at once.
        on_missing: where a server gives no right answer, ``fail``, or ``degrade`` to an answer without it; such a
            server is asked again after 1, 2, 4, … 30 s.
        allow_colocated: let one server get several shares of an image, which voids the privacy: for demos.
        credentials: for each server, in their order; none for servers that ask for none.

    Raises:
        BundleError: the folder is not a whole, unaltered edge party.
        BackendError: a part cannot be loaded.
        ConfigError: ``degrade`` for a bundle that needs every server, or credentials that cannot be used.
        RemoteError: the number of addresses is not the number of servers.
    """

    def __init__(
        self,
        path: Path | str,
        servers: str | Sequence[str] = (),
        *,
        execution: Execution = DEFAULT_EXECUTION,
        timeout_s: float = 10.0,
        on_missing: OnMissing = "fail",
        allow_colocated: bool = False,
        credentials: Sequence[Credentials] = (),
    ) -> None:
        servers = (servers,) if isinstance(servers, str) else servers
        bundle = open_party(Path(path), EDGE)
        self.manifest: Manifest = bundle.manifest
        parts = self.manifest.parts
        parties = self.manifest.servers
        if servers and len(servers) != len(parties):
            raise RemoteError(f"this bundle has {len(parties)} server(s), got {len(servers)} address(es)")
        if on_missing not in ("fail", "degrade"):
            raise ConfigError(f"on_missing must be fail or degrade, got {on_missing!r}")
        if on_missing == "degrade" and not any(s.source == "received" for part in parts for s in part.inputs):
            raise ConfigError("this bundle needs the answer of every server; it cannot degrade")
        self._degrade = on_missing == "degrade"
        self._encoder, self._steps = parts[0], _steps(parts[1:])
        if credentials and len(credentials) != len(servers):
            raise ConfigError(f"{len(servers)} server(s) and credentials for {len(credentials)}; give one for each")
        urls = dict(zip(parties, servers, strict=False))
        shown = dict(zip(parties, credentials or [NO_CREDENTIALS] * len(servers), strict=False))
        self._origins = Origins(allow_colocated=allow_colocated)
        self._remotes = {
            part.name: RemotePart(
                part,
                urls[part.placement],
                self.manifest.bundle_id,
                timeout_s=timeout_s,
                credentials=shown[part.placement],
                before_connect=partial(self._origins.meet, part.placement, urls[part.placement])
                if len(urls) > 1
                else None,
            )
            for part in parts
            if part.placement in urls
        }
        self._backends: dict[str, Backend] = {}
        with ExitStack() as opened:  # last: an engine may take minutes to build
            for part in parts:
                if part.placement == EDGE:
                    self._backends[part.name] = open_backend(part, bundle, execution)
                    opened.callback(self._backends[part.name].close)
            opened.pop_all()
        self._turn = threading.Lock()
        # One thread a server: the calls wait, and all are under way at once.
        self._pool = ThreadPoolExecutor(max(len(urls), 1), thread_name_prefix="remote")
        self._spans = Spans()

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
        """What leaves the device for these images: where a defense adds noise, with other noise at every call.

        Args:
            images: uint8 ``(N, H, W, 3)``, RGB, of the bundle's size.

        Returns:
            Features by tensor name.

        Raises:
            TensorError: the images are not that.
            BackendError: the runtime was closed.
        """
        self._check_open()
        feeds = {self.image_spec.name: images}
        feeds |= draw_noise([spec for spec in self._encoder.inputs if spec.source == "normal"], len(images))
        check_feeds(self._encoder.inputs, feeds)
        return self._backends[self._encoder.name].run(feeds)

    def predict(self, images: Array) -> Prediction:
        """Encode, send, receive, and fuse where the bundle says so.

        Args:
            images: uint8 ``(N, H, W, 3)``, RGB, of the bundle's size.

        Raises:
            TensorError: the images are not that.
            CollusionError: two of the addresses are one server.
            RemoteError: a server is not the one this bundle belongs to, could not be reached, or failed; with
                ``degrade``, no server is left.
            BackendError: the runtime was closed.
        """
        self._check_open()
        if not self._remotes:
            raise RemoteError("no server address was given; pass servers=[…]")
        with self._turn, self._spans.span("predict", {"images": len(images)}):
            return self._predict(images)

    def _predict(self, images: Array) -> Prediction:
        start = time.perf_counter()
        with self._spans.span("encode"):
            tensors = self.encode(images)
        timing = StepTiming((time.perf_counter() - start) * 1e3, 0.0, 0.0, 0.0, 0.0)
        servers: dict[str, RemoteTiming] = {}
        missing: dict[str, RemoteError] = {}
        for parts in self._steps:
            began = time.perf_counter()
            if parts[0].placement == EDGE:
                with self._spans.span(parts[0].name):
                    tensors.update(self._fuse(parts[0], tensors, len(images), missing))
                timing = timing._replace(fuse_ms=timing.fuse_ms + (time.perf_counter() - began) * 1e3)
                continue
            answers = self._ask(parts, tensors)
            for part, answer in zip(parts, answers, strict=True):
                if isinstance(answer, RemoteError):
                    missing[part.placement] = answer
                    tensors.update({spec.name: _zeros(spec, len(images)) for spec in part.outputs})
                else:
                    tensors.update(answer[0])
                    servers[part.placement] = answer[1]
            waited = (time.perf_counter() - began) * 1e3
            timing = _with_slowest(timing, [a[1] for a in answers if not isinstance(a, RemoteError)], waited)
        spec = self.manifest.parts[-1].outputs[0]
        logits = tensors[spec.name]
        try:
            spec.check_finite(logits)
        except TensorError as error:  # of finite answers: a server can send numbers near float32's largest
            raise RemoteError(f"the servers' answers give no number: {error}") from error
        return Prediction(logits, _softmax(logits), timing, servers, missing)

    def close(self) -> None:
        """Free the models and close the connections."""
        self._pool.shutdown()
        for backend in self._backends.values():
            backend.close()
        for remote in self._remotes.values():
            remote.close()
        self._backends.clear()

    def _check_open(self) -> None:
        if not self._backends:
            raise BackendError(f"this runtime of {self.manifest.bundle_id[:12]} was closed; open another")

    def __enter__(self) -> EdgeRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, parts: Sequence[Part], tensors: Mapping[str, Array]) -> list[Answer | RemoteError]:
        """The answers of remote parts that are asked at once; an error in place of one that may be missing."""
        refused = self._resting(parts)
        refused |= self._admit([part for part in parts if part.name not in refused])
        asked = [part for part in parts if part.name not in refused]
        span = self._spans.current()
        if len(asked) == 1:
            answered = [self._ask_one(asked[0], tensors, span)]
        else:
            answered = list(self._pool.map(lambda part: self._ask_one(part, tensors, span), asked))
        by_name: dict[str, Answer | RemoteError] = dict(zip((part.name for part in asked), answered, strict=True))
        answers = [refused[part.name] if part.name in refused else by_name[part.name] for part in parts]
        errors = [answer for answer in answers if isinstance(answer, RemoteError)]
        for error in errors:
            if isinstance(error, CollusionError):
                raise error
        if errors and (not self._degrade or len(errors) == len(parts)):
            if len(errors) == 1:
                raise errors[0]
            raise RemoteError(f"{len(errors)} of {len(parts)} servers failed: " + "; ".join(map(str, errors)))
        return answers

    def _ask_one(self, part: Part, tensors: Mapping[str, Array], span: Any) -> Answer | RemoteError:
        remote = self._remotes[part.name]
        told = {"server.address": remote.url, "edgesdk.party": part.placement}
        try:
            with self._spans.request(f"ask {part.name}", span, told, apart=len(self._remotes) > 1):
                return remote.ask({spec.name: tensors[spec.name] for spec in part.inputs})
        except RemoteError as error:
            return error

    def _resting(self, parts: Sequence[Part]) -> dict[str, RemoteError]:
        """Failed a moment ago, and not waited for again so soon where an answer without them will do."""
        if not self._degrade:
            return {}
        resting = {part.name: error for part in parts if (error := self._remotes[part.name].resting)}
        return resting if len(resting) < len(parts) else {}

    def _admit(self, parts: Sequence[Part]) -> dict[str, RemoteError]:
        """No share leaves before its server's address is known to be no other's; errors of those without an address."""
        refused: dict[str, RemoteError] = {}
        asked = [part for part in parts if not self._remotes[part.name].identified and len(self._remotes) > 1]
        for part, found in zip(asked, self._pool.map(self._resolve, asked), strict=True):
            if isinstance(found, RemoteError):
                refused[part.name] = found
            else:
                self._origins.admit(part.placement, self._remotes[part.name].url, found)
        return refused

    def _resolve(self, part: Part) -> set[Endpoint] | RemoteError:
        remote = self._remotes[part.name]
        try:
            return resolve(remote.url)
        except RemoteError as error:
            remote.failed(error)
            return error

    def _fuse(
        self, part: Part, tensors: Mapping[str, Array], num_images: int, missing: Mapping[str, RemoteError]
    ) -> dict[str, Array]:
        feeds = {spec.name: tensors[spec.name] for spec in part.inputs if spec.source == "data"}
        for spec in part.inputs:
            if spec.source == "received":
                remote = [p.placement for p in self.manifest.parts if p.placement != EDGE]
                flags = np.array([placement not in missing for placement in remote], spec.numpy_dtype)
                feeds[spec.name] = np.broadcast_to(flags, (num_images, len(remote))).copy()
        return self._backends[part.name].run(feeds)


def _steps(parts: Iterable[Part]) -> list[list[Part]]:
    """Parts in the order they run: those of the device one by one, neighbouring remote ones at once.

    Neighbours that need each other's outputs follow each other.
    """
    steps: list[list[Part]] = []
    for part in parts:
        last = steps[-1] if steps else []
        given = {spec.name for before in last for spec in before.outputs}
        together = last and EDGE not in (part.placement, last[0].placement)
        if together and not given & {spec.name for spec in part.inputs}:
            last.append(part)
        else:
            steps.append([part])
    return steps


def _with_slowest(timing: StepTiming, answers: Sequence[RemoteTiming], waited_ms: float) -> StepTiming:
    """Add the step of servers that were asked at once: the slowest one's parts, and the rest of the wait as network."""
    if not answers:
        return timing._replace(network_ms=timing.network_ms + waited_ms)
    slowest = max(answers, key=lambda a: a.serialize_ms + a.round_trip_ms)
    compute = slowest.compute_ms
    return timing._replace(
        serialize_ms=timing.serialize_ms + slowest.serialize_ms,
        network_ms=timing.network_ms + waited_ms - slowest.serialize_ms - (compute or 0.0),
        tail_ms=None if compute is None or timing.tail_ms is None else timing.tail_ms + compute,
    )


def _zeros(spec: TensorSpec, num_images: int) -> Array:
    return np.zeros([num_images if size is None else size for size in spec.shape], spec.numpy_dtype)


def _softmax(logits: Array) -> Array:
    with np.errstate(over="ignore"):  # to -inf, whose exponential is 0
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: Array = exponents / exponents.sum(axis=1, keepdims=True)
    return probabilities
