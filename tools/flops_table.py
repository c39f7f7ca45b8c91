"""FLOPs layer by layer: counted from the exported ONNX, and by torch's own FlopCounterMode on the torch model.

Every convolution and matrix product of all parts, in the order they run, must have the same number on both sides; ends
with exit status 1 where one differs. Of the undefended model on every backbone, and of the shipped siftfunnel and
privdfs.

    python tools/flops_table.py [--layers]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from edge_sdk.bundle import Cost
from edge_sdk.cli.tables import print_table
from export.checkpoint import build_defense, load_checkpoint
from export.cost import count_cost
from export.defenses import SplitModel, model_config
from export.models import BACKBONES
from export.onnx import BatchMode, EdgeGraph, FusionGraph, TailGraph, to_onnx
from export.wire import Wire
from export.zoo import zoo_model

SIZE = 32
Example = tuple[torch.Tensor | list[torch.Tensor], ...]
"""What a graph is called with."""


def _undefended(backbone: str) -> SplitModel:
    return build_defense("none", model_config("none", backbone=backbone)).eval()


def _shipped(defense: str) -> SplitModel:
    return load_checkpoint(zoo_model(defense, "cnn")).build()


MODELS: dict[str, Callable[[], SplitModel]] = {
    **{f"none {backbone}": partial(_undefended, backbone) for backbone in BACKBONES},
    **{f"{defense} cnn": partial(_shipped, defense) for defense in ("siftfunnel", "privdfs")},
}


class Recorder(TorchDispatchMode):
    """The FLOPs that torch's counter, entered before this, counts for each operation, in the order they run."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self._counter = counter
        self.found: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self._counter.get_total_flops()
        out = function(*args, **(kwargs or {}))
        if flops := self._counter.get_total_flops() - before:
            self.found.append(flops)
        return out


def main() -> None:
    """Count on both sides and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", action="store_true", help="print every layer")
    arguments = parser.parse_args()
    rows, differ = [], False
    for name, build in MODELS.items():
        for part, graph, example in parts(build()):
            cost, torchs = count(graph, example)
            ours = [layer for layer in cost.layers if layer.flops]
            same = [layer.flops for layer in ours] == torchs
            differ |= not same
            total = f"{cost.flops:,}"
            rows.append([f"{name} {part}", str(len(ours)), total, f"{sum(torchs):,}", "yes" if same else "NO"])
            if arguments.layers:
                each = [[layer.name, f"{layer.flops:,}", f"{b:,}"] for layer, b in zip(ours, torchs, strict=False)]
                print_table(f"{name} {part}", ["layer", "from the ONNX", "torch's counter"], each)
    title = f"FLOPs of an image at {SIZE}x{SIZE}, 1 multiply-accumulate = 2 FLOPs; torch {torch.__version__}"
    print_table(title, ["", "layers", "from the ONNX", "torch's counter", "every layer the same"], rows)
    if differ:
        sys.exit("flops_table: the counts differ")


def parts(model: SplitModel) -> Iterator[tuple[str, torch.nn.Module, Example]]:
    """The graphs of a model without noise as they ship, by name, each with what it is called with for one image."""
    wire = Wire("float32")
    image = torch.zeros(1, SIZE, SIZE, 3, dtype=torch.uint8)
    edge = EdgeGraph(model, [wire] * len(model.tails)).eval()
    tails = [TailGraph(tail, wire).eval() for tail in model.tails]
    with torch.no_grad():
        shares = edge(image)
        answers = [tail(share) for tail, share in zip(tails, shares, strict=True)]
    yield "encoder", edge, (image,)
    for i, (tail, share) in enumerate(zip(tails, shares, strict=True)):
        yield f"tail {i}" if len(tails) > 1 else "tail", tail, (share,)
    if model.fusion is not None:
        yield "fusion", FusionGraph(model.fusion).eval(), (answers, torch.ones(1, len(answers)))


def count(graph: torch.nn.Module, example: Example, batch: BatchMode = "static") -> tuple[Cost, list[int]]:
    """The cost from the ONNX, and torch's FLOPs of each operation that has any; both in the order they run.

    Args:
        graph: in inference mode.
        example: its arguments, for one image.
        batch: whether the ONNX file's batch axis is open.
    """
    # Attention as matrix products: torch's counter does not know the fused kernel of the CPU.
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, Recorder(counter) as recorder:
        outputs = tree_leaves(graph(*example))
    if batch == "dynamic":
        example = tree_map(lambda x: torch.cat((x, x)), example)
    inputs = [f"x{i}" for i in range(len(tree_leaves(example)))]
    model = to_onnx(graph, example, inputs, [f"y{i}" for i in range(len(outputs))], batch)
    return count_cost(model), recorder.found


if __name__ == "__main__":
    main()
