"""What the suites say of readings that are made up here."""

import itertools
import random

import pytest

from ar_t2i.evaluation.judge import Reading, Seen
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import binding, geneval, multigen, optigen, spatial
from ar_t2i.evaluation.suites.grammar import WORDS, prompt, thing

SCENES = WORDS["scenes"]
LEFT, RIGHT, TOP = (0, 100, 80, 180), (150, 100, 230, 180), (0, 0, 80, 80)


def seen(kind, color="red", box=LEFT, score=0.9):
    return Seen(kind, color, box, score)


def asks(*groups, relation=None, category="all"):
    return prompt(SCENES, category, 0, groups, relation)


def test_multigen_counts_as_a_recount_does():
    lot, kinds = random.Random(0), list(SCENES.plurals)
    checked = 0
    for _ in range(300):
        named = lot.sample(kinds, 5)
        found = [lot.choice(kinds) for _ in range(lot.randrange(9))]
        scores = multigen.score(asks(*map(thing, named)), Reading(None, tuple(map(seen, found))))
        count = 0
        for kind in named:
            for other in found:
                if kind == other:
                    count += 1
                    break
        assert scores == {"mg2": count >= 2, "mg3": count >= 3, "mg4": count >= 4, "mg5": count >= 5}
        checked += count
    assert checked > 200


def test_optigen():
    pair = asks(thing("bird"), thing("tree"))
    for found, scores in (((), (0, 0)), (("tree", "tree"), (1, 0)), (("tree", "cat", "bird"), (1, 1))):
        assert tuple(optigen.score(pair, Reading(None, tuple(map(seen, found)))).values()) == scores


def test_binding_tells_leakage_from_what_is_missing():
    pair = asks(thing("apple", "red"), thing("cat", "green"))

    def scores(*objects):
        return tuple(binding.score(pair, Reading(None, tuple(seen(*each) for each in objects))).values())

    red, green, blue = ("apple", "red"), ("cat", "green"), ("cat", "blue")
    assert list(binding.score(pair, Reading(None, ()))) == ["right", "leakage", "missing", "objects"]
    assert scores(red, green) == scores(red, green, ("boat", "blue")) == (1, 0, 0, 1)
    assert scores(("apple", "green"), ("cat", "red")) == scores(red, ("cat", "red")) == (0, 1, 0, 1)
    assert scores(red, green, ("apple", "green")) == (0, 1, 0, 1)
    assert scores(red, blue) == scores(red, ("cat", None)) == (0, 0, 0, 1)
    assert scores(red) == (0, 0, 1, 0.5) and scores(("cat", "red")) == (0, 1, 1, 0.5) and scores() == (0, 0, 1, 0)


def right(asked: Prompt, *objects):
    return bool(geneval.score(asked, Reading(None, objects))["right"])


def test_geneval_includes_and_counts():
    two = asks(thing("bird"), thing("cat"))
    assert right(two, seen("cat"), seen("bird"), seen("bird"), seen("boat")) and not right(two, seen("cat"))
    birds = (seen("bird"), seen("bird", box=RIGHT), seen("bird", box=TOP))
    counted = asks(thing("bird", count=2), category="counting")
    assert right(counted, *birds[:2], seen("cat"))
    assert not right(counted, *birds) and not right(counted, birds[0])
    assert right(asks(thing("bird", count=2)), *birds)


def test_geneval_looks_at_the_surest():
    red = asks(thing("bird", "red"))
    assert right(red, seen("bird", score=0.9), seen("bird", "blue", score=0.5))
    assert not right(red, seen("bird", score=0.4), seen("bird", "blue", score=0.5))
    beside = asks(thing("bird"), thing("cat"), relation="left of")
    assert right(beside, seen("bird"), seen("cat", box=RIGHT), seen("cat", box=TOP, score=0.3))
    assert not right(beside, seen("bird"), seen("cat", box=RIGHT, score=0.2), seen("cat", box=TOP, score=0.3))
    assert right(asks(thing("bird"), thing("cat"), relation="below"), seen("bird"), seen("cat", box=TOP))


def test_positions_follow_the_rule_of_the_benchmark():
    """Its vectors worked by hand: what is left beyond 0.1 of both sizes, over the whole distance, is above 0.5."""
    box = (0, 0, 100, 100)
    for (dx, dy), wanted in {
        (0, 0): set(),
        (20, 0): set(),  # 20 - 0.1 x 200 = 0
        (30, 0): set(),  # 10 / 30
        (50, 0): {"right of"},  # 30 / 50
        (-50, 0): {"left of"},
        (0, 50): {"below"},
        (0, -50): {"above"},
        (100, 100): {"right of", "below"},  # 80 / 141 each
        (100, 30): {"right of"},
        (40, 40): set(),  # 20 / 57
    }.items():
        assert geneval.positions((dx, dy, dx + 100, dy + 100), box) == wanted, (dx, dy)


def test_spatial_places():
    box = (100, 100, 140, 140)
    sides = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
    for (said, _), (true, (dx, dy)) in itertools.product(sides.items(), repeat=2):
        moved = (100 + 60 * dx, 100 + 60 * dy, 140 + 60 * dx, 140 + 60 * dy)
        assert spatial.placed(moved, said, box) == (said == true)
    assert spatial.placed((70, 70, 110, 110), "left of", box) == 0  # on the diagonal
    assert spatial.placed((80, 100, 120, 140), "left of", box) == pytest.approx(0.1 / (1 / 3))
    assert spatial.placed((100, 60, 140, 102), "on", box) == 1


def test_spatial_scores():
    beside = asks(thing("bird"), thing("cat"), relation="left of")
    bird, cat = seen("bird", score=0.8), seen("cat", box=RIGHT, score=0.6)
    assert spatial.score(beside, Reading(None, (bird, cat))) == {"right": 1.0, "score": pytest.approx(0.85)}
    below = asks(thing("bird"), thing("cat"), relation="below")
    assert spatial.score(below, Reading(None, (bird, cat))) == {"right": 0.0, "score": 0.0}
    assert spatial.score(beside, Reading(None, (bird,))) == {"right": 0.0, "score": 0.0}
    unsure = seen("bird", box=RIGHT, score=0.1)
    assert spatial.score(beside, Reading(None, (unsure, bird, cat)))["right"] == 1
