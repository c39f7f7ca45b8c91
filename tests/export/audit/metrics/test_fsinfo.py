import math

import pytest
import torch

from export.audit.metrics.fsinfo import Prior, fsinfo, spectrum

D = 12
COVARIANCE = torch.randn(D, D, generator=torch.Generator().manual_seed(5)).double()
COVARIANCE = COVARIANCE @ COVARIANCE.T / D + 0.1 * torch.eye(D)
PRIOR = Prior(torch.linalg.cholesky(COVARIANCE))


@pytest.mark.parametrize("features", [4, 12, 30])
def test_of_a_linear_gaussian_channel_is_minus_the_entropy_of_what_is_left(features):
    channel = torch.randn(features, D, generator=torch.Generator().manual_seed(features)).double()
    sigma = 0.3
    left = torch.linalg.inv(torch.linalg.inv(COVARIANCE) + channel.T @ channel / sigma**2)
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * left))
    images = torch.rand(3, 3, 2, 2).double()
    spectra = [spectrum(lambda x: (x.flatten(1) @ channel.T,), image, PRIOR) for image in images]
    information, average, ceiling = fsinfo(spectra, sigma)
    assert information.value * D == pytest.approx(-entropy, rel=1e-9)
    assert information.std_error == pytest.approx(0, abs=1e-9)  # a linear channel reacts to every image alike
    assert average.value == pytest.approx(float(torch.det(left)) ** (1 / D), rel=1e-9)
    assert ceiling.value == pytest.approx(-10 * math.log10(float(left.trace()) / D), rel=1e-9)


def test_the_ceiling_is_what_the_best_decoder_reaches():
    """Where all is Gaussian the posterior mean is the best decoder: its error is the bound, up to sampling."""
    draw = torch.Generator().manual_seed(1)
    channel, sigma, n = torch.randn(5, D, generator=draw).double(), 0.5, 200_000
    x = torch.randn(n, D, generator=draw).double() @ PRIOR.factor.T
    z = x @ channel.T + sigma * torch.randn(n, 5, generator=draw).double()
    gain = COVARIANCE @ channel.T @ torch.linalg.inv(channel @ COVARIANCE @ channel.T + sigma**2 * torch.eye(5))
    reached = -10 * math.log10(float((x - z @ gain.T).square().mean()))
    ceiling = fsinfo([spectrum(lambda x: (x.flatten(1) @ channel.T,), torch.rand(3, 2, 2).double(), PRIOR)], sigma)[2]
    assert reached == pytest.approx(ceiling.value, abs=0.05)


def test_more_noise_and_fewer_shares_leave_less():
    torch.manual_seed(0)
    first, second = (torch.randn(D, 6).double() for _ in range(2))

    def both(x):
        return x.flatten(1).tanh() @ first, x.flatten(1).tanh() @ second

    image = torch.rand(3, 2, 2).double()
    whole, one = spectrum(both, image, PRIOR), spectrum(lambda x: both(x)[:1], image, PRIOR)
    assert one.fsinfo(0.2) < whole.fsinfo(0.2)
    assert whole.fsinfo(0.4) < whole.fsinfo(0.2)
    assert whole.error(0.2) < one.error(0.2) < one.error(50.0) < PRIOR.variance / D


def test_features_that_ignore_the_image_leave_the_prior():
    alone = spectrum(lambda x: (x.flatten(1) * 0,), torch.rand(3, 2, 2).double(), PRIOR)
    assert alone.error(0.1) == pytest.approx(PRIOR.variance / D)
    prior_information = 0.5 * PRIOR.log_det_precision - D / 2 * math.log(2 * math.pi * math.e)
    assert alone.fsinfo(0.1) == pytest.approx(prior_information)


def test_the_prior_is_the_images_covariance():
    images = torch.rand(500, 3, 2, 2)
    prior = Prior.of(images, shrinkage=0.0)
    assert torch.allclose(prior.factor @ prior.factor.T, torch.cov(images.flatten(1).T.double()), atol=1e-12)
    few = Prior.of(images[:4])  # fewer images than pixels
    assert torch.isfinite(few.factor).all()
