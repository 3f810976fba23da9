"""What all ways of spreading share."""

import pytest
import torch

from ar_t2i.training.parallel import clip_gradients


@pytest.mark.parametrize("most", [0.0, 1.0])
def test_gradients_are_scaled_by_their_norm_however_many_they_are(most):
    """Squares of millions of numbers, added up in float32 one after the other, would be wrong in the fifth digit."""
    parameters = [torch.nn.Parameter(torch.zeros(1000, width)) for width in (2000, 3, 1)]
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    before = [parameter.grad.double() for parameter in parameters]
    exact = sum(gradient.square().sum() for gradient in before).sqrt()
    assert float(clip_gradients(parameters, most)) == pytest.approx(float(exact), rel=1e-7)
    for parameter, gradient in zip(parameters, before, strict=True):
        expected = gradient / exact * most if most else gradient
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=3e-6, atol=0)
