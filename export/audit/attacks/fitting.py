"""The training of an attacker's network, which can be stopped after any epoch and continued to the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from edge_sdk.errors import DataError

from ...checkpoint import load_tensors, save_tensors
from ...resume import epoch_seed, optimizer_tensors, restore_optimizer
from .base import Progress


def fit_network(
    network: nn.Module,
    loss: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    state: Path | None,
    progress: Progress,
) -> None:
    """One cycle of AdamW over an attacker's images, each flipped half of the time.

    Args:
        network: trained in place, left in inference mode.
        loss: of a batch ``(N, 3, H, W)`` float in [0, 1], on the CPU, to minimise.
        images: uint8 ``(N, 3, H, W)``, on the CPU.
        epochs: over the images.
        batch_size: images a step.
        learning_rate: the highest.
        seed: of the order and of whatever the loss draws.
        state: a file that every epoch is kept in, and that is continued from.
        progress: called with the steps done and in all.

    Raises:
        DataError: ``state`` is damaged, or of another network; or the training diverged.
    """
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=1e-4)
    steps = math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps * epochs, pct_start=0.2)
    device = next(network.parameters()).device
    begin = 0 if state is None or not state.exists() else _load(state, network, optimizer, schedule)
    for epoch in range(begin, epochs):
        torch.manual_seed(epoch_seed(seed, epoch))
        network.train()
        total = torch.zeros((), device=device)
        for step, rows in enumerate(torch.randperm(len(images)).split(batch_size)):
            batch = images[rows].float() / 255
            batch = torch.where((torch.rand(len(rows)) < 0.5)[:, None, None, None], batch.flip(3), batch)
            value = loss(batch)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.detach()
            progress(epoch * steps + step + 1, epochs * steps)
        if not torch.isfinite(total):  # what it would rebuild is no measure of what can be
            raise DataError(f"an attacker's training diverged in epoch {epoch + 1}; lower its learning rate")
        if state is not None:
            _save(state, network, optimizer, schedule, epoch + 1)
    network.eval()


def _save(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    epoch: int,
) -> None:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= optimizer_tensors(optimizer)
    groups = optimizer.state_dict()["param_groups"]
    record = {"epoch": epoch, "param_groups": groups, "schedule": schedule.state_dict()}
    save_tensors(path, {name: tensor.contiguous() for name, tensor in tensors.items()}, record)


def _load(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    tensors, record = load_tensors(path)
    weights = {name.removeprefix("network."): t for name, t in tensors.items() if name.startswith("network.")}
    try:
        network.load_state_dict(weights)
        restore_optimizer(optimizer, list(network.parameters()), tensors, record["param_groups"])
        schedule.load_state_dict(record["schedule"])
        return int(record["epoch"])
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise DataError(f"{path}: the state of another attack; remove it to begin anew") from error
