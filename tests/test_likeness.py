import math

import numpy as np
import pytest
import torch

from ar_t2i.likeness import MOST_PSNR, Spread, psnr, ssim


@pytest.fixture
def pair():
    """Pictures that are alike in part, and not square."""
    rng = torch.Generator().manual_seed(0)
    first = torch.rand(3, 3, 14, 17, generator=rng)
    return first, (0.7 * first + 0.3 * torch.rand(first.shape, generator=rng)).clamp(0, 1)


def slow_ssim(x, y):
    """Equation 13 of Wang et al. 2004, window by window, for one channel."""
    radius, total = 5, 0.0
    weights = [
        [math.exp(-(dy * dy + dx * dx) / (2 * 1.5**2)) for dx in range(-radius, radius + 1)]
        for dy in range(-radius, radius + 1)
    ]
    weight_sum = sum(map(sum, weights))
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            cells = [(weights[i][j] / weight_sum, x[top + i, left + j], y[top + i, left + j])
                     for i in range(11) for j in range(11)]  # fmt: skip
            mean_x, mean_y = (sum(cell[0] * cell[side] for cell in cells) for side in (1, 2))
            var_x = sum(w * (a - mean_x) ** 2 for w, a, _ in cells)
            var_y = sum(w * (b - mean_y) ** 2 for w, _, b in cells)
            cov = sum(w * (a - mean_x) * (b - mean_y) for w, a, b in cells)
            total = (2 * mean_x * mean_y + 1e-4) * (2 * cov + 9e-4)
            values.append(total / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)))
    return sum(values) / len(values)


def test_ssim_is_that_of_the_paper(pair):
    first, second = pair
    found = ssim(first, second)
    assert found.shape == (3,) and found.dtype == torch.float64
    for number in range(3):
        channels = [
            slow_ssim(first[number, channel].double().numpy(), second[number, channel].double().numpy())
            for channel in range(3)
        ]
        assert float(found[number]) == pytest.approx(np.mean(channels), abs=1e-12)
    assert len({round(float(value), 6) for value in found}) == 3


def test_ssim_of_flat_pictures_in_closed_form():
    """Without variance only the means count: (2 a b + C1) / (a^2 + b^2 + C1)."""
    a, b = 0.25, 0.5
    found = ssim(torch.full((1, 3, 11, 11), a), torch.full((1, 3, 11, 11), b))
    assert float(found) == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-12)


def test_laws_of_ssim(pair):
    first, second = pair
    assert torch.allclose(ssim(first, first), torch.ones(3).double(), atol=1e-12)
    assert torch.allclose(ssim(first, second), ssim(second, first), atol=1e-12)
    assert torch.allclose(ssim(first, second), ssim(first.flip(-1), second.flip(-1)), atol=1e-12)
    assert (ssim(first, 1 - first) < 0).all()


def test_psnr(pair):
    first, second = pair
    errors = ((first - second).double() ** 2).reshape(3, -1).mean(1)
    assert psnr(first, second).tolist() == pytest.approx([10 * math.log10(1 / float(error)) for error in errors])
    assert psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)).item() == pytest.approx(20, abs=1e-5)
    assert psnr(first, first).tolist() == [MOST_PSNR] * 3


def test_wrong_shapes(pair):
    first, second = pair
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match="expected one"):
            metric(first, second[:2])
    with pytest.raises(ValueError, match="at least 11 a side"):
        ssim(first[..., :10], second[..., :10])


def test_spread_is_that_of_all_values_together():
    values = torch.from_numpy(np.random.default_rng(0).normal(23.7, 2, 2000))
    parts = []
    for size in (1, 7, 2000):
        spread = Spread(0, 100)
        for batch in values.split(size):
            spread.add(batch)
        parts.append(spread.read())
    assert parts[0].keys() == {"mean", "p5", "p50", "p95"}
    for found in parts:
        assert found["mean"] == pytest.approx(values.mean().item(), abs=1e-12)
        for percent in (5, 50, 95):
            exact = np.percentile(values.numpy(), percent, method="inverted_cdf")
            assert (
                found[f"p{percent}"] == pytest.approx(exact, abs=0.0051)
                and found[f"p{percent}"] == parts[0][f"p{percent}"]
            )


def test_spread_at_its_ends():
    spread = Spread(-1, 1)
    spread.add(torch.tensor([-1.0, 1.0, 1.0]))
    assert spread.read() == {"mean": pytest.approx(1 / 3), "p5": -0.9999, "p50": 0.9999, "p95": 0.9999}
