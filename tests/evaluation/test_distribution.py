"""Figures of sets against brute force and another library, and laws that they keep."""

import tracemalloc
import warnings

import numpy as np
import pytest
import torch

from ar_t2i.evaluation import distribution
from ar_t2i.evaluation.distribution import (
    FeatureSet,
    compare,
    frechet_interval,
    kernel_distance,
    manifold_figures,
    real_against_real,
)
from ar_t2i.evaluation.extractors import INCEPTION, FeatureExtractor
from ar_t2i.evaluation.frechet import FeatureMoments, frechet_distance

FAKE = FeatureExtractor("fake", lambda pictures: pictures.float().mean((2, 3)))


def drawn(seed, count, size=8, shift=0.0, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, scale, (count, size))).float()


def feature_set(features, batch=64, kept=10_000, order=None):
    found = FeatureSet(kept)
    order = torch.arange(len(features)) if order is None else order
    for rows in order.split(batch):
        found.add(features[rows], [f"picture-{row}" for row in rows.tolist()])
    return found


def moments(features):
    found = FeatureMoments()
    found.add(features)
    return found


def test_order_batches_and_workers_change_nothing():
    features, other = drawn(0, 300), feature_set(drawn(1, 200, shift=0.3))
    first = compare(feature_set(features, kept=120), other, FAKE)
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    workers = [feature_set(features, 7, 120, part) for part in shuffled.chunk(3)]
    workers[2].join(workers[0])
    workers[2].join(workers[1])
    checked = 0
    for again in (feature_set(features, 300, 120), feature_set(features, 1, 120, shuffled), workers[2]):
        assert torch.equal(again.sample_ND, feature_set(features, kept=120).sample_ND)
        found = compare(again, other, FAKE)
        assert found["bias"] == pytest.approx(first["bias"], rel=1e-9)
        for name, value in first["figures"].items():
            if name == "frechet_fake":
                assert found["figures"][name] == pytest.approx(value, rel=1e-9)
            else:
                assert found["figures"][name] == value
            checked += 1
    assert checked == 3 * 7 and first["kept"] == {"reference": 120, "generated": 200}


def test_the_sample_is_of_all_pictures_alike():
    """With a feature that counts the pictures, the sample's mean is that of the whole, within its deviation."""
    features = torch.arange(4000.0)[:, None].repeat(1, 2)
    sample = feature_set(features, 500, kept=400).sample_ND[:, 0]
    assert len(sample) == 400 == len(sample.unique())
    assert abs(float(sample.mean()) - 1999.5) < 4 * 4000 / 12**0.5 / 400**0.5


def test_halves_part_a_set():
    features = drawn(2, 501)
    whole = feature_set(features, kept=100)
    halves = whole.halves()
    assert sum(half.count for half in halves) == 501 and min(half.count for half in halves) > 200
    assert sum(len(half.sample_ND) for half in halves) == 100
    joined = FeatureMoments()
    for half in halves:
        joined.join(half.moments)
    np.testing.assert_allclose(joined.covariance_DD, np.cov(features.double().numpy().T), rtol=1e-9, atol=1e-12)
    row = real_against_real(whole, FAKE)
    assert row["pictures"]["reference"] == halves[0].count and row["figures"]["frechet_fake"]["value"] < 0.2


def test_memory_does_not_grow_with_the_pictures():
    """50,000 features of 16 numbers are 6.4 MB as float64; 500 are kept."""
    found = FeatureSet(kept=500)
    tracemalloc.start()
    for start in range(0, 50_000, 1000):
        found.add(drawn(start, 1000, 16), [str(start + row) for row in range(1000)])
        if start == 5000:
            tracemalloc.reset_peak()
            early = tracemalloc.get_traced_memory()[0]
    grown = tracemalloc.get_traced_memory()[1] - early
    tracemalloc.stop()
    assert found.count == 50_000 and len(found.sample_ND) == 500 and grown < 1_000_000


def test_a_set_is_at_no_distance_from_itself():
    features = feature_set(drawn(3, 200))
    found = compare(features, features, FAKE)
    figures = found["figures"]
    assert abs(figures["frechet_fake"]["value"]) < 1e-6 and figures["frechet_fake"]["high"] < 1e-6
    assert (figures["precision"], figures["recall"], figures["coverage"]) == (1, 1, 1)
    assert figures["kernel_fake"] < 0.05 and not found["warnings"]


def test_few_pictures_are_said():
    found = compare(feature_set(drawn(4, 40, 30)), feature_set(drawn(5, 30, 30)), FAKE)
    assert len(found["warnings"]) == 1
    assert found["warnings"][0].startswith("frechet_fake is not meaningful: 30 features need at least 31 pictures")
    assert found["figures"]["frechet_fake"]["low"] is None and found["figures"]["frechet_fake"]["value"] > 0
    tiny = compare(feature_set(drawn(4, 3, 4)), feature_set(drawn(5, 2, 4)), FAKE)
    assert len(tiny["warnings"]) == 3 and tiny["figures"].keys() == {"frechet_fake"}


def test_names_are_those_of_the_network():
    features = feature_set(drawn(6, 20, 3)), feature_set(drawn(7, 20, 3))
    names = [
        set(list(compare(*features, FeatureExtractor(name, FAKE.features))["figures"])[:2])
        for name in (INCEPTION, "dinov2", "dinov2_12x384", "scenes")
    ]
    assert names == [
        {"fid", "kid"},
        {"fd_dinov2", "kernel_dinov2"},
        {"frechet_dinov2_12x384", "kernel_dinov2_12x384"},
        {"frechet_scenes", "kernel_scenes"},
    ]


