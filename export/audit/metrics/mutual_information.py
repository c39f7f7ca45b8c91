"""MINE: a network's lower bound on the mutual information of image and features (Belghazi et al., arXiv 1801.04062)."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from edge_sdk.errors import DataError

from ..results import MetricResult, mean_result

GROUP = 250
LEAST_IMAGES = 10
LEAST_DEVIATION, LARGEST = 1e-3, 10.0


class Critic(nn.Module):
    """``T(x, z) = <f(x), g(z)>`` for every pair of a batch: ``(N, ...)`` twice to ``(N, N)``.

    Apart for x and z [ours], so that a batch of N has N^2 - N pairs of the product of the marginals instead of N.
    """

    def __init__(self, x: torch.Size, z: torch.Size, width: int) -> None:
        super().__init__()
        self.of_x, self.of_z = _embedding(x, width), _embedding(z, width)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        table: Tensor = self.of_x(x) @ self.of_z(z).T
        return table


def mine(
    x: Tensor,
    z: Tensor,
    *,
    epochs: int = 30,
    batch_size: int = 250,
    width: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
) -> MetricResult:
    """The Donsker-Varadhan bound ``E[T] - log E[exp T]`` of a trained critic, on pairs that it was not trained on.

    Half of the images train the critic, a tenth of those choose the epoch; all pairs of the other half give the bound,
    and groups of 250 of them, or of half of them, its error. However much there is, a critic trained on so few pairs
    finds only some nats of it, so "at least" is meant; and the logarithm of a mean over finitely many pairs lies a
    little too low, which makes the value a little too high, least with all pairs at once.

    Args:
        x: ``(N, ...)`` float32 images.
        z: ``(N, ...)`` float32 features.
        epochs: over the training half.
        batch_size: pairs a step.
        width: of the critic.
        learning_rate: highest, of one cycle of AdamW.
        seed: of halves, weights and order.

    Returns:
        Nats; 0 where no dependence was found.

    Raises:
        DataError: too few images.
    """
    if len(x) < LEAST_IMAGES:
        raise DataError(f"MINE needs at least {LEAST_IMAGES} images, got {len(x)}; audit without --metric mine")
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    held_out, training = order[: len(x) // 2], order[len(x) // 2 :]
    few = max(len(training) // 10, 2)
    choosing, training = training[:few], training[few:]
    x, z = (_standardized(t, training) for t in (x, z))
    critic = Critic(x.shape[1:], z.shape[1:], width).to(x.device)
    optimizer = torch.optim.AdamW(critic.parameters(), learning_rate, weight_decay=1e-3)
    steps = math.ceil(len(training) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps * epochs)
    best, chosen = -math.inf, critic
    for _ in range(epochs):
        critic.train()
        for rows in training[torch.randperm(len(training))].split(batch_size):
            loss = -_bound(critic(x[rows], z[rows])) if len(rows) > 2 else None
            if loss is not None:
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(critic.parameters(), 1.0)
                optimizer.step()
            schedule.step()
        critic.eval()
        with torch.no_grad():
            value = float(_bound(critic(x[choosing], z[choosing])))
        if value > best:
            best, chosen = value, copy.deepcopy(critic)
    size = min(GROUP, len(held_out) // 2)
    groups = [rows for rows in held_out.split(size) if len(rows) == size]
    with torch.no_grad():
        value = float(_bound(chosen(x[held_out], z[held_out])))
        of_groups = [float(_bound(chosen(x[rows], z[rows]))) for rows in groups]
    error = mean_result("MINE", of_groups, "nats", len(held_out), seed).std_error
    return MetricResult("MINE", max(value, 0.0), "nats", error, len(held_out), seed)


def _bound(table: Tensor) -> Tensor:
    """Donsker-Varadhan: pairs on the diagonal belong together, all others do not."""
    n = len(table)
    apart = table[~torch.eye(n, dtype=torch.bool, device=table.device)]
    return table.diagonal().mean() - apart.logsumexp(0) + math.log(n * (n - 1))


def _standardized(t: Tensor, rows: Tensor) -> Tensor:
    """In units of its deviation over ``rows``; a value that these have next to none of must not drown all others."""
    sample = t[rows].float()
    deviation = sample.std(0)
    least = LEAST_DEVIATION * deviation.square().mean().sqrt()
    return ((t.float() - sample.mean(0)) / deviation.clamp_min(float(least.clamp_min(1e-12)))).clamp(-LARGEST, LARGEST)


def _embedding(shape: torch.Size, width: int) -> nn.Module:
    """Convolutions for maps, a perceptron for all else; 2 ``width`` numbers out."""
    if len(shape) == 3 and min(shape[1:]) >= 4:
        return nn.Sequential(
            nn.Conv2d(shape[0], width, 3, 2, padding=1), nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, 2, padding=1), nn.GELU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, 2 * width),
        )  # fmt: skip
    return nn.Sequential(
        nn.Flatten(), nn.Linear(shape.numel(), 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width), nn.GELU(),
        nn.Linear(4 * width, 2 * width),
    )  # fmt: skip
