"""Does the device install compute elsewhere what it computes here: on other Pythons, on a Jetson's CPU architecture?

Installs edgesdk's base, without extras, for each --python in a virtual environment of its own, and with --aarch64 in a
Debian arm64 root (made there in 15 seconds, 223 MB; as root, on x86-64 Debian 12), whose programs run by emulation.
There it runs `edgesdk run` and `edgesdk profile` on a bundle, beside the same commands here, against the same servers.
Checks also that the install resolves on aarch64 for Python 3.10 (JetPack 6) and 3.12 (JetPack 7). Needs the cloud extra
here. Times under emulation mean nothing and are not shown.

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

from serving import process, serve

from edge_sdk.bundle import EDGE, parties
from edge_sdk.errors import ConfigError, EdgeSDKError

TOOLS = Path(__file__).resolve().parent
ROOT_SCRIPT = str(TOOLS / "aarch64_root.sh")
TOLERANCE = 1e-4
JETPACK_PYTHONS = ("3.10", "3.12")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
ENTRY = "from edge_sdk.cli import main; main()"

Command = Callable[[Sequence[str]], str]
"""Runs edgesdk with these arguments somewhere, and gives what it prints."""


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
        places: dict[str, Command] = {python: in_venv(work, wheel, python, shared) for python in pythons}
        if root is not None:
            places["aarch64"] = in_root(work, wheel, root, shared)
        servers = [
            option
            for folder in parties(bundle)
            if folder.name != EDGE
            for option in ("--server", stack.enter_context(process(serve(folder))))
        ]
        run = ["run", EDGE, *files, *servers, "--allow-colocated", "--top", "1000", "--json"]
        profile = ["profile", EDGE, "--runs", "3", "--warmup", "1", "--json", "-"]
        here = partial(_edgesdk, [sys.executable], shared)
        expected, layers = here(run), set(json.loads(here(profile))["encoder"]["layer_ms"])
        same = [_same(place, command, run, profile, expected, layers) for place, command in places.items()]
        return all(same)


def _same(place: str, command: Command, run: list[str], profile: list[str], expected: str, layers: set[str]) -> bool:
    answers = [[json.loads(line) for line in text.splitlines()] for text in (expected, command(run))]
    worst = max(_difference(a, b) for a, b in zip(*answers, strict=True))
    report = json.loads(command(profile))
    same_layers = set(report["encoder"]["layer_ms"]) == layers
    machine = report["machine"]
    print(
        f"{place}: {machine['system']}, Python {machine['python']}, ONNX Runtime {machine['onnxruntime']}: "
        f"probabilities of {len(answers[0])} images differ by {worst:.1e} at most (limit {TOLERANCE:g}), "
        f"{len(layers)} layers of the encoder were timed {'there too' if same_layers else 'HERE, OTHERS THERE'}",
        flush=True,
    )
    return worst <= TOLERANCE and same_layers


def _difference(here: dict[str, list[dict[str, float]]], there: dict[str, list[dict[str, float]]]) -> float:
    first, second = ({each["label"]: each["probability"] for each in answer["classes"]} for answer in (here, there))
    return max(abs(first[label] - second[label]) for label in first)


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


def in_venv(work: Path, wheel: Path, python: str, folder: Path) -> Command:
    """The device install for an interpreter of this machine."""
    home = work / f"venv-{Path(python).name}-{abs(hash(python))}"
    subprocess.run([python, "-m", "venv", str(home)], check=True)
    subprocess.run([str(home / "bin" / "pip"), "install", "--quiet", str(wheel)], check=True)
    return partial(_edgesdk, [str(home / "bin" / "python")], folder)


def in_root(work: Path, wheel: Path, root: Path, folder: Path) -> Command:
    """The device install on an emulated CPU; in a chroot, so that child processes run there too."""
    subprocess.run([ROOT_SCRIPT, "setup", str(root), str(work / "wheels"), str(wheel)], check=True)
    return partial(_edgesdk, [ROOT_SCRIPT, "chroot", str(root), str(folder), "python3"], folder)


def _edgesdk(python: Sequence[str], folder: Path, arguments: Sequence[str]) -> str:
    command = [*python, "-c", ENTRY, *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def _pip(*arguments: str) -> str:
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
