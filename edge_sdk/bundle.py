"""A bundle on disk: one folder per party, each with its ONNX parts, a manifest and a SHA256SUMS file.

The edge's manifest is a placement graph: parts in the order they run, where each runs, and named tensors that join
them. A server's manifest holds its own part alone. Nobody else reads or writes these files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from .errors import BundleError, TensorError
from .files import blocking, folder_aside
from .layout import EDGE, MANIFEST_FILE, did_you_mean, parties, why_no_party
from .tensors import TensorSpec

__all__ = [
    "BUNDLE_KEY",
    "EDGE",
    "FORMAT_VERSION",
    "INT8_OPERATORS",
    "PARTY_KEY",
    "SUMS_FILE",
    "Cost",
    "LayerCost",
    "Manifest",
    "Part",
    "PartyBundle",
    "Precision",
    "Variant",
    "bundle_id",
    "check_target",
    "open_parties",
    "open_party",
    "parties",
    "write_bundle",
]

Precision = Literal["fp32", "fp16", "int8"]
"""That the files of a bundle come in."""
INT8_OPERATORS = ("Conv", "Gemm", "MatMul")
"""That an int8 file has in 8 bits, but for what its export kept in float32; everything else in it is float32."""

FORMAT_VERSION = 1
BUNDLE_KEY, PARTY_KEY = "edgesdk_bundle_id", "edgesdk_party"
"""By which a server says, and a request asks, whose part it is."""
SUMS_FILE = "SHA256SUMS"


class LayerCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node of an ONNX graph, for one sample; the fields are those of ``Cost``.

    ``activation_elements`` are the numbers that it takes and gives, without weights.
    """

    name: str
    op: str
    flops: int
    other_ops: int
    num_params: int
    activation_elements: int
    output_shape: tuple[int, ...]

    def elements(self, batch: int) -> int:
        """Numbers that it moves at least for a batch: weights and activations, each once."""
        return self.num_params + self.activation_elements * batch


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one sample costs in a part, counted from its graph at export.

    Attributes:
        flops: in convolutions and matrix products; 1 multiply-accumulate = 2 FLOPs.
        other_ops: elementwise operations, reductions and pooling, one for an element.
        num_params: floating-point weights.
        weight_bytes: of all constants in the file.
        layers: the same, node by node.
    """

    flops: int
    other_ops: int
    num_params: int
    weight_bytes: int
    layers: tuple[LayerCost, ...]


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part in a lower precision: its ONNX file, and the bytes of all constants in it."""

    file: str
    weight_bytes: int


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One network of the placement graph.

    Attributes:
        name: ``encoder``, ``tail``, ``tail2``, ``fusion``; on a server, the model's name in the protocol.
        placement: the party that runs it: ``edge``, ``server0``, …
        inputs: what it takes: graph inputs, or outputs of parts before it.
        outputs: what it gives.
        file: its ONNX file in this party's folder; None for a part that another party runs.
        cost: of this part; None for a part that another party runs.
        variants: the same in lower precisions, ``fp16`` or ``int8``; inputs and outputs are those of the first.
    """

    name: str
    placement: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    file: str | None = None
    cost: Cost | None = None
    variants: dict[Precision, Variant] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """All of its files in this party's folder."""
        own = () if self.file is None else (self.file,)
        return (*own, *(variant.file for variant in self.variants.values()))

    def runs_in(self, precision: Precision) -> Precision:
        """The precision that it runs in where this one is asked for: float32 for a part that has no other."""
        return precision if precision in self.variants else "fp32"

    def weight_bytes(self, precision: Precision) -> int:
        """Of all constants in the file of this precision; 0 for a part that another party runs."""
        if self.cost is None:
            return 0
        return self.variants[precision].weight_bytes if precision in self.variants else self.cost.weight_bytes


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one party knows of a bundle.

    Attributes:
        format_version: of this file and folder; other versions are refused.
        bundle_id: SHA-256 over all parties' parts and settings: equal on parties exported together.
        party: whose folder this is.
        parts: this party's parts; on the edge also the remote ones, without files, in the order they run.
        defense: its name, for people; nothing at run time depends on it.
        config: the defense's settings (edge only).
        labels: class names in the order of the logits (edge only).
        preprocessing: what the encoder's graph does to the uint8 image (edge only).
        provenance: training, data, software, export checks.
        accuracy: top-1 by part of the data, with what it was measured on.
        wire_bytes: that leave the device for one image (edge only).
        reference: the undefended encoder of the same backbone, for comparing cost; never run otherwise (edge only).
        privacy: the audit's summary, or None where none was made.
    """

    format_version: int
    bundle_id: str
    party: str
    parts: tuple[Part, ...]
    defense: str
    config: dict[str, Any] = {}
    labels: tuple[str, ...] = ()
    preprocessing: dict[str, Any] = {}
    provenance: dict[str, Any] = {}
    accuracy: dict[str, Any] = {}
    wire_bytes: int | None = None
    reference: Part | None = None
    privacy: dict[str, Any] | None = None

    @property
    def identity(self) -> dict[str, str]:
        """What this party's server says of itself in its model's metadata."""
        return {BUNDLE_KEY: self.bundle_id, PARTY_KEY: self.party}

    @property
    def servers(self) -> tuple[str, ...]:
        """The parties that the device asks, in the order of its graph: ``server0``, … (edge only)."""
        return tuple(dict.fromkeys(part.placement for part in self.parts if part.placement != EDGE))

    def bytes_to(self, server: str) -> int:
        """What leaves the device for one image to one server (edge only)."""
        return sum(spec.bytes_per_sample for p in self.parts if p.placement == server for spec in p.inputs)

    def part(self, name: str) -> Part:
        """The part of that name.

        Raises:
            BundleError: there is none.
        """
        for part in self.parts:
            if part.name == name:
                return part
        raise BundleError(f"no part {name!r} in {self.party}; it has {', '.join(p.name for p in self.parts)}")


class PartyBundle(msgspec.Struct, frozen=True):
    """One party's folder, verified, with its files' content as verified: what is run is what was hashed."""

    path: Path
    manifest: Manifest
    files: dict[str, bytes]

    def onnx(self, part: Part, precision: Precision = "fp32") -> bytes:
        """The ONNX model of a part that this party runs, in this precision or, where the part has none, in float32.

        Raises:
            BundleError: none of this party's parts was exported in this precision.
        """
        exported = ["fp32", *dict.fromkeys(each for own in self.manifest.parts for each in own.variants)]
        if precision not in exported:
            raise BundleError(
                f"{self.path}: exported in {', '.join(exported)}, not in {precision}; "
                f"export it with --precision {precision}"
            )
        variant = part.variants.get(precision)
        return self.files[variant.file if variant else part.file or ""]


def open_party(path: Path, expected: str | None = None) -> PartyBundle:
    """Read a party's folder and verify every file of it.

    Args:
        path: ``BUNDLE/edge`` or ``BUNDLE/server0``.
        expected: ``edge`` or ``server``: which kind of party the caller can use.

    Raises:
        BundleError: no such folder, a file missing, altered or truncated, another format version, a graph that does
            not fit together, or the other kind of party.
    """
    if not (path / MANIFEST_FILE).is_file():
        raise BundleError(f"{path}: {why_no_party(path, expected)}")
    files = _read_verified(path)
    manifest = _decode(path, files[MANIFEST_FILE])
    for part in (*manifest.parts, *([manifest.reference] if manifest.reference else [])):
        for file in part.files:
            if file not in files:
                raise BundleError(f"{path}: {SUMS_FILE} does not list {file}")
    if expected is not None and (manifest.party == EDGE) != (expected == EDGE):
        beside = did_you_mean(path.parent, expected)
        raise BundleError(
            f"{path}: this is the folder of {manifest.party}; a folder for {expected} is needed here{beside}"
        )
    return PartyBundle(path, manifest, files)


def open_parties(path: Path) -> list[PartyBundle]:
    """Every party that is there, verified, as ``parties`` finds them.

    Raises:
        BundleError: none there, as for ``open_party``, or folders of several bundles, or of one party twice.
    """
    opened = [open_party(folder) for folder in parties(path)]
    first, seen = opened[0].manifest, set[str]()
    for each in opened:
        manifest = each.manifest
        if manifest.bundle_id != first.bundle_id:
            raise BundleError(
                f"{each.path}: of bundle {manifest.bundle_id[:12]}, and {opened[0].path} beside it of "
                f"{first.bundle_id[:12]}; a bundle's folders have to be of one export"
            )
        if manifest.party in seen:
            raise BundleError(f"{each.path}: holds {manifest.party}, which another folder here holds already")
        seen.add(manifest.party)
    return opened


def write_bundle(path: Path, manifests: Mapping[str, Manifest], files: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write all parties' folders aside, then rename them into place as one.

    Args:
        path: the bundle's folder, which must not exist, or be empty.
        manifests: by party.
        files: content by party and file name.

    Raises:
        BundleError: ``path`` exists and is not an empty folder.
    """
    check_target(path)
    with folder_aside(path) as aside:
        for party, manifest in manifests.items():
            folder = aside / party
            folder.mkdir()
            content = {MANIFEST_FILE: _encode(manifest), **files[party]}
            for name, data in content.items():
                (folder / name).write_bytes(data)
            (folder / SUMS_FILE).write_bytes(_sums(content))
            open_party(folder)


