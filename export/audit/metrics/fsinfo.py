"""FSInfo: the Fisher information noisy features have of the image, and the error that it leaves (arXiv 2504.10016).

With noise of standard deviation sigma on the features, ``I(x) = J^T J / sigma^2``. What the paper's abstract leaves
open is stated so [ours]: there are fewer features than pixels, or dependent ones, so a Gaussian prior with the
precision of the data enters (the Bayesian information of van Trees), ``P(x) = I(x) + Lambda``, and

    FSInfo = E[1/2 log det P(x)] - d/2 log(2 pi e)   in nats: minus the entropy of x given z where all is Gaussian.

Everything follows, for any sigma, from the eigenvalues of ``L^T J^T J L``, where ``Lambda^-1 = L L^T``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..results import MetricResult, mean_result


@dataclass(frozen=True)
class Prior:
    """A Gaussian over the pixels: ``factor`` ``(d, d)`` is L of the covariance ``L L^T``, float64."""

    factor: Tensor

    @classmethod
    def of(cls, images: Tensor, *, shrinkage: float = 1e-3) -> Prior:
        """The covariance of images, an attacker's knowledge of what images look like.

        Args:
            images: ``(N, ...)`` float in [0, 1].
            shrinkage: share of the mean variance that is added to every pixel's: fewer images than pixels leave
                directions that none of them shows.
        """
        flat = images.flatten(1).double()
        flat = flat - flat.mean(0)
        covariance = flat.T @ flat / (len(flat) - 1)
        scale = covariance.diagonal().mean()
        return cls(torch.linalg.cholesky((1 - shrinkage) * covariance + shrinkage * scale * torch.eye(flat.shape[1])))

    @property
    def log_det_precision(self) -> float:
        return -2 * float(self.factor.diagonal().log().sum())

    @property
    def variance(self) -> float:
        """Of all pixels together."""
        return float(self.factor.square().sum())


@dataclass(frozen=True)
class Spectrum:
    """How strongly one image's features react to pixels, in the prior's directions; for every sigma at once.

    Attributes:
        eigenvalues: ``(r,)`` of ``L^T J^T J L``, r the smaller of the numbers of pixels and features.
        variances: ``(r,)`` prior variance along each, summed over pixels.
        prior: the prior.
        num_pixels: d.
    """

    eigenvalues: Tensor
    variances: Tensor
    prior: Prior
    num_pixels: int

    def fsinfo(self, sigma: float) -> float:
        """1/2 log det P - d/2 log(2 pi e), nats."""
        gain = float((self.eigenvalues / sigma**2).log1p().sum())
        return (gain + self.prior.log_det_precision - self.num_pixels * math.log(2 * math.pi * math.e)) / 2

    def error(self, sigma: float) -> float:
        """tr(P^-1) / d: the mean squared error a pixel where all is Gaussian and the slope the same everywhere.

        Of other encoders an estimate at this image; van Trees' bound is of the mean of I(x), and not above its mean.
        """
        left = float((self.variances / (1 + self.eigenvalues / sigma**2)).sum())
        unseen = self.prior.variance - float(self.variances.sum())
        return (left + unseen) / self.num_pixels


def spectrum(features: Callable[[Tensor], tuple[Tensor, ...]], image: Tensor, prior: Prior) -> Spectrum:
    """The spectrum of one image.

    Args:
        features: of a batch ``(1, C, H, W)``; differentiable.
        image: ``(C, H, W)`` float in [0, 1].
        prior: over its pixels.
    """
    jacobian = _jacobian(features, image).detach().double()
    seen = jacobian @ prior.factor
    if len(seen) < seen.shape[1]:
        eigenvalues, vectors = torch.linalg.eigh(seen @ seen.T)
        directions = seen.T @ vectors / eigenvalues.clamp_min(1e-300).sqrt()
    else:
        eigenvalues, directions = torch.linalg.eigh(seen.T @ seen)
    # What rounding leaves of a null direction has no direction of its own.
    real = eigenvalues > 1e-12 * eigenvalues.max()
    variances = (prior.factor @ directions[:, real]).square().sum(0)
    return Spectrum(eigenvalues[real], variances, prior, image.numel())


def fsinfo(
    spectra: list[Spectrum], sigma: float, seed: int | None = None
) -> tuple[MetricResult, MetricResult, MetricResult]:
    """FSInfo per pixel value, and what it implies.

    Args:
        spectra: of a sample of images.
        sigma: standard deviation of the noise on the features.
        seed: of what was drawn for the spectra.

    Returns:
        FSInfo in nats a dimension; the average-case bound on the mean squared error a dimension,
        ``exp(-2 FSInfo / d) / (2 pi e)``; and the worst-case one, the mean over images of ``tr(P^-1) / d``, as the
        highest PSNR in dB that it allows.
    """
    d, n = spectra[0].num_pixels, len(spectra)
    information = [each.fsinfo(sigma) / d for each in spectra]
    result = mean_result("FSInfo", information, "nats a dimension", n, seed)
    bound = math.exp(-2 * result.value) / (2 * math.pi * math.e)
    spread = None if result.std_error is None else 2 * bound * result.std_error
    average = MetricResult("average-case error bound", bound, "MSE", spread, n, seed)
    errors = mean_result("error bound", [each.error(sigma) for each in spectra], "MSE", n, seed)
    relative = None if errors.std_error is None else errors.std_error / errors.value * 10 / math.log(10)
    return result, average, MetricResult("PSNR ceiling", -10 * math.log10(errors.value), "dB", relative, n, seed)


def _jacobian(features: Callable[[Tensor], tuple[Tensor, ...]], image: Tensor, chunk: int = 128) -> Tensor:
    """``(features, pixels)``, by whichever side is smaller."""

    def flat(pixels: Tensor) -> Tensor:
        return torch.cat([z.flatten(1) for z in features(pixels.view(1, *image.shape))], 1)[0]

    with torch.no_grad():
        count = len(flat(image.flatten()))
    if count <= image.numel():
        jacobian: Tensor = torch.func.jacrev(flat, chunk_size=chunk)(image.flatten())
        return jacobian
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)  # torch's own, at its first jvp
        columns = [
            torch.func.vmap(lambda v: torch.func.jvp(flat, (image.flatten(),), (v,))[1])(basis)
            for basis in torch.eye(image.numel(), dtype=image.dtype, device=image.device).split(chunk)
        ]
    return torch.cat(columns).T
