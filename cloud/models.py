"""A served model: one part of a bundle, its backend, and the thread that runs it. Knows no HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from edge_sdk.backends import DEFAULT_EXECUTION, Backend, Execution, open_backend
from edge_sdk.bundle import PartyBundle
from edge_sdk.errors import BackendError
from edge_sdk.tensors import Array, TensorSpec, check_feeds

__all__ = ["Answer", "Model"]


INLINE_SECONDS = 0.02
"""A lone client's request that will take less runs on the event loop: handing it over would only add to its wait."""


class Answer(NamedTuple):
    """Outputs by name; microseconds the request waited for the model, and the model ran."""

    outputs: dict[str, Array]
    queue_us: int
    compute_us: int


class Model:
    """A model that answers requests one after the other, in a thread of its own so that the event loop stays free.

    A thread's hand-over costs two wake-ups, which one client alone need not pay.

    Args:
        name: in the protocol.
        backend: loaded; closed by ``close``.
        properties: what its metadata says besides names and shapes.
    """

    version = "1"

    def __init__(self, name: str, backend: Backend, properties: dict[str, str]) -> None:
        self.name = name
        self.properties = properties
        self._backend = backend
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{name}")
        self._running = threading.Lock()
        self._seconds_per_row = 0.0
        self._warm_up()

    @classmethod
    def of_bundle(cls, bundle: PartyBundle, execution: Execution = DEFAULT_EXECUTION) -> Model:
        """The one part that a server's folder holds.

        Raises:
            BundleError: it was not exported in this precision.
            BackendError, DeviceError, MissingExtra: it cannot be loaded.
        """
        part = bundle.manifest.parts[0]
        backend = open_backend(part, bundle, execution)
        identity = {"edgesdk_bundle_id": bundle.manifest.bundle_id, "edgesdk_party": bundle.manifest.party}
        return cls(part.name, backend, identity)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._backend.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._backend.outputs

    async def infer(self, feeds: Mapping[str, Array], *, alone: bool = False) -> Answer:
        """Check the arrays against the model's inputs, wait for the model, run it.

        Args:
            feeds: arrays by name.
            alone: nobody else is served at this time, so that the event loop may wait for a short run.

        Raises:
            TensorError: the arrays do not fit, or hold values that are not finite.
            BackendError: the model failed.
        """
        check_feeds(self.inputs, feeds)
        for spec in self.inputs:
            spec.check_finite(feeds[spec.name])
        arrived = time.perf_counter()
        if alone and _rows(feeds) * self._seconds_per_row < INLINE_SECONDS and self._running.acquire(blocking=False):
            try:
                return self._run(feeds, arrived)
            finally:
                self._running.release()
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run_in_turn, feeds, arrived)

    def close(self) -> None:
        """Wait for the request that runs, then free the model."""
        self._thread.shutdown()
        self._backend.close()

    def _run_in_turn(self, feeds: Mapping[str, Array], arrived: float) -> Answer:
        with self._running:
            return self._run(feeds, arrived)

    def _run(self, feeds: Mapping[str, Array], arrived: float) -> Answer:
        began = time.perf_counter()
        outputs = self._backend.run(feeds)
        ended = time.perf_counter()
        self._seconds_per_row = (ended - began) / _rows(feeds)
        return Answer(outputs, round((began - arrived) * 1e6), round((ended - began) * 1e6))

    def _warm_up(self) -> None:
        """The first run allocates; it must not fall to a client."""
        feeds = {
            spec.name: np.zeros([1 if size is None else size for size in spec.shape], spec.numpy_dtype)
            for spec in self.inputs
        }
        outputs = self._run(feeds, time.perf_counter()).outputs
        if set(outputs) != {spec.name for spec in self.outputs}:
            raise BackendError(f"model {self.name!r} gave {sorted(outputs)}")


def _rows(feeds: Mapping[str, Array]) -> int:
    return max(len(array) if array.ndim else 1 for array in feeds.values())
