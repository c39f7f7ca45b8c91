"""Does the device install compute elsewhere what it computes here: on other Pythons, on a Jetson's CPU architecture?

Installs edgesdk's base, without extras, for each --python in a virtual environment of its own, and with --aarch64 in a
Debian arm64 root (made there in 15 seconds, 223 MB; as root, on x86-64 Debian 12), whose programs run by emulation.
There it runs the encoder of a bundle without noise on pixels decoded here: every feature must be within 1e-4 of what
it is here. So must the answers of `edgesdk run` be, against the same servers, and `edgesdk profile` must time the same
layers. Checks also that the install resolves on aarch64 for Python 3.10 (JetPack 6) and 3.12 (JetPack 7). Needs the
cloud extra here. Times under emulation mean nothing and are not shown.

    python tools/check_device_install.py BUNDLE IMAGE... [--python python3.10] [--aarch64 ROOT]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from serving import process, serve

from edge_sdk.bundle import EDGE, PartyBundle, open_party, parties
from edge_sdk.errors import ConfigError, EdgeSDKError
from edge_sdk.images import decode_image, fit_image
from edge_sdk.tensors import Array

TOOLS = Path(__file__).resolve().parent
ROOT_SCRIPT = str(TOOLS / "aarch64_root.sh")
TOLERANCE = 1e-4
JETPACK_PYTHONS = ("3.10", "3.12")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
PIXELS, FEATURES = "pixels.npy", "features.npz"
ENTRY = "from edge_sdk.cli import main; main()"

ENCODE = """
import sys
from pathlib import Path

import numpy as np

from edge_sdk.backends import DEFAULT_EXECUTION, open_backend
from edge_sdk.bundle import open_party

edge, pixels, features = map(Path, sys.argv[1:])
bundle = open_party(edge)
with open_backend(bundle.manifest.parts[0], bundle, DEFAULT_EXECUTION) as encoder:
    rows = [encoder.run({"image": image[None]}) for image in np.load(pixels)]
