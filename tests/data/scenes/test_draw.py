import json

import numpy as np
import pytest

from ar_t2i.data.scenes import (
    COLORS,
    KINDS,
    PLACES,
    SIZE,
    Scene,
    Thing,
    background,
    decode_mask,
    draw,
    masks,
    scene_at,
    truth,
)


def alone(place, kind, color, size=116, mirrored=False):
    thing = Thing(kind=kind, color=color, size=size, left=70, top=84, mirrored=mirrored)
    return Scene(place=place, layout="single", things=(thing,), size_word="medium")


def rim_of(mask, width=3):
    inner = mask
    for _ in range(width):
        shifts = ((1, 0), (-1, 0), (1, 1), (-1, 1))
        inner = inner & np.logical_and.reduce([np.roll(inner, step, axis) for step, axis in shifts])
    return mask & ~inner


@pytest.mark.parametrize("place", PLACES)
def test_every_color_of_every_kind_stands_out_from_every_place(place):
    behind = np.asarray(background(place)).astype(int)
    counted = 0
    for kind in KINDS:
        for color in COLORS:
            scene = alone(place, kind, color)
            (mask,) = masks(scene)
            difference = np.abs(np.asarray(draw(scene)).astype(int) - behind).mean(axis=-1)
            assert difference[rim_of(mask)].mean() > 15, (kind, color)
            assert difference[mask].mean() > 20, (kind, color)
            counted += 1
    assert counted == len(KINDS) * len(COLORS)


def test_the_named_color_is_the_largest_part_of_every_object_exactly():
    counted = 0
    for kind in KINDS:
        for color, value in COLORS.items():
            scene = alone("plain", kind, color)
            pixels = np.asarray(draw(scene))[masks(scene)[0]]
            exact = (pixels == np.array(value)).all(axis=-1).mean()
            values, counts = np.unique(pixels, axis=0, return_counts=True)
            assert exact > 0.4, (kind, color, exact)
            assert tuple(values[counts.argmax()]) == value, (kind, color)
            counted += 1
    assert counted == len(KINDS) * len(COLORS)


def test_nothing_but_the_shadow_lies_outside_the_masks():
    counted = 0
    for index in range(200):
        scene, _ = scene_at(3, index, "train")
        covered = np.logical_or.reduce(masks(scene))
        near = covered | rim_of(~covered, width=2)
        change = np.asarray(draw(scene)).astype(int) - np.asarray(background(scene.place)).astype(int)
        assert (change[~near] <= 3).all(), "outside the masks pixels only get darker"
        assert np.abs(change[~near]).max() < 60
        counted += 1
    assert counted == 200


def test_masks_and_boxes_agree_and_survive_the_round_trip():
    counted = 0
    for index in range(300):
        scene, _ = scene_at(5, index, "train")
        facts = json.loads(json.dumps(truth(scene)))
        union = np.zeros((SIZE, SIZE), dtype=int)
        for layer, (thing, mask) in enumerate(zip(facts["objects"], masks(scene), strict=True)):
            decoded = decode_mask(thing["mask"])
            assert decoded.shape == (SIZE, SIZE)
            assert (decoded == mask).all()
            x0, y0, x1, y1 = thing["box"]
            assert mask[y0:y1, x0:x1].sum() == mask.sum()
            assert mask[y0, :].any() and mask[y1 - 1, :].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
            assert thing["layer"] == layer
            union += mask
            counted += 1
        assert union.max() == 1, "a pixel is seen of one object only"
        assert facts["counts"] == {
            kind: sum(thing["kind"] == kind for thing in facts["objects"])
            for kind in {thing["kind"] for thing in facts["objects"]}
        }
    assert counted > 300


def test_a_mask_that_begins_with_an_object_decodes():
    assert decode_mask({"size": [2, 2], "counts": [0, 1, 2, 1]}).tolist() == [[True, False], [False, True]]
    with pytest.raises(ValueError, match="add up to 3"):
        decode_mask({"size": [2, 2], "counts": [1, 2]})


def test_the_front_object_hides_the_back_one():
    back = Thing(kind="house", color="red", size=116, left=60, top=100, mirrored=False)
    front = Thing(kind="cat", color="blue", size=84, left=76, top=120, mirrored=False)
    scene = Scene(place="plain", layout="beside", things=(back, front), size_word=None)
    free = masks(Scene(place="plain", layout="beside", things=(back,), size_word=None))[0]
    hidden, whole = masks(scene)
    assert whole.sum() > 1000
    assert (hidden == (free & ~whole)).all()
    assert hidden.sum() < free.sum()


def test_mirroring_an_object_mirrors_its_mask():
    counted = 0
    for kind in KINDS:
        (right,), (left,) = masks(alone("plain", kind, "red")), masks(alone("plain", kind, "red", mirrored=True))
        window = slice(84, 200), slice(70, 186)
        assert (left[window] == right[window][:, ::-1]).all()
        counted += 1
    assert counted == len(KINDS)


def test_drawing_twice_gives_the_same_picture_and_leaves_the_background_alone():
    before = background("sea").tobytes()
    assert draw(alone("sea", "cat", "red")).tobytes() == draw(alone("sea", "cat", "red")).tobytes()
    assert background("sea").tobytes() == before
    assert draw(alone("sea", "cat", "red")).size == (SIZE, SIZE)
    assert draw(alone("sea", "cat", "red")).mode == "RGB"
