from collections import Counter

import numpy as np
import pytest

from ar_t2i.data.scenes import (
    COLORS,
    HELD_OUT,
    KINDS,
    PLACES,
    RELATIONS,
    SIZE,
    SPLITS,
    relation_holds,
    sample_scene,
    scene_at,
    truth,
)

COUNT = 4000


def scenes(split, seed=11, count=COUNT):
    return [scene_at(seed, index, split)[0] for index in range(count)]


def pairs(scene):
    return [(thing.color, thing.kind) for thing in scene.things]


def test_held_out_is_a_tenth_and_touches_every_kind_once_and_every_color_twice():
    assert len(HELD_OUT) == len(KINDS) * len(COLORS) // 10
    assert Counter(kind for _, kind in HELD_OUT) == dict.fromkeys(KINDS, 1)
    assert Counter(color for color, _ in HELD_OUT) == dict.fromkeys(COLORS, 2)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_held_out_pairs_never_appear_and_everything_else_does(split):
    drawn = scenes(split)
    seen = Counter(pair for scene in drawn for pair in pairs(scene))
    assert not HELD_OUT & set(seen)
    assert set(seen) == {(color, kind) for color in COLORS for kind in KINDS} - HELD_OUT
    for position, names in ((0, COLORS), (1, KINDS)):
        share = Counter(pair[position] for pair in seen.elements())
        assert min(share[name] for name in names) > 0.4 * seen.total() / len(names)
    places = Counter(scene.place for scene in drawn)
    assert min(places[place] for place in PLACES) > 0.7 * COUNT / len(PLACES)
    assert {scene.layout for scene in drawn} == {"single", "several", "on", "above", "beside"}
    assert Counter(len(scene.things) for scene in drawn).keys() == {1, 2, 3}


def test_each_heldout_picture_shows_a_held_out_pair():
    drawn = scenes("heldout", count=1500)
    assert all(HELD_OUT & set(pairs(scene)) for scene in drawn)
    assert {pair for scene in drawn for pair in pairs(scene)} >= HELD_OUT


def test_two_of_a_kind_beside_each_other_differ_in_color():
    counted = 0
    for split in SPLITS:
        for scene in scenes(split, count=2000):
            if scene.layout == "beside" and scene.things[0].kind == scene.things[1].kind:
                assert scene.things[0].color != scene.things[1].color
                counted += 1
    assert counted > 10


def test_splits_and_seeds_are_different_streams():
    first = scenes("train", count=200)
    assert first == scenes("train", count=200)
    for other in (scenes("validation", count=200), scenes("train", seed=12, count=200)):
        assert sum(a == b for a, b in zip(first, other, strict=True)) == 0


def test_relations_hold_in_the_boxes_and_their_opposites_do_not():
    counted = Counter()
    opposites = {"on": "below", "above": "below", "below": "above", "left of": "right of", "right of": "left of"}
    for scene in scenes("train", count=2000) + scenes("heldout", count=500):
        facts = truth(scene)
        boxes = [thing["box"] for thing in facts["objects"]]
        for first, relation, second in facts["relations"]:
            assert relation_holds(boxes[first], relation, boxes[second])
            assert not relation_holds(boxes[second], relation, boxes[first])
            assert not relation_holds(boxes[first], opposites[relation], boxes[second])
            counted[relation] += 1
    assert set(counted) == set(RELATIONS)
    assert min(counted.values()) > 100


def test_things_are_in_the_picture_and_do_not_hide_each_other():
    counted = 0
    for scene in scenes("train", count=1000):
        for thing in scene.things:
            assert 0 <= thing.left <= SIZE - thing.size
            assert 0 <= thing.top <= SIZE - thing.size
            counted += 1
        for first, second in zip(scene.things, scene.things[1:], strict=False):
            if scene.layout != "on":
                apart_sideways = abs(second.left - first.left) > 0.85 * first.size
                assert apart_sideways or abs(second.top - first.top) > 0.85 * first.size
    assert counted > 1000


def test_unknown_split_and_relation_are_refused():
    with pytest.raises(ValueError, match="split 'test' is not known"):
        sample_scene(np.random.default_rng(0), "test")
    with pytest.raises(ValueError, match="relation 'near' is not known"):
        relation_holds((0, 0, 1, 1), "near", (0, 0, 1, 1))
