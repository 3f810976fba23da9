import numpy as np
import pytest
import torch

from ar_t2i.evaluation.frechet import FeatureMoments, frechet_distance, gaussian_distance


def moments(features, size=10**9):
    found = FeatureMoments()
    for batch in torch.from_numpy(features).split(size):
        found.add(batch)
    return found


def random_covariance(rng, size):
    factor = rng.normal(size=(size, size))
    return factor @ factor.T


def test_moments_are_those_of_all_features_together():
    """Also far from zero, where sums of squares would lose every digit."""
    features = np.random.default_rng(0).normal(size=(200, 6)) + 1e6
    for size in (1, 3, 64, 200):
        found = moments(features, size)
        assert found.count == 200
        np.testing.assert_allclose(found.mean_D, features.mean(0), rtol=1e-14)
        np.testing.assert_allclose(found.covariance_DD, np.cov(features.T), rtol=1e-7, atol=1e-9)


def test_one_dimension_in_closed_form():
    """(m1 - m2)^2 + (s1 - s2)^2."""
    for m1, s1, m2, s2 in ((0, 1, 0, 1), (1, 2, 4, 0.5), (-3, 0, 2, 7)):
        found = gaussian_distance(*(np.array(x, dtype=float) for x in ([m1], [[s1**2]], [m2], [[s2**2]])))
        assert found == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2, abs=1e-12)


def test_commuting_covariances_in_closed_form():
    """With one set of axes: the squared distance of the means plus that of the standard deviations."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(40, 40)))[0]
    one, two = rng.uniform(0, 3, 40), rng.uniform(0, 3, 40)
    one[:5], two[3:9] = 0, 0
    means = rng.normal(size=(2, 40))
    found = gaussian_distance(means[0], axes * one**2 @ axes.T, means[1], axes * two**2 @ axes.T)
    assert found == pytest.approx(np.square(means[0] - means[1]).sum() + np.square(one - two).sum(), rel=1e-9)


def test_general_covariances_by_another_way():
    """The trace of the root of S1 S2 from the eigenvalues of that product, which is not symmetric."""
    rng = np.random.default_rng(2)
    for size in (2, 5, 20):
        one, two, means = random_covariance(rng, size), random_covariance(rng, size), rng.normal(size=(2, size))
        values = np.linalg.eigvals(one @ two)
        assert np.abs(values.imag).max() < 1e-6
        root = np.sqrt(values.real.clip(0)).sum()
        expected = np.square(means[0] - means[1]).sum() + np.trace(one) + np.trace(two) - 2 * root
        assert gaussian_distance(means[0], one, means[1], two) == pytest.approx(expected, rel=1e-9)
        if size == 2:  # for 2x2: tr(root M)^2 = tr M + 2 sqrt(det M)
            product = one @ two
            assert root == pytest.approx(np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product))), rel=1e-9)


def test_laws():
    rng = np.random.default_rng(3)
    first, second = moments(rng.normal(size=(500, 8))), moments(rng.normal(1, 2, size=(400, 8)))
    assert frechet_distance(first, first) < 1e-12
    there, back = frechet_distance(first, second), frechet_distance(second, first)
    assert there == pytest.approx(back, rel=1e-12) and there > 8
    shift = rng.normal(size=8)
    shifted = moments(np.random.default_rng(3).normal(size=(500, 8)) + shift)
    assert frechet_distance(first, shifted) == pytest.approx(np.square(shift).sum(), rel=1e-9)


def test_fewer_pictures_than_features():
    """The covariances are singular: nothing breaks, a set is at distance 0 from itself, a shift is seen exactly."""
    features = np.random.default_rng(4).normal(size=(20, 300))
    first = moments(features)
    assert frechet_distance(first, moments(features[::-1].copy(), 7)) < 1e-6
    assert frechet_distance(first, moments(features + 0.5)) == pytest.approx(0.25 * 300, rel=1e-6)


def test_wrong_features_are_refused():
    with pytest.raises(ValueError, match="needs at least 2"):
        frechet_distance(moments(np.zeros((1, 3))), moments(np.zeros((5, 3))))
    with pytest.raises(ValueError, match="one network's"):
        frechet_distance(moments(np.zeros((5, 3))), moments(np.zeros((5, 4))))
    started = moments(np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"shape \(5, 4\): expected \(B, 3\)"):
        started.add(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="not finite"):
        started.add(torch.full((1, 3), float("nan")))


def test_agreement_with_the_matrix_root():
    """The trace of the root itself, as the first code of FID has it; where the covariances have one."""
    linalg = pytest.importorskip("scipy.linalg")
    rng = np.random.default_rng(5)
    for count in (200, 40):
        first, second = rng.normal(size=(count, 30)), rng.normal(0.2, 1.1, size=(count + 20, 30))
        one, two = np.cov(first.T), np.cov(second.T)
        root = linalg.sqrtm(one @ two)
        expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(one + two - 2 * root.real)
        assert frechet_distance(moments(first), moments(second)) == pytest.approx(expected, rel=1e-6)


def test_joined_moments_are_those_of_all():
    features = np.random.default_rng(6).normal(size=(90, 5))
    found, empty = moments(features[:20]), FeatureMoments()
    for other in (empty, moments(features[20:])):
        found.join(other)
    empty.join(found)
    for joined in (found, empty):
        assert joined.count == 90
        np.testing.assert_allclose(joined.covariance_DD, np.cov(features.T), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="one network's"):
        found.join(moments(features[:, :3]))