def check_target(path: Path) -> None:
    """Refuse to write a bundle over anything.

    Raises:
        BundleError: ``path`` exists and is not an empty folder.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise BundleError(f"{path}: exists already; choose another --out, or remove it first")
    if above := blocking(path.resolve().parent):
        raise BundleError(f"{path}: cannot be made, {above} is not a folder that can be written to")


def bundle_id(parts: Mapping[str, bytes], settings: Mapping[str, Any]) -> str:
    """Hex SHA-256 over every part's file and the settings, in a fixed order."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    return hashlib.sha256(msgspec.json.encode([digests, settings], order="deterministic")).hexdigest()


def _read_verified(path: Path) -> dict[str, bytes]:
    try:
        sums = (path / SUMS_FILE).read_bytes()
        names = [line.split("  ", 1)[1] for line in sums.decode("ascii").splitlines()]
        inside = {p.name for p in path.iterdir()}
        strange = [name for name in names if name not in inside]
        if strange:
            raise BundleError(f"{path}: {strange[0]!r} is listed in {SUMS_FILE} and missing; export again")
        files = {name: (path / name).read_bytes() for name in names}
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise BundleError(f"{path}: {SUMS_FILE} is missing or damaged; export or copy the bundle again") from error
    if sums != _sums(files) or MANIFEST_FILE not in files:
        listed = sums.decode("ascii").splitlines()
        altered = [name for name, data in files.items() if _sum_line(name, data) not in listed]
        raise BundleError(
            f"{path}: {', '.join(altered) or SUMS_FILE} was altered or truncated since the export "
            "(SHA-256 differs); export or copy the bundle again"
        )
    return files


