"""Prompts and scores of what scenes are made of."""

import pytest

from ar_t2i.data.scenes import HELD_OUT
from ar_t2i.evaluation.suites.basic import CATEGORIES, prompts


def test_prompts_say_what_their_category_is_about():
    checked = 0
    for category in CATEGORIES:
        chosen = prompts(category, 12, seed=5)
        assert chosen == prompts(category, 20, seed=5)[:12] != prompts(category, 12, seed=6)
        for prompt in chosen:
            groups, relations = prompt.asked["objects"], prompt.asked["relations"]
            assert all(group["color"] for group in groups)
            pairs = [(group["color"], group["kind"]) in HELD_OUT for group in groups]
            assert any(pairs) == (category == "held-out pair")
            wanted = {"two of a kind": 2, "three of a kind": 3}.get(category, 1)
            assert {group["count"] for group in groups} == {wanted}
            assert len(groups) == (2 if category in ("two objects", "relation") else 1)
            assert bool(relations) == (category == "relation")
            assert prompt.asked["place"] or category != "place"
            checked += 1
    assert checked == 12 * len(CATEGORIES)
    with pytest.raises(ValueError, match="category"):
        prompts("four objects", 1, seed=0)
