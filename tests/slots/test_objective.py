import torch

from ar_t2i.slots import SlotConfig, SlotTokenizer
from ar_t2i.slots.objective import Damage, pixel_weights


def _damage(**values):
    return Damage(**{"tail_drop": 0.0, "swap": 0.0, "generator": torch.Generator().manual_seed(0), **values})


def _entries(batch=64, num_codes=8):
    return torch.randn(batch, num_codes, 3, generator=torch.Generator().manual_seed(1)) + 5


def test_no_damage_changes_nothing():
    entries = _entries()
    assert torch.equal(_damage()(entries, entries), entries)


def test_a_tail_is_dropped_whole_and_the_first_code_stays():
    entries = _entries()
    kept = (_damage(tail_drop=0.5)(entries, entries) != 0).all(-1)
    lengths = kept.sum(1)
    assert torch.equal(kept, torch.arange(8) < lengths[:, None]), "codes are kept from the front"
    assert lengths.min() == 1 and lengths.max() == 8 and len(lengths.unique()) > 5
    assert 0.3 < (lengths == 8).float().mean() < 0.7


def test_a_swapped_code_is_another_pictures_and_learns_nothing():
    entries = _entries()
    straight = entries.clone().requires_grad_()
    found = _damage(swap=0.3)(straight, entries)
    own, other = (found == entries).all(-1), (found == entries.roll(1, 0)).all(-1)
    assert (own ^ other).all() and 0.2 < other.float().mean() < 0.4
    found.sum().backward()
    assert torch.equal((straight.grad != 0).all(-1), own)


def test_features_weigh_as_much_as_they_change_pixels():
    torch.manual_seed(0)
    config = SlotConfig(image_size=64, num_codes=4, stage_widths=(8, 8, 8, 8), feature_channels=6, regions=(1, 1))
    model = SlotTokenizer(config)
    with torch.no_grad():
        model.decoder[0].weight[:, 0] = 0  # the first channel changes nothing
        model.feature_std_F.copy_(torch.linspace(0.5, 2, config.num_features))
    features_NF = torch.randn(3, config.num_features)
    jacobian_NPF = torch.stack(
        [torch.autograd.functional.jacobian(lambda x: model.paint(x[None]).flatten(), row) for row in features_NF]
    )
    expected_F = (jacobian_NPF.square().sum(1) * model.feature_std_F.square()).mean(0)
    found_F = pixel_weights(model, features_NF.repeat(400, 1), torch.Generator().manual_seed(0))
    torch.testing.assert_close(found_F, expected_F / expected_F.mean(), rtol=0.3, atol=1e-4)
    assert (found_F[:4] == 0).all() and (found_F[4:] > 0).all()
    assert not any(parameter.grad is not None for parameter in model.parameters())
