import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from export.audit.quality import mse, psnr, ssim


def test_psnr_of_a_constant_error_is_the_closed_form():
    images = torch.full((2, 3, 16, 16), 0.5)
    rebuilt = torch.stack([images[0] + 0.1, images[1] - 0.01])
    assert mse(images, rebuilt).tolist() == pytest.approx([0.01, 0.0001], rel=1e-4)
    assert psnr(images, rebuilt).tolist() == pytest.approx([20, 40], abs=1e-3)
    assert float(psnr(images, images)[0]) == pytest.approx(58.92, abs=0.01)  # as an 8-bit picture


def test_psnr_is_each_images_own():
    images, rebuilt = torch.rand(5, 3, 16, 16), torch.rand(5, 3, 16, 16)
    expected = [
        peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(images.numpy(), rebuilt.numpy(), strict=True)
    ]
    assert psnr(images, rebuilt).tolist() == pytest.approx(expected, rel=1e-5)


def test_ssim_is_one_for_equals_and_falls_with_noise(patches):
    images = patches[:8].float() / 255
    assert ssim(images, images).tolist() == pytest.approx([1] * 8)
    slightly, much = (images + s * torch.randn_like(images) for s in (0.02, 0.3))
    assert np.all(ssim(images, much).numpy() < ssim(images, slightly).numpy())


def test_ssim_of_two_constant_images_is_the_luminance_term():
    a, b, c1 = 0.4, 0.6, 0.01**2
    found = ssim(torch.full((1, 3, 16, 16), a), torch.full((1, 3, 16, 16), b))
    assert found.item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-4)
