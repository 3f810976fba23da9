import torch
import torch.nn.functional as F

from ar_t2i.slots import SlotConfig, SlotTokenizer
from ar_t2i.slots.codebook import CodebookAverage, CodeUsage, start_from_components

TINY = SlotConfig(
    image_size=64,
    num_codes=4,
    codebook_size=256,
    code_dim=4,
    stage_widths=(8, 8, 8, 8),
    feature_channels=8,
    regions=(1, 1),
    mixer_width=16,
    unmixer_width=16,
)


def _correlated_features(count):
    """Features with few strong directions, as those of pictures are."""
    generator = torch.Generator().manual_seed(0)
    strengths = 3.0 * 0.6 ** torch.arange(12)
    directions = torch.linalg.qr(torch.randn(32, 12, generator=generator)).Q
    features = (torch.randn(count, 12, generator=generator) * strengths) @ directions.T
    return features + 0.01 * torch.randn(count, 32, generator=generator) + 5


def test_the_start_explains_features_and_goes_from_coarse_to_fine():
    torch.manual_seed(0)
    model = SlotTokenizer(TINY)
    features = _correlated_features(4000)
    model.standardise(features[:3000])
    start_from_components(model, features[:3000], torch.ones(32), torch.Generator().manual_seed(0))
    unseen = features[3000:]
    with torch.no_grad():
        entries = model.codebook_KD[model.nearest(model.slots(unseen))]
        errors = []
        for kept in range(5):
            known = torch.zeros_like(entries)
            known[:, :kept] = entries[:, :kept]
            known[:, kept:] = model.codebook_KD[model.nearest(model.slots(unseen.mean(0, keepdim=True)))][:, kept:]
            errors.append(float((model.unmix(known) - unseen).square().mean() / unseen.var(0).mean()))
    assert errors[-1] < 0.2, "codes should tell most of the features"
    gains = [before - after for before, after in zip(errors, errors[1:], strict=False)]
    assert len(gains) == 4 and gains[0] == max(gains) and min(gains) > -0.02, gains


def test_entries_move_to_the_slots_they_stand_for_and_dead_ones_restart():
    generator = torch.Generator().manual_seed(0)
    centres = F.normalize(torch.randn(3, 4, generator=generator), dim=-1)
    codebook = F.normalize(torch.cat([centres + 0.3, -centres]), dim=-1)
    average = CodebookAverage(codebook)
    restarted = 0
    for _ in range(2000):
        slots = F.normalize(centres + 0.01 * torch.randn(3, 4, generator=generator), dim=-1)[None]
        restarted += average.update(slots, (slots @ codebook.T).argmax(-1), generator)
    assert restarted >= 1, "three entries are enough, so others die"
    nearest = (centres @ codebook.T).amax(-1)
    assert (nearest > 0.999).all()
    torch.testing.assert_close(codebook.norm(dim=-1), torch.ones(6))


def test_usage_counts_codes_and_starts_anew():
    usage = CodeUsage(8)
    assert usage.read() == {}
    usage.add(torch.tensor([[0, 1], [2, 3]]))
    assert usage.read()["codes_used"] == 4
    usage.add(torch.tensor([[5, 5], [5, 6]]))
    found = usage.read()
    assert found["codes_used"] == 2
    assert abs(found["perplexity"] - 4 / 27**0.25) < 1e-6
