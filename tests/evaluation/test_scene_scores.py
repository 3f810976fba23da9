"""Prompts, shares and the drawing of pictures to judge."""

from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from ar_t2i.data.scenes import HELD_OUT, KINDS, draw, scene_at, truth
from ar_t2i.evaluation.judge import Reading, Seen
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.scene_scores import (
    as_asked,
    draw_and_judge,
    fresh_scenes,
    shares_of,
)
from ar_t2i.evaluation.statistics import Share


def test_fresh_scenes_are_of_the_kind_asked_for():
    for what, number in (("one object", 1), ("two objects", 2), ("three objects", 3), ("held-out pair", 1)):
        scenes = list(islice(fresh_scenes(3, what), 8))
        assert [len(scene.things) for scene in scenes] == [number] * 8
        held = [(thing.color, thing.kind) in HELD_OUT for scene in scenes for thing in scene.things]
        assert set(held) == {what == "held-out pair"}
    assert {len(scene.things) for scene in islice(fresh_scenes(3, "free"), 40)} == {1, 2, 3, 4}
    with pytest.raises(ValueError, match="not known"):
        next(fresh_scenes(0, "four objects"))


def test_drawn_pictures_are_judged_by_their_own_prompts():
    """A pipeline and a reader without fault: every other picture is of another scene."""
    scenes = [scene_at(9, index, "validation") for index in range(20)]
    by_text = {words.text: scene for scene, words in scenes}
    wrong = scene_at(9, 500, "validation")[0]
    truths, calls = {}, []

    def pipe(texts, generator, batch_size):
        calls.append(([torch.rand(1, generator=each).item() for each in generator], batch_size))
        images = []
        for index, text in enumerate(texts):
            scene = by_text[text] if index % 2 else wrong
            images.append(draw(scene))
            truths[id(images[-1])] = truth(scene)
        return SimpleNamespace(images=images)

    class Eyes:
        def read(self, images):
            facts = [truths[id(image)] for image in images]
            return [
                Reading(each["place"], tuple(Seen(o["kind"], o["color"], o["box"], 1.0) for o in each["objects"]))
                for each in facts
            ]

    prompts = [Prompt(id=str(n), text=w.text, category="all", asked=w.said) for n, (_, w) in enumerate(scenes)]
    drawn = draw_and_judge(pipe, Eyes(), prompts, seed=2, batch_size=7)  # type: ignore[arg-type]
    assert [each.verdict.right for each in drawn] == [bool(index % 2) for index in range(20)]
    assert [each.prompt for each in drawn] == prompts
    shares = shares_of(drawn)
    assert shares["right"] == Share(10, 20)
    assert shares["relation"].total == sum(bool(words.said["relations"]) for _, words in scenes) > 0
    draw_and_judge(pipe, Eyes(), prompts[:3], seed=2, batch_size=7)  # type: ignore[arg-type]
    assert calls[1][0] == calls[0][0][:3] and len(set(calls[0][0])) == 20 and calls[0][1] == 7


def test_as_asked_says_everything():
    facts = truth(scene_at(1, 2, "validation")[0])
    asked = as_asked(facts)
    assert [group["kind"] for group in asked["objects"]] == [thing["kind"] for thing in facts["objects"]]
    assert all(group["kind"] in KINDS and group["count"] == 1 for group in asked["objects"])
    assert asked["place"] == facts["place"] and asked["relations"] == facts["relations"]