np.savez(features, **{name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
"""
"""What each place's Python runs: an image at a time, as the device does."""

Place = Callable[[Sequence[str]], str]
"""Runs its Python with these arguments in the shared folder, and gives what that prints."""


class Computed(NamedTuple):
    """By one place.

    Attributes:
        features: of all images, by tensor.
        answers: of ``run``, an image each.
        report: of ``profile``.
    """

    features: dict[str, Array]
    answers: list[dict[str, Any]]
    report: dict[str, Any]


def main() -> None:
    """Install, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path, nargs="+", help="image files")
    parser.add_argument("--python", action="append", default=[], help="an interpreter; may be repeated")
    parser.add_argument("--aarch64", type=Path, metavar="ROOT", help="folder of the arm64 root, made if need be")
    arguments = parser.parse_args()
    try:
        same = check(arguments.bundle, arguments.images, arguments.python, arguments.aarch64)
    except (EdgeSDKError, subprocess.CalledProcessError) as error:
        sys.exit(f"check_device_install: {error}")
    if not same:
        sys.exit("check_device_install: something else was computed")


def check(bundle: Path, images: Sequence[Path], pythons: Sequence[str], root: Path | None) -> bool:
    """Whether every place computes what this one does."""
    parties(bundle)
    for path in [*images, *(found for python in pythons if (found := shutil.which(python) or python))]:
        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such file")
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        work, shared = Path(name), Path(name) / "shared"
        wheel = build_wheel(work)
        for version in JETPACK_PYTHONS:
            print(f"Python {version} on aarch64 resolves to {', '.join(resolve(wheel, version))}", flush=True)
        shutil.copytree(bundle / EDGE, shared / EDGE)
        files = [Path(shutil.copy(image, shared / f"{i}{image.suffix}")).name for i, image in enumerate(images)]
        np.save(shared / PIXELS, decoded(open_party(shared / EDGE), images))
        places: dict[str, Place] = {python: in_venv(work, wheel, python, shared) for python in pythons}
        if root is not None:
            places["aarch64"] = in_root(work, wheel, root, shared)
        servers = [
            option
            for folder in parties(bundle)
            if folder.name != EDGE
            for option in ("--server", stack.enter_context(process(serve(folder))))
        ]
        run = ["run", EDGE, *files, *servers, "--allow-colocated", "--top", "1000", "--json"]
        expected = compute(partial(_python, [sys.executable], shared), run, shared)
        same = [agree(name, expected, compute(place, run, shared)) for name, place in places.items()]
        return all(same)


def decoded(edge: PartyBundle, images: Sequence[Path]) -> Array:
    """What the encoder takes of the images: uint8 ``(N, H, W, 3)``.

    Raises:
        ConfigError: the encoder takes noise, drawn anew for every answer, or rounds its features, so that the smallest
            difference may become a whole step.
        DataError: an image cannot be read.
    """
    encoder = edge.manifest.parts[0]
    if len(encoder.inputs) > 1:
        raise ConfigError("this bundle's noise makes every answer another; take a bundle without")
    if encoder.outputs[0].dtype != "FP32":
        raise ConfigError(f"features of this bundle travel as {encoder.outputs[0].dtype}; take one that sends float32")
    height, width = (size or 0 for size in encoder.inputs[0].shape[1:3])
    return np.stack([fit_image(decode_image(image), height, width) for image in images])


def compute(place: Place, run: Sequence[str], shared: Path) -> Computed:
    """All that is compared, by one place; ``run`` is the command's arguments."""
    (shared / FEATURES).unlink(missing_ok=True)
    place(["-c", ENCODE, EDGE, PIXELS, FEATURES])
    with np.load(shared / FEATURES) as file:
        features = dict(file)
    answers = place(["-c", ENTRY, *run])
    report = place(["-c", ENTRY, "profile", EDGE, "--runs", "3", "--warmup", "1", "--json", "-"])
    return Computed(features, [json.loads(line) for line in answers.splitlines()], json.loads(report))


def agree(place: str, here: Computed, there: Computed) -> bool:
    """Whether two places computed the same; says how far apart they are."""
    features = np.max([np.abs(here.features[name] - there.features[name]).max() for name in here.features])
    answers = max(_difference(a, b) for a, b in zip(here.answers, there.answers, strict=True))
    layers = [set(each.report["encoder"]["layer_ms"]) for each in (here, there)]
    same_layers = layers[0] == layers[1]
    machine = there.report["machine"]
    print(
        f"{place}: {machine['system']}, Python {machine['python']}, ONNX Runtime {machine['onnxruntime']}: of "
        f"{len(here.answers)} images features differ by {features:.1e} at most, probabilities by {answers:.1e} (limit "
        f"{TOLERANCE:g}), {len(layers[0])} layers of the encoder were timed "
        f"{'there too' if same_layers else 'HERE, OTHERS THERE'}",
        flush=True,
    )
    return bool(features <= TOLERANCE and answers <= TOLERANCE and same_layers)


def _difference(here: dict[str, Any], there: dict[str, Any]) -> float:
    first, second = ({each["label"]: each["probability"] for each in answer["classes"]} for answer in (here, there))
    return float(max(abs(first[label] - second[label]) for label in first))


def build_wheel(work: Path) -> Path:
    """Of this checkout."""
    _pip("wheel", "--quiet", "--no-deps", "--wheel-dir", str(work), str(TOOLS.parent))
    return next(work.glob("edgesdk-*.whl"))


def resolve(wheel: Path, version: str) -> list[str]:
    """What pip would install for an aarch64 Python of that version, as wheels alone."""
    platforms = [option for name in PLATFORMS for option in ("--platform", f"{name}_aarch64")]
    report = _pip(
        "install", "--dry-run", "--quiet", "--report", "-", "--ignore-installed", "--only-binary=:all:", "--target",
        "nowhere", "--python-version", version, *platforms, str(wheel),
    )  # fmt: skip
    found = (each["metadata"] for each in json.loads(report)["install"])
    return sorted(f"{each['name']} {each['version']}" for each in found)


def in_venv(work: Path, wheel: Path, python: str, folder: Path) -> Place:
    """The device install for an interpreter of this machine."""
    home = work / f"venv-{Path(python).name}-{abs(hash(python))}"
    subprocess.run([python, "-m", "venv", str(home)], check=True)
    subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", str(wheel)], check=True)
    return partial(_python, [str(home / "bin" / "python")], folder)


def in_root(work: Path, wheel: Path, root: Path, folder: Path) -> Place:
    """The device install on an emulated CPU; in a chroot, so that child processes run there too."""
    subprocess.run([ROOT_SCRIPT, "setup", str(root), str(work / "wheels"), str(wheel)], check=True)
    return partial(_python, [ROOT_SCRIPT, "chroot", str(root), str(folder), "python3"], folder)


def _python(python: Sequence[str], folder: Path, arguments: Sequence[str]) -> str:
    return subprocess.run([*python, *arguments], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
