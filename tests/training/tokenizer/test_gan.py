"""The discriminator's losses by hand, and that gradients go where they should."""

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

from ar_t2i.training.optim import OptimConfig
from ar_t2i.training.tokenizer.gan import Discriminator, Gan, GanConfig, HingeLoss, lecam

SMALL = {"hidden_channels": 32, "stages": 2}


def make(**options):
    config = GanConfig(**{"start": 0, **SMALL, **options})
    return Gan(config, OptimConfig(warmup_steps=0, clip_norm=0, weight_decay=0), 100, Accelerator(cpu=True), seed=0)


def learn(gan, pixels, painted, parts=1):
    """One step of the discriminator over micro-batches; the values to log."""
    total = {}
    for real, fake in zip(pixels.chunk(parts), painted.chunk(parts), strict=True):
        if gan.active:
            for name, value in gan.judge(real, fake).items():
                total[name] = total.get(name, 0) + value.detach()
    return gan.after_step(total, torch.tensor([len(pixels)]))


def first_moments(gan):
    """What the optimizer has seen of the gradient: a tenth of it after one step."""
    return [state["exp_avg"] for state in gan.optimizer.state_dict()["state"].values()]


def test_lecam_on_numbers():
    found = lecam(*(torch.tensor(value) for value in (0.7, -0.4, 0.2, -0.1)))
    assert found.item() == pytest.approx((0.7 + 0.1) ** 2 + (0.2 + 0.4) ** 2)
    assert lecam(*(torch.tensor(value) for value in (-0.7, 0.4, 0.2, -0.1))).item() == 0


def test_hinge_on_numbers():
    class Given(nn.Module):
        def forward(self, pixels):
            return pixels.mean((1, 2, 3)).view(-1, 1, 1, 1)

    real, fake = torch.full((2, 3, 4, 4), 0.25), torch.full((2, 3, 4, 4), -3.0)
    found = HingeLoss(Given())(real, fake)  # type: ignore[arg-type]
    assert {name: value.item() for name, value in found.items()} == {
        "hinge_real": 1.5, "hinge_fake": 0.0, "logits_real": 0.5, "logits_fake": -6.0,
    }  # fmt: skip


def test_its_opinion_moves_the_picture_and_no_weight_of_its_own():
    gan = make()
    painted = torch.rand(2, 3, 32, 32, requires_grad=True)
    gan.judge(torch.rand(2, 3, 32, 32), painted)["logits_fake"].backward()
    assert painted.grad is not None and painted.grad.abs().max() > 0
    assert all(weight.grad is None and weight.requires_grad for weight in gan.network.parameters())


def test_it_starts_at_its_step_and_not_before():
    gan = make(start=2)
    before = [weight.clone() for weight in gan.network.parameters()]
    pixels, painted = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    told = []
    for _ in range(3):
        told.append(learn(gan, pixels, painted))
        moved = [not torch.equal(a, b) for a, b in zip(gan.network.parameters(), before, strict=True)]
        assert any(moved) == (len(told) == 3)
    assert told[:2] == [{}, {}] and {"discriminator_loss", "logits_real", "lecam_loss"} <= told[2].keys()


def test_it_learns_the_formula_however_the_batch_is_cut():
    """Hinge plus LeCam of the means over the whole batch, against a plain backward pass of the same."""
    torch.manual_seed(0)
    pixels, painted = torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32) * 0.5
    averages = torch.tensor([0.6, -0.7])
    compared = 0
    for parts in (1, 2, 4):
        gan = make(lecam_weight=0.3, factor=2.0)
        gan.averages.copy_(averages)
        plain = Discriminator(**SMALL)
        plain.load_state_dict(gan.network.state_dict())
        real, fake = plain(pixels), plain(painted)
        hinge = 0.5 * 2.0 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
        regular = 0.3 * lecam(real.mean(), fake.mean(), averages[0], averages[1])
        (hinge + regular).backward()
        values = learn(gan, pixels, painted, parts)
        assert values["discriminator_loss"] == pytest.approx(hinge.item(), rel=1e-5)
        assert values["lecam_loss"] == pytest.approx(regular.item(), rel=1e-5) and regular > 0.05
        expected = {tuple(weight.shape): [] for weight in plain.parameters()}
        for weight in plain.parameters():
            expected[tuple(weight.shape)].append(0.1 * weight.grad)
        assert max(moment.abs().max() for moment in first_moments(gan)) > 0.01
        for moment in first_moments(gan):
            nearest = min((moment - gradient).abs().max().item() for gradient in expected[tuple(moment.shape)])
            assert nearest < 1e-5
            compared += 1
        means = torch.stack([real.mean(), fake.mean()]).detach()
        torch.testing.assert_close(gan.averages, averages * 0.999 + means * 0.001)
    assert compared == 3 * 14


def test_it_learns_to_tell_light_from_dark():
    gan = make(learning_rate=1e-3)
    torch.manual_seed(0)
    for _ in range(12):
        values = learn(gan, torch.rand(4, 3, 32, 32) * 0.5 + 0.5, torch.rand(4, 3, 32, 32) * 0.5)
    assert values["logits_real"] > values["logits_fake"] + 1 and values["discriminator_loss"] < 0.5


def test_logits_are_of_patches_and_unaware_of_the_batch():
    gan = make()
    pixels = torch.rand(3, 3, 64, 64)
    found = gan.network(pixels)
    assert found.shape == (3, 1, 16, 16)
    torch.testing.assert_close(found[1:2], gan.network(pixels[1:2]))
    changed = pixels.clone()
    changed[..., :8, :8] = 0
    moved = (gan.network(changed) - found).abs().amax((0, 1))
    assert moved[0, 0] > 3 * moved[-1, -1]  # a corner: the far one moves through the group norms alone


@pytest.mark.parametrize(
    "option", [{"weight": -1.0}, {"lecam_decay": 1.0}, {"hidden_channels": 48}, {"stages": 0}, {"start": -1}]
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=f"gan.{next(iter(option))}="):
        GanConfig(**option)
