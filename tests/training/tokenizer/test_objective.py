"""The losses are those of the original code."""

import json

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file

from ar_t2i.titok import MaskGITVQGAN, TiTok, TiTokConfig, VQGANConfig
from ar_t2i.training.tokenizer.codes import Codes, CodesConfig
from ar_t2i.training.tokenizer.objective import (
    PixelLossConfig,
    PixelObjective,
    ProxyObjective,
    proxy_loss,
    to_pixels,
)


def original(shared, name):
    """A TiTok with the weights of a golden file, its numbers, and what counts its codes."""
    folder = shared / "golden" / "titok"
    config = TiTokConfig.from_dict(json.loads((folder / f"{name}.json").read_text()))
    model = TiTok.from_pretrained(folder / f"{name}.safetensors", config)
    codes = Codes(model.quantize, CodesConfig(), Accelerator(cpu=True), seed=0)
    io = load_file(folder / f"{name}_io.safetensors")
    return model, codes, io, io["images_uint8"].permute(0, 2, 3, 1).contiguous()


def test_first_stage(shared):
    model, codes, io, pictures = original(shared, "titok_tiny_stage1")
    objective = ProxyObjective(model, MaskGITVQGAN(VQGANConfig(hidden_channels=32)), 1.0, codes)
    objective.targets = lambda pixels: io["proxy_targets"]  # type: ignore[method-assign]
    count = torch.tensor(len(pictures))
    with torch.no_grad():
        sums = objective(pictures)
    expected = {
        "reconstruction": "stage1_reconstruction_loss",
        "quantizer": "quantizer_loss",
        "commitment": "commitment_loss",
        "codebook": "codebook_loss",
    }
    for name, golden in expected.items():
        assert (sums[name] / count - io[golden]).abs().item() <= 1e-5, name
    assert (objective.loss(sums, count) - io["stage1_total_loss"]).abs().item() <= 1e-5
    assert sums["code_counts"].sum() == 4 * 32 and (sums["code_counts"] > 0).sum() == io["indices"].unique().numel()


def test_single_stage(shared):
    model, codes, io, pictures = original(shared, "titok_tiny_bl64_vq8k")
    config = PixelLossConfig(perceptual_weight=0.0, reconstruction_weight=3.0, quantizer_weight=0.5)
    objective = PixelObjective(model, config, codes, gan=None)
    count = torch.tensor(len(pictures))
    with torch.no_grad():
        sums = objective(pictures)
        painted = model.decode_tokens(io["indices"])
    for name in ("quantizer", "commitment", "codebook"):
        assert (sums[name] / count - io[f"{name}_loss"]).abs().item() <= 1e-6, name
    squared = F.mse_loss(painted, to_pixels(pictures))
    assert (sums["reconstruction"] / count - squared).abs() < 1e-6
    torch.testing.assert_close(objective.loss(sums, count), 3 * squared + 0.5 * io["quantizer_loss"].squeeze())


def test_proxy_loss_is_the_mean_over_codes():
    logits, codes = torch.randn(3, 10, 2, 2), torch.randint(10, (3, 4))
    loss, accuracy = proxy_loss(logits, codes)
    torch.testing.assert_close(loss.mean(), F.cross_entropy(logits.flatten(2), codes))
    chosen = torch.nn.functional.one_hot(codes, 10).permute(0, 2, 1).unflatten(2, (2, 2)).float() * 20
    loss, accuracy = proxy_loss(chosen, codes)
    assert accuracy.tolist() == [1, 1, 1] and (loss < 1e-6).all()


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_weights_of_the_losses(kind):
    class Greyer(torch.nn.Module):
        """Paints every picture 0.25 darker and gives a quantiser's output that is what it is."""

        def __init__(self):
            super().__init__()
            self.quantize = TiTok(TINY).quantize

        def forward(self, pixels):
            return pixels - 0.25, self.quantize(torch.randn(len(pixels), 4, 1, 2))

    model = Greyer()
    codes = Codes(model.quantize, CodesConfig(), Accelerator(cpu=True), seed=0)
    config = PixelLossConfig(
        reconstruction=kind, reconstruction_weight=2.0, perceptual_weight=0.5, quantizer_weight=0.1
    )
    objective = PixelObjective(model, config, codes, gan=None)
    sums = objective(torch.randint(0, 255, (3, 16, 16, 3), dtype=torch.uint8))
    error = 0.25 if kind == "l1" else 0.25**2
    assert (sums["reconstruction"] / 3).item() == pytest.approx(error, rel=1e-5)
    assert (sums["perceptual"] / 3).item() == pytest.approx(0.25, rel=1e-4)  # a flat difference: the last level alone
    loss = objective.loss(sums, torch.tensor(3)).item()
    assert loss == pytest.approx(2 * error + 0.5 * 0.25 + 0.1 * (sums["quantizer"] / 3).item(), rel=1e-4)


SIZE = {"width": 16, "num_layers": 1, "num_heads": 1}
TINY = TiTokConfig.from_dict(
    {
        "model": {
            "vq_model": {
                "codebook_size": 8, "token_size": 4, "num_latent_tokens": 2, "use_l2_norm": False,
                "vit_enc_model_size": "mine", "vit_dec_model_size": "mine", "vit_enc_patch_size": 16,
                "vit_dec_patch_size": 16, "finetune_decoder": False, "is_legacy": False, "commitment_cost": 0.25,
            }
        },
        "dataset": {"preprocessing": {"crop_size": 16}},
        "shapes": {"sizes": {"mine": SIZE}},
    }
)  # fmt: skip
