"""Served models: a part of a bundle each, with its backend, its batches and its statistics. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from statistics import median

import numpy as np

from edge_sdk.backends import DEFAULT_EXECUTION, Backend, Execution, open_backend
from edge_sdk.bundle import PartyBundle
from edge_sdk.errors import BackendError, TensorError, UnknownModelError
from edge_sdk.profile.machine import usable_cpus
from edge_sdk.tensors import Array, TensorSpec, batch_is_fixed, check_feeds

from .batcher import Batcher, Batching, Ran
from .statistics import ModelStatistics

__all__ = ["ONNX", "TENSORRT", "Model"]

WARM_RUNS = 5
DRAIN_LOOKS = 0.02
"""Seconds between looks at whether a model that is unloaded still has work."""

MOST_TWICE = 256 << 20
"""Bytes of a model that is loaded a second time, for two batches at a time."""

MOST_BATCHES = 512
"""That one request may be run in: nobody else is served meanwhile."""

ONNX, TENSORRT = "onnx_onnxv1", "tensorrt_plan"
"""Libraries and their formats, as the protocol names them."""


class Model:
    """A model that answers requests of one event loop, several together where they wait.

    Args:
        name: in the protocol.
        backend: loaded; closed by ``close``.
        beside: the same model on a part of the cores, for two batches at a time; closed likewise.
        warm_rows: batches that are run before it is ready; the last one's rows are timed.
        properties: what its metadata says besides names and shapes.
        platform: the library and its format, as the protocol names them.
        batching: how requests are joined; a model whose batch size is fixed joins none.
        version: a positive integer.

    Raises:
        BackendError: the model does not run.
    """

    def __init__(
        self,
        name: str,
        backend: Backend,
        properties: dict[str, str],
        batching: Batching | None = None,
        platform: str = ONNX,
        version: str = "1",
        beside: Backend | None = None,
        warm_rows: tuple[int, ...] = (1,),
    ) -> None:
        self.name, self.version, self.platform = name, version, platform
        self.properties = properties
        self._backend, self._beside = backend, beside
        batching = batching or Batching()
        if batch_is_fixed((*backend.inputs, *backend.outputs)):
            batching = batching._replace(max_batch=1)
        self.batching = batching
        self._closing = False
        seconds = self._warm_up(backend, warm_rows)
        if beside is not None:
            self._warm_up(beside, warm_rows)
        self._batcher = Batcher(f"model-{name}", backend.run, batching, seconds, beside.run if beside else None)
        self._statistics = ModelStatistics(executions=self._batcher.executions)

    @classmethod
    def of_bundle(
        cls,
        bundle: PartyBundle,
        execution: Execution = DEFAULT_EXECUTION,
        batching: Batching | None = None,
        version: str = "1",
    ) -> Model:
        """The one part that a server's folder holds.

        Raises:
            BundleError: it was not exported in this precision.
            BackendError, DeviceError, MissingExtra: it cannot be loaded.
        """
        part = bundle.manifest.parts[0]
        backend = open_backend(part, bundle, execution)
        platform = TENSORRT if execution.backend == "tensorrt" else ONNX
        beside, threads = None, execution.num_threads or usable_cpus()
        small = len(bundle.onnx(part, execution.precision)) <= MOST_TWICE
        if execution.backend == "onnxruntime" and threads > 1 and small:
            beside = open_backend(part, bundle, execution._replace(num_threads=threads - 1))
        # A GPU's libraries choose their kernels anew for each size of a batch; a CPU would only hold the memory of it.
        most = (batching or Batching()).max_batch
        warm = (1,) if execution.backend == "onnxruntime" else tuple(range(most, 0, -1))
        return cls(part.name, backend, bundle.manifest.identity, batching, platform, version, beside, warm)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._backend.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._backend.outputs

    @property
    def statistics(self) -> ModelStatistics:
        """Since it was loaded, up to now."""
        self._statistics.waiting = self._batcher.num_waiting
        return self._statistics

    @property
    def wait_seconds(self) -> float:
        """How long a new request would wait, about; infinite before the first run."""
        return self._batcher.wait_seconds

    def submit(
        self, feeds: Mapping[str, Array], *, deadline: float | None = None, alone: bool = False
    ) -> asyncio.Future[Ran]:
        """Check the arrays against the model's inputs, and queue them for it.

        Args:
            feeds: arrays by name.
            deadline: by ``time.monotonic``, after which the run is not begun.
            alone: nobody else is served at this time, so that the event loop may wait for a short run.

        Raises:
            UnknownModelError: it is being unloaded.
            TensorError: the arrays do not fit, hold values that are not finite, or have more rows than the model takes.
            OverloadError: too many requests wait.

        Returns:
            A future; it ends in ExpiredError after the deadline, in BackendError where the model failed.
        """
        if self._closing:
            raise UnknownModelError(f"model {self.name!r}, version {self.version}, was unloaded meanwhile")
        check_feeds(self.inputs, feeds)
        for spec in self.inputs:
            spec.check_finite(feeds[spec.name])
        rows = max(len(array) if array.ndim else 1 for array in feeds.values())
        built_for = self._backend.max_batch
        most = MOST_BATCHES * self.batching.max_batch if built_for is None else built_for
        if rows > most:
            raise TensorError(f"{rows} rows in one request; this model takes {most} at most")
        in_order = {spec.name: feeds[spec.name] for spec in self.inputs}  # by which it is joined with others
        return self._batcher.submit(in_order, rows, deadline=deadline, alone=alone)

    async def drain(self) -> None:
        """Take no more requests, and wait for those that were taken."""
        self._closing = True
        while self._batcher.is_busy:
            await asyncio.sleep(DRAIN_LOOKS)

    def close(self) -> None:
        """Wait for the batch that runs, then free the model."""
        self._batcher.close()
        self._backend.close()
        if self._beside is not None:
            self._beside.close()

    def _warm_up(self, backend: Backend, rows: tuple[int, ...]) -> float:
        """Seconds of a run of the last of these sizes. Each size's first run allocates: that is not for a client."""
        feeds: dict[str, Array] = {}
        for count in rows if any(None in spec.shape for spec in self.inputs) else (1,):
            feeds = {
                spec.name: np.zeros([count if size is None else size for size in spec.shape], spec.numpy_dtype)
                for spec in self.inputs
            }
            outputs = backend.run(feeds)
            if set(outputs) != {spec.name for spec in self.outputs}:
                raise BackendError(f"model {self.name!r} gave {sorted(outputs)}")
        times = []
        for _ in range(WARM_RUNS):
            began = time.perf_counter()
            backend.run(feeds)
            times.append(time.perf_counter() - began)
        return median(times)
