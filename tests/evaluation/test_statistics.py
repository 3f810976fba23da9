"""Intervals are right as often as they say."""

import numpy as np
import pytest

from ar_t2i.evaluation import statistics
from ar_t2i.evaluation.statistics import Estimate, Share, mean_interval, paired_interval


def test_share_has_wilsons_interval():
    assert str(Share(8, 10)) == "80.0 % (49.0 to 94.3)"  # the example of Wilson's interval in textbooks
    low, high = Share(200, 200).interval
    assert low == pytest.approx(0.9812, abs=1e-4) and high == pytest.approx(1)
    assert Share(0, 0).interval == (0, 1) and str(Share(0, 0)) == "none"


def test_intervals_hold_the_mean_as_often_as_they_say():
    """150 sets of 60 skewed values; a bootstrap of so few misses in 6 or 7 %, binomially in 3 to 20 of them."""
    rng = np.random.default_rng(0)
    missed = 0
    for seed in range(150):
        found = mean_interval(rng.gamma(2.0, 1.5, size=60), seed)
        assert found.low < found.value < found.high and found.count == 60
        missed += not found.low <= 3.0 <= found.high
    assert 3 <= missed <= 20


def test_a_lower_level_is_a_narrower_interval():
    values = np.random.default_rng(4).normal(size=50)
    narrow, wide = mean_interval(values, 0, level=0.5), mean_interval(values, 0)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_the_width_is_that_of_the_standard_error():
    values = np.random.default_rng(1).normal(5, 2, size=1000)
    found = mean_interval(values, 0)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 1000**0.5, rel=0.08)


def test_a_seed_gives_one_interval_whatever_is_drawn_at_a_time(monkeypatch):
    values = np.random.default_rng(2).uniform(size=300)
    first = mean_interval(values, 7)
    monkeypatch.setattr(statistics, "_AT_ONCE", 1000)
    assert mean_interval(list(values), 7) == first != mean_interval(values, 8)


def test_pairs_see_what_two_intervals_do_not():
    """Prompts differ by 1, models by 0.1."""
    rng = np.random.default_rng(3)
    prompts = rng.normal(size=200)
    first, second = prompts + 0.1 + rng.normal(0, 0.2, 200), prompts + rng.normal(0, 0.2, 200)
    one, two, apart = mean_interval(first, 0), mean_interval(second, 0), paired_interval(first, second, 0)
    assert one.low < two.high and apart.low > 0
    assert apart.value == pytest.approx(one.value - two.value) and apart.count == 200
    back = paired_interval(second, first, 0)
    assert (back.value, back.low, back.high) == pytest.approx((-apart.value, -apart.high, -apart.low))
    none = paired_interval(first, first, 0)
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_single_values_and_what_is_refused():
    assert mean_interval([0.25], 0) == Estimate(0.25, 0.25, 0.25, 1)
    assert str(Estimate(0.31249, 0.298, 0.32714, 9)) == "0.3125 (0.298 to 0.3271)"
    for values, message in (([], "at least one number"), ([[1.0]], "at least one"), ([float("nan")], "not finite")):
        with pytest.raises(ValueError, match=message):
            mean_interval(values, 0)
    with pytest.raises(ValueError, match="level=95"):
        mean_interval([1.0], 0, 95)
    with pytest.raises(ValueError, match="2 and 1 values: expected pairs"):
        paired_interval([1.0, 2.0], [1.0], 0)
