"""What a training needs to go on where it stopped, to the same weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_PREFIX = "optimizer."


def epoch_seed(seed: int, epoch: int) -> int:
    """Every epoch starts from a seed of its own, so that no random state need be kept."""
    return (seed * 1_000_003 + epoch + 1) % 2**63


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimiser remembers of its parameters, under names that ``restore_optimizer`` knows."""
    return {
        f"{_PREFIX}{index}.{name}": tensor
        for index, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    tensors: Mapping[str, Tensor],
    param_groups: Any,
) -> None:
    """Give an optimiser back what it remembered.

    Args:
        optimizer: of ``parameters``.
        parameters: in the order that it was made with.
        tensors: among them those of ``optimizer_tensors``.
        param_groups: of its state.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(_PREFIX):
            index, _, key = name.removeprefix(_PREFIX).partition(".")
            like = parameters[int(index)]
            # The parameter's own memory layout, as in a run that was never stopped.
            placed = torch.empty_like(like).copy_(tensor) if tensor.shape == like.shape else tensor
            state.setdefault(int(index), {})[key] = placed
    optimizer.load_state_dict({"state": state, "param_groups": param_groups})
