"""Run the commands that README.md shows, on this machine, and put what they print into it.

    python tools/readme.py --data cifar10

Every fenced block that begins with ``$ `` is run, in order, in one fresh folder where ``cifar10/test`` are the data's
test images and ``tools`` is this one; a block with ``edgesdk train`` stays as it is. A command that ends in ``&`` is a
server: it runs until the end, and its first line on standard error is shown. The table of the shipped models is written
anew from their checkpoints. Run it on an idle machine: it measures.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from marked_table import markdown, replaced

from edge_sdk.bundle import EDGE, open_party
from edge_sdk.errors import EdgeSDKError
from edge_sdk.progress import track
from export.checkpoint import load_checkpoint
from export.data import image_folder

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
ZOO = ROOT / "export" / "zoo"
BLOCK = re.compile(r"^```\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)
WIDTH = "100"  # characters a line


def main() -> None:
    """Parse the command line, run and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as for edgesdk train")
    try:
        data = image_folder(parser.parse_args().data)
    except EdgeSDKError as error:
        sys.exit(f"readme: {error}")
    text = README.read_text()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "cifar10").mkdir()
        (folder / "cifar10" / "test").symlink_to(data.resolve())
        (folder / "tools").symlink_to(ROOT / "tools")
        blocks = [found.group(1) for found in BLOCK.finditer(text) if "edgesdk train" not in found.group(1)]
        for block in track(blocks, len(blocks), "blocks"):
            lines: list[str] = []
            for line in block.splitlines():
                if line.startswith("$ "):
                    lines += [line, *_run(line[2:], folder, stack)]
            text = text.replace(block, "\n".join(lines) + "\n")
        text = replaced(text, "shipped models, by tools/readme.py", _shipped(folder))
    README.write_text(text)


def _run(command: str, folder: Path, stack: ExitStack) -> list[str]:
    """What a command prints, without the blanks that end its lines."""
    tools = Path(sys.executable).parent
    environment = {**os.environ, "COLUMNS": WIDTH, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    if command.endswith("&"):
        server = subprocess.Popen(
            shlex.split(command[:-1]), cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
        )
        stack.callback(server.wait)
        stack.callback(server.terminate)
        assert server.stderr is not None
        return [server.stderr.readline().rstrip()]
    done = subprocess.run(
        shlex.split(command), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"readme: {command}: {done.stderr}")
    return [line.rstrip() for line in done.stdout.rstrip().splitlines()]


def _shipped(folder: Path) -> str:
    """The table's rows, from checkpoints and their bundles."""
    header = ["defense", "test accuracy", "validation", "train", "edge MFLOP", "edge parameters", "feature bytes"]
    rows = []
    for path in sorted(ZOO.glob("*/model.safetensors"), key=lambda path: path.parent.name):
        checkpoint, name = load_checkpoint(path), path.parent.name
        backbone = checkpoint.config.backbone
        out = folder / f"zoo-{name}"
        command = f"edgesdk export --defense {checkpoint.defense} --backbone {backbone} --out {out}"
        with ExitStack() as stack:
            _run(command, folder, stack)
        manifest = open_party(out / EDGE).manifest
        costs = [part.cost for part in manifest.parts if part.cost]
        accuracy = [f"{checkpoint.accuracy[part] * 100:.2f} %" for part in ("test", "validation", "train")]
        flops, parameters = sum(cost.flops for cost in costs), sum(cost.num_params for cost in costs)
        link = f"[`{checkpoint.defense}`](export/zoo/{name}/README.md)"
        rows.append([link, *accuracy, f"{flops / 1e6:.2f}", f"{parameters:,}", f"{manifest.wire_bytes:,}"])
    return markdown(header, rows)


if __name__ == "__main__":
    main()
