"""Judging is a law over readings: what is asked for must be there, and nothing else."""

from dataclasses import replace

import pytest

from ar_t2i.data.scenes import SPLITS, scene_at, truth
from ar_t2i.evaluation.judge import Reading, Seen, box_overlap, drawn_size, judge, same_scene

BIRD = Seen("bird", "red", (90, 20, 160, 100), 0.9)
TREE = Seen("tree", "green", (60, 95, 190, 220), 0.9)
ASKED = {
    "objects": [
        {"count": 1, "kind": "bird", "color": "red", "size": None},
        {"count": 1, "kind": "tree", "color": None, "size": None},
    ],
    "relations": [[0, "on", 1]],
    "place": "sea",
}


def perfect(facts: dict) -> Reading:
    """What a reader without fault says of a picture."""
    seen = tuple(Seen(thing["kind"], thing["color"], tuple(thing["box"]), 1.0) for thing in facts["objects"])
    return Reading(facts["place"], seen)


def test_a_perfect_reading_is_right_for_its_own_caption():
    checked = 0
    for split in SPLITS:
        for index in range(150):
            scene, words = scene_at(5, index, split)
            facts = truth(scene)
            reading = perfect(facts)
            assert judge(reading, words.said).right, (words.text, facts["objects"])
            assert judge(reading, {"said": words.said}) == judge(reading, words.said)
            assert same_scene(reading, facts)
            checked += 1
    assert checked == 450


def test_whatever_is_changed_is_wrong():
    checked = 0
    for index in range(150):
        scene, words = scene_at(6, index, "validation")
        facts = truth(scene)
        reading = perfect(facts)
        first, *rest = reading.objects
        wrong_kind = replace(first, kind="boat" if first.kind != "boat" else "car")
        changed = {
            "missing": Reading(reading.place, tuple(rest)),
            "extra": Reading(reading.place, (*reading.objects, replace(wrong_kind, box=(0, 0, 9, 9)))),
            "doubled": Reading(reading.place, (first, *reading.objects)),
            "kind": Reading(reading.place, (wrong_kind, *rest)),
        }
        for what, other in changed.items():
            assert not judge(other, words.said).right, (what, words.text)
            assert not same_scene(other, facts), what
            checked += 1
        moved = replace(first, box=tuple(edge + 300 for edge in first.box))
        assert not same_scene(Reading(reading.place, (moved, *rest)), facts)
        assert not same_scene(replace(reading, place=None), facts)
        other_color = Reading(reading.place, (replace(first, color=None), *rest))
        assert not same_scene(other_color, facts)
        if all(group["color"] for group in words.said["objects"]):
            assert not judge(other_color, words.said).objects
        if words.said["place"]:
            assert judge(replace(reading, place="elsewhere"), words.said).place is False
    assert checked == 600


def test_fields_say_what_is_wrong():
    good = judge(Reading("sea", (TREE, BIRD)), ASKED)
    assert good.right and good.objects and good.count and good.relation and good.place and good.size is None
    apart = judge(Reading("sea", (TREE, replace(BIRD, box=(0, 20, 50, 60)))), ASKED)
    assert apart.objects and apart.count and apart.relation is False and not apart.right
    blue = judge(Reading("sea", (TREE, replace(BIRD, color="blue"))), ASKED)
    assert not blue.objects and blue.count and blue.relation is False and not blue.right
    elsewhere = judge(Reading("snow", (TREE, BIRD)), ASKED)
    assert elsewhere.objects and elsewhere.place is False and not elsewhere.right
    star = Seen("star", "red", (0, 0, 40, 40), 0.9)
    crowded = judge(Reading("sea", (TREE, BIRD, star)), ASKED)
    assert crowded.objects and crowded.count and crowded.relation and crowded.place and not crowded.right
    nothing = judge(Reading("sea", ()), ASKED)
    assert not nothing.objects and not nothing.count and nothing.place and not nothing.right


def test_counts_are_exact_and_one_object_plays_one_part():
    asked = {"objects": [{"count": 2, "kind": "bird", "color": "red"}], "relations": [], "place": None}
    other = replace(BIRD, box=(180, 20, 250, 100))
    assert judge(Reading(None, (BIRD, other)), asked).right
    assert not judge(Reading(None, (BIRD,)), asked).objects
    three = judge(Reading(None, (BIRD, other, replace(BIRD, box=(0, 0, 50, 50)))), asked)
    assert three.objects and not three.count and not three.right
    assert not judge(Reading(None, (BIRD, replace(other, color="blue"))), asked).objects
    twins = {"objects": [{"count": 1, "kind": "bird", "color": color} for color in (None, "red")]}
    assert judge(Reading(None, (BIRD, replace(other, color="blue"))), twins).right
    assert not judge(Reading(None, (BIRD,)), twins).objects


def test_sizes_are_told_apart_for_every_kind():
    checked = 0
    for index in range(200):
        scene, _ = scene_at(8, index, "train")
        if scene.layout != "single":
            continue
        facts = truth(scene)
        reading = perfect(facts)
        assert drawn_size(reading.objects[0]) == pytest.approx(scene.things[0].size, rel=0.05)
        for size in ("small", "medium", "big"):
            asked = {"objects": [{"count": 1, "kind": scene.things[0].kind, "color": None, "size": size}]}
            assert judge(reading, asked).size == judge(reading, asked).right == (size == scene.size_word)
            checked += 1
    assert checked > 150


def test_box_overlap():
    assert box_overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert box_overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert box_overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert box_overlap((5, 5, 5, 5), (5, 5, 5, 5)) == 0


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "objects"),
        ({"objects": [{"count": 1, "kind": "dragon"}]}, "dragon"),
        ({"objects": [{"count": 1, "kind": "bird", "color": "mauve"}]}, "mauve"),
        ({"objects": [{"count": 0, "kind": "bird"}]}, "count"),
        ({"objects": [{"count": 1, "kind": "bird", "size": "huge"}]}, "huge"),
        ({"objects": [{"count": 1, "kind": "bird"}], "relations": [[0, "on", 1]]}, "relation"),
        ({"objects": [{"count": 1, "kind": "bird"}], "relations": [[0, "near", 0]]}, "near"),
        ({"objects": [{"count": 1, "kind": "bird"}], "place": "moon"}, "moon"),
    ],
)
def test_what_cannot_be_asked_is_told(asked, words):
    with pytest.raises(ValueError, match=words) as error:
        judge(Reading(None, ()), asked)
    assert "\n" not in str(error.value)
