"""Names, dtypes and shapes of tensors, and the one check of fed arrays against them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import TensorError

__all__ = ["DTYPES", "Array", "TensorSpec", "batch_is_fixed", "check_feeds", "dtype_name"]

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
"""Datatypes of the Open Inference Protocol and numpy's; BYTES and BF16 have no fixed numpy type and are not used."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor that a part takes or gives.

    Attributes:
        name: unique within a placement graph; equal names join parts.
        dtype: a key of ``DTYPES``.
        shape: with None for the batch axis only, which comes first.
        source: ``data`` comes from the caller or another part; ``normal`` is drawn on the device from N(0, 1);
            ``received``, of shape ``(N, K)``, is 1 for each of the K remote parts that answered and 0 for the others.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    source: Literal["data", "normal", "received"] = "data"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise TensorError(f"tensor {self.name!r}: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if any(size is None for size in self.shape[1:]) or any(size is not None and size < 0 for size in self.shape):
            raise TensorError(f"tensor {self.name!r}: shape {self.shape} may be open in the first axis only")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of one sample of a batch."""
        sizes = [size for size in self.shape if size is not None]
        return int(np.prod(sizes, dtype=np.int64)) * self.numpy_dtype.itemsize

    def check(self, array: Array) -> None:
        """Compare dtype and shape.

        Raises:
            TensorError: they differ; the message has both.
        """
        if array.dtype != self.numpy_dtype:
            raise TensorError(f"tensor {self.name!r}: expected dtype {self.dtype}, got {dtype_name(array.dtype)}")
        # On every request's way: a list is quicker than any() and a generator.
        if len(array.shape) != len(self.shape) or [
            1 for want, got in zip(self.shape, array.shape, strict=True) if want not in (None, got)
        ]:
            want = [-1 if size is None else size for size in self.shape]
            raise TensorError(f"tensor {self.name!r}: expected shape {want}, got {list(array.shape)}")
        if array.shape and array.shape[0] == 0:
            raise TensorError(f"tensor {self.name!r}: the batch is empty")

    def check_finite(self, array: Array) -> None:
        """Refuse NaN and infinity in a float tensor.

        Raises:
            TensorError: there is one.
        """
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise TensorError(f"tensor {self.name!r}: holds values that are not finite")


def batch_is_fixed(specs: Iterable[TensorSpec]) -> bool:
    """Whether any of these tensors of a part has one batch size only, or no batch axis."""
    return any(not spec.shape or spec.shape[0] is not None for spec in specs)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a numpy dtype, or numpy's own where the protocol has none."""
    return _NAMES.get(dtype) or str(dtype)  # numpy takes long over its own names


def check_feeds(specs: tuple[TensorSpec, ...], feeds: Mapping[str, Array]) -> None:
    """Compare arrays with what is declared: the names, each dtype and shape, and one batch size for all.

    Raises:
        TensorError: the first difference.
    """
    if feeds.keys() != {spec.name for spec in specs}:
        raise TensorError(f"expected tensors {sorted(spec.name for spec in specs)}, got {sorted(feeds)}")
    for spec in specs:
        spec.check(feeds[spec.name])
    if len(specs) == 1:
        return
    batches = {spec.name: len(feeds[spec.name]) for spec in specs if spec.shape and spec.shape[0] is None}
    if len(set(batches.values())) > 1:
        raise TensorError(f"tensors of one request differ in batch size: {batches}")