def _sums(files: Mapping[str, bytes]) -> bytes:
    return "".join(f"{_sum_line(name, data)}\n" for name, data in sorted(files.items())).encode("ascii")


def _sum_line(name: str, data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}  {name}"


def _encode(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2) + b"\n"


def _decode(path: Path, data: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(data, type=dict[str, Any]).get("format_version")
        if version != FORMAT_VERSION:
            raise BundleError(f"{path}: bundle format {version!r}; this edgesdk reads format {FORMAT_VERSION}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TensorError) as error:
        raise BundleError(f"{path}: {MANIFEST_FILE} is not a valid manifest ({error})") from error
    _check_graph(path, manifest)
    return manifest


def _check_graph(path: Path, manifest: Manifest) -> None:
    """Every name once, every file here, and on the edge every input given by a part before it."""
    if not manifest.parts or manifest.parts[0].placement != manifest.party:
        raise BundleError(f"{path}: {len(manifest.parts)} parts; the first must be one that {manifest.party} runs")
    reference = [manifest.reference] if manifest.reference else []
    for part in (*manifest.parts, *reference):
        if not part.inputs or not part.outputs:
            raise BundleError(f"{path}: part {part.name!r} has no inputs or no outputs")
        if part.file is not None and part.cost is None:
            raise BundleError(f"{path}: part {part.name!r} has a file and no cost")
    for part in reference:
        if part.file is None:
            raise BundleError(f"{path}: the reference encoder has no file")
    if manifest.party == EDGE:
        images = [spec for spec in manifest.parts[0].inputs if spec.source == "data"]
        if len(images) != 1 or images[0].dtype != "UINT8" or len(images[0].shape) != 4:
            raise BundleError(f"{path}: the first part must take one UINT8 image of shape (N, H, W, 3)")
    given: set[str] = set()
    for index, part in enumerate(manifest.parts):
        local = part.placement == manifest.party
        if local != (part.file is not None):
            raise BundleError(f"{path}: part {part.name!r} runs on {part.placement}; its file is {part.file!r}")
        for file in part.files:
            if Path(file).name != file or file.startswith("."):
                raise BundleError(f"{path}: part {part.name!r}: {file!r} is not a plain file name")
        if part.variants and not local:
            raise BundleError(f"{path}: part {part.name!r} runs on {part.placement}; it has files of its own")
        if manifest.party == EDGE and index > 0:
            missing = [spec.name for spec in part.inputs if spec.source == "data" and spec.name not in given]
            if missing:
                raise BundleError(f"{path}: part {part.name!r} needs {missing[0]!r}, which no part before it gives")
        remote = sum(part.placement != manifest.party for part in manifest.parts[:index])
        for spec in part.inputs:
            if spec.source == "received" and (not local or spec.shape[1:] != (remote,) or not remote):
                raise BundleError(f"{path}: part {part.name!r}: {spec.name!r} must be (N, {remote}), one a server")
        outputs = [spec.name for spec in part.outputs]
        if given & set(outputs):
            raise BundleError(f"{path}: tensor {(given & set(outputs)).pop()!r} is given twice")
        given |= set(outputs)
    if manifest.party == EDGE and manifest.labels:
        logits = manifest.parts[-1].outputs[0]
        if logits.shape[-1:] != (len(manifest.labels),):
            raise BundleError(f"{path}: {len(manifest.labels)} labels for {logits.name} of shape {logits.shape}")
    names = [part.name for part in manifest.parts]
    if len(set(names)) != len(names):
        raise BundleError(f"{path}: {len(names)} parts with names {names}; every part needs a name of its own")
