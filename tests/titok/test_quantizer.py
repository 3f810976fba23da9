"""Laws of the vector quantiser (its numbers are proved in test_golden)."""

import pytest
import torch

from ar_t2i.titok.quantizer import VectorQuantizer


@pytest.fixture(params=[False, True], ids=["raw", "unit"])
def quantizer(request):
    quantizer = VectorQuantizer(64, 6, commitment_cost=0.25, use_l2_norm=request.param)
    torch.nn.init.normal_(quantizer.embedding.weight, generator=torch.Generator().manual_seed(0))
    return quantizer


@pytest.fixture
def z():
    return torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()


def test_the_nearest_entry_is_chosen(quantizer, z):
    rows = z.detach().permute(0, 2, 3, 1).reshape(-1, 6)
    codebook = quantizer.embedding.weight.detach()
    if quantizer.use_l2_norm:
        rows, codebook = rows / rows.norm(dim=1, keepdim=True), codebook / codebook.norm(dim=1, keepdim=True)
    distances = (rows[:, None] - codebook).norm(dim=2)
    assert torch.equal(quantizer(z).codes, distances.argmin(1).view(2, 12))


def test_an_entry_is_its_own_nearest(quantizer):
    codes = torch.arange(64).view(2, 32)
    z = quantizer.entries(codes).transpose(1, 2).unsqueeze(2)
    assert torch.equal(quantizer(z).codes, codes)
    assert quantizer(z).quantizer_loss < 1e-12


def test_the_first_of_equal_entries_is_chosen(quantizer, z):
    with torch.no_grad():
        quantizer.embedding.weight[32:] = quantizer.embedding.weight[:32]
    assert quantizer(z).codes.max() < 32


def test_the_gradient_goes_straight_through(z):
    quantizer = VectorQuantizer(64, 6, commitment_cost=0.25)
    upstream = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    (quantizer(z).z_quantized * upstream).sum().backward()
    assert torch.equal(z.grad, upstream) and quantizer.embedding.weight.grad is None


def test_each_loss_moves_its_side_alone(quantizer, z):
    weight = quantizer.embedding.weight
    output = quantizer(z)
    by_z, by_codebook = torch.autograd.grad(output.commitment_loss, [z, weight], retain_graph=True, allow_unused=True)
    assert by_z.any() and by_codebook is None
    by_z, by_codebook = torch.autograd.grad(output.codebook_loss, [z, weight], retain_graph=True, allow_unused=True)
    assert by_z is None and by_codebook.any()
    assert torch.isclose(output.commitment_loss, 0.25 * output.codebook_loss)
    assert torch.isclose(output.quantizer_loss, 1.25 * output.codebook_loss)


def test_mixing_with_all_the_weight_on_one_code_is_looking_it_up(quantizer):
    codes = torch.tensor([[0, 7], [63, 7]])
    mixed = quantizer.mix(torch.nn.functional.one_hot(codes, 64).float())
    assert torch.allclose(mixed, quantizer.entries(codes), atol=1e-6)


def test_codes_that_are_refused(quantizer):
    for codes, message in [
        (torch.tensor([0, 64]), r"codes from 0 to 64: expected 0\.\.63"),
        (torch.tensor([-1, 5]), r"codes from -1 to 5"),
        (torch.tensor([0.0]), "codes of type torch.float32: expected integers"),
    ]:
        with pytest.raises(ValueError, match=message):
            quantizer.entries(codes)