def test_manifold_figures_by_brute_force(monkeypatch):
    monkeypatch.setattr(distribution, "_ROWS", 7)
    checked = 0
    for seed, shift in ((0, 0.0), (1, 0.8), (2, 3.0)):
        real, fake = drawn(seed, 60, 4).double(), drawn(seed + 10, 45, 4, shift, 0.7).double()
        found = manifold_figures(real, fake)

        def reach(features, k):
            return [sorted(float((x - y).norm()) for y in features)[k] for x in features]

        apart = [[float((x - y).norm()) for y in fake] for x in real]
        real_3, fake_3, real_5 = reach(real, 3), reach(fake, 3), reach(real, 5)
        rows, columns = range(60), range(45)
        assert found == pytest.approx(
            {
                "precision": sum(any(apart[i][j] <= real_3[i] for i in rows) for j in columns) / 45,
                "recall": sum(any(apart[i][j] <= fake_3[j] for j in columns) for i in rows) / 60,
                "density": sum(apart[i][j] < real_5[i] for i in rows for j in columns) / 5 / 45,
                "coverage": sum(any(apart[i][j] < real_5[i] for j in columns) for i in rows) / 60,
            }
        )
        checked += 1
    assert checked == 3 and found["precision"] < 0.2


def test_kernel_distance_by_brute_force():
    """Subsets of all there is are all alike: the unbiased MMD^2 term by term, and no deviation."""
    one, two = drawn(0, 20, 5).double(), drawn(1, 20, 5, 0.5).double()

    def kernel(x, y):
        return (float(x @ y) / 5 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (one, two) for i in range(20) for j in range(20) if i != j) / (20 * 19)
    across = sum(kernel(x, y) for x in one for y in two) / 400
    mean, deviation = kernel_distance(one, two, 20, seed=0)
    assert mean == pytest.approx(within - 2 * across, rel=1e-10) and deviation < 1e-12
    found = kernel_distance(one, two, 8, seed=0)
    assert found == kernel_distance(one, two, 8, seed=0) != kernel_distance(one, two, 8, seed=1) and found[1] > 0


def test_the_interval_holds_the_mean_distance_of_such_sets():
    """150 pairs of sets: the interval of 95 % misses the mean over all pairs in 1 to 10 % of them."""
    found = []
    for seed in range(150):
        one, two = drawn(2 * seed, 300, 4).double(), drawn(2 * seed + 1, 200, 4, 0.4, 1.3).double()
        found.append(frechet_interval(moments(one), moments(two), one, two))
    mean = np.mean([each.value for each in found])
    missed = sum(not each.low <= mean <= each.high for each in found)
    assert 2 <= missed <= 15


def test_bias_is_told_from_halves():
    """Sets of one distribution: the true distance is 0, and all that is measured is bias."""
    measured, told = 0.0, 0.0
    for seed in range(10):
        found = compare(feature_set(drawn(seed, 400)), feature_set(drawn(seed + 100, 400)), FAKE)
        measured, told = measured + found["figures"]["frechet_fake"]["value"], told + found["bias"]
    assert told == pytest.approx(measured, rel=0.3)


def test_wrong_keys_are_refused():
    found = FeatureSet()
    with pytest.raises(ValueError, match="2 features with 1 keys"):
        found.add(drawn(0, 2), ["a"])
    found.add(drawn(0, 2), ["a", "a"])
    with pytest.raises(ValueError, match="one key"):
        found.sample_ND  # noqa: B018
    with pytest.raises(ValueError, match="kept=0"):
        FeatureSet(0)


def test_agreement_with_torch_fidelity():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch_fidelity.metric_fid import (  # pyright: ignore[reportMissingImports]
                fid_features_to_statistics,
                fid_statistics_to_metric,
            )
            from torch_fidelity.metric_kid import kid_features_to_metric  # pyright: ignore[reportMissingImports]
            from torch_fidelity.metric_prc import prc_features_to_metric  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity: {error}")
    real, fake = drawn(0, 400, 32).double(), drawn(1, 300, 32, 0.2, 0.9).double()
    statistics = [fid_features_to_statistics(features) for features in (fake, real)]
    theirs = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(moments(real), moments(fake)) == pytest.approx(theirs, rel=1e-9)
    precise = prc_features_to_metric(fake, real, verbose=False)
    found = manifold_figures(real, fake)
    assert found["precision"] == pytest.approx(precise["precision"], abs=1e-6)
    assert found["recall"] == pytest.approx(precise["recall"], abs=1e-6)
    assert 0 < found["precision"] < 1 and 0 < found["recall"] < 1
    whole = kid_features_to_metric(real[:300], fake, kid_subsets=1, kid_subset_size=300, verbose=False)
    mean, _ = kernel_distance(real[:300], fake, 300, seed=0)
    assert mean == pytest.approx(whole["kernel_inception_distance_mean"], rel=1e-9)
    parts = kid_features_to_metric(real, fake, kid_subsets=100, kid_subset_size=100, verbose=False)
    mean, deviation = kernel_distance(real, fake, 100, seed=0)
    error = parts["kernel_inception_distance_std"] / 100**0.5
    assert abs(mean - parts["kernel_inception_distance_mean"]) < 6 * error
    assert deviation == pytest.approx(parts["kernel_inception_distance_std"], rel=0.4)
