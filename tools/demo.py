"""Export the shipped models, serve their tails, send real images through, and print what came out and what it cost.

    python tools/demo.py [IMAGES] [--n 2000]

IMAGES is an image folder or an archive of one. Without it: the CIFAR-10 images beside the checkout or in the cache,
else the public archive (fetched, MD5 checked), else, offline, the photographs that scikit-image carries.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from serving import EDGESDK, process, serve

from edge_sdk.cli.measure import print_report
from edge_sdk.cli.tables import print_table
from edge_sdk.errors import DataError, EdgeSDKError
from edge_sdk.images import find_images
from edge_sdk.profile.end_to_end import MeasureReport, measure
from edge_sdk.progress import bar
from export.data import image_folder

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ROOT.parent / "shared" / "data" / "cifar10.tar.xz"
DEFENSES = ("none", "siftfunnel")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", help="an image folder, or an archive of one")
    parser.add_argument("--n", type=int, default=2000, help="images to send (default: 2000)")
    parser.add_argument("--out", type=Path, default=ROOT / "demo", help="folder for the bundles (default: demo/)")
    arguments = parser.parse_args()
    try:
        images, source = choose_images(arguments.images, arguments.out)
        print(f"images: {source}", flush=True)
        reports = [run(defense, images, arguments.n, arguments.out) for defense in DEFENSES]
    except EdgeSDKError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    for report in reports:
        print_report(report)
    summarize(reports, source)


def choose_images(given: str | None, out: Path) -> tuple[Path, str]:
    """A folder of test images, and where they are from."""
    if given is not None:
        return image_folder(given), given
    if BESIDE.exists():
        return image_folder(str(BESIDE)), f"CIFAR-10 test images, {BESIDE.name} beside the checkout"
    try:
        return image_folder("cifar10"), "CIFAR-10 test images, the public archive"
    except DataError as error:
        print(f"{error}\nfalling back to scikit-image's photographs", file=sys.stderr)
    return photographs(out / "photographs"), "photographs that scikit-image carries: no CIFAR-10 classes, no accuracy"


def photographs(folder: Path) -> Path:
    """scikit-image's colour photographs as files: only those in its wheel, nothing is fetched."""
    import skimage

    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((Path(skimage.__file__).parent / "data").iterdir()):
        if path.suffix in (".png", ".jpg", ".jpeg"):
            with Image.open(path) as image:
                if image.mode == "RGB" and min(image.size) >= 128:
                    image.save(folder / f"{path.stem}.png")
    return folder


def run(defense: str, images: Path, n: int, out: Path) -> MeasureReport:
    """Export, serve and measure one shipped model."""
    bundle = out / defense
    shutil.rmtree(bundle, ignore_errors=True)
    command = [*EDGESDK, "export", "--defense", defense, "--out", str(bundle), "--data", str(images)]
    if subprocess.run(command, check=False).returncode:
        sys.exit(1)  # it has said why
    available = len(find_images([images]))
    with process(serve(bundle / "server0")) as url, bar(f"measuring {defense}") as advance:
        return measure(bundle / "edge", [url], images, num_images=min(n, available), progress=advance)


def summarize(reports: list[MeasureReport], source: str) -> None:
    """One table, a row a model."""
    rows = []
    for report in reports:
        accuracy = "-"
        if report.accuracy is not None:
            error = (report.accuracy * (1 - report.accuracy) / report.num_labelled) ** 0.5
            accuracy = f"{report.accuracy:.1%} +- {error:.1%}"
        steps = {name: f"{stats.p50_ms:.2f}" if stats else "-" for name, stats in report.steps.items()}
        rows.append(
            [
                report.defense,
                accuracy,
                f"{report.feature_bytes_per_image:,}",
                steps["encode"],
                steps["network"],
                steps["tail"],
                f"{report.total.p50_ms:.2f}",
                f"{report.total.p99_ms:.2f}",
            ]
        )
    print_table(
        f"end to end: {reports[0].num_images} images, one at a time, client and server on one machine\n"
        f"{reports[0].machine}\n{source}",
        [
            "defense",
            "accuracy (std. error)",
            "feature bytes",
            "encode p50 ms",
            "network p50",
            "tail p50",
            "total p50",
            "total p99",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
