"""FLOPs layer by layer: counted from the exported ONNX, and by torch's own counter on the torch model.

Every convolution and matrix product of encoder and tail, in the order they run, must have the same number on both
sides; ends with exit status 1 where one differs.

    python tools/flops_table.py [--layers]
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from edge_sdk.cli.tables import print_table
from export.checkpoint import build_defense
from export.cost import count_cost
from export.defenses import model_config
from export.models import BACKBONES
from export.onnx import EdgeGraph, TailGraph, to_onnx
from export.wire import Wire

SIZE = 32


class Recorder(TorchDispatchMode):
    """The FLOPs of every operation that torch's counter knows, in the order they run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        counter = flop_registry.get(function.overloadpacket)
        if counter is not None:
            self.found.append(int(counter(*args, **(kwargs or {}), out_val=out)))
        return out


def main() -> None:
    """Count on both sides and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", action="store_true", help="print every layer")
    arguments = parser.parse_args()
    rows, differ = [], False
    for backbone in BACKBONES:
        model = build_defense("none", model_config("none", backbone=backbone)).eval()
        wire = Wire("float32")
        image = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
        edge, tail = EdgeGraph(model, [wire]).eval(), TailGraph(model.tails[0], wire).eval()
        with torch.no_grad():
            features = edge(image)[0]
        for part, graph, example in (("encoder", edge, image), ("tail", tail, features)):
            ours, torchs = count(graph, example)
            same = [flops for _, flops in ours] == torchs
            differ |= not same
            total = sum(flops for _, flops in ours)
            rows.append(
                [f"{backbone} {part}", str(len(ours)), f"{total:,}", f"{sum(torchs):,}", "yes" if same else "NO"]
            )
            if arguments.layers:
                each = [[name, f"{a:,}", f"{b:,}"] for (name, a), b in zip(ours, torchs, strict=False)]
                print_table(f"{backbone} {part}", ["layer", "from the ONNX", "torch's counter"], each)
    title = f"FLOPs of an image at {SIZE}x{SIZE}, 1 multiply-accumulate = 2 FLOPs; torch {torch.__version__}"
    print_table(title, ["", "layers", "from the ONNX", "torch's counter", "every layer the same"], rows)
    if differ:
        sys.exit("flops_table: the counts differ")


def count(graph: torch.nn.Module, example: torch.Tensor) -> tuple[list[tuple[str, int]], list[int]]:
    """Layers with FLOPs by name from the ONNX, and torch's numbers, both in the order they run."""
    cost = count_cost(to_onnx(graph, (example,), ["x"], ["y"], "static"))
    # Attention as matrix products: torch's counter does not know the fused kernel of the CPU.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Recorder() as recorder:
        graph(example)
    return [(layer.name, layer.flops) for layer in cost.layers if layer.flops], recorder.found


if __name__ == "__main__":
    main()
