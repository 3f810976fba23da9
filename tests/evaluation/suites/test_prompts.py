"""Prompts of all suites: a seed repeats them, a smaller number comes first, none comes twice, all are English."""

import re

import pytest

from ar_t2i.data.scenes import COLORS, KINDS
from ar_t2i.evaluation.judge import Reading, judge
from ar_t2i.evaluation.prompts import read_prompts, write_prompts
from ar_t2i.evaluation.suites.catalogue import SUITES, find_suite
from ar_t2i.evaluation.suites.coco import COCO_CATEGORIES
from ar_t2i.evaluation.suites.grammar import WORDS

DRAWN = [name for name in SUITES if not name.endswith(("basic", "optigen"))]


@pytest.mark.parametrize("name", DRAWN)
def test_prompts_are_drawn_by_the_seed(name):
    suite = SUITES[name]
    assert suite.name == name and suite.domain == name.split("/")[0]
    prompts, fewer = suite.prompts(15, 4), suite.prompts(6, 4)
    assert prompts == suite.prompts(15, 4) != suite.prompts(15, 5)
    categories = dict.fromkeys(prompt.category for prompt in prompts)
    for category in categories:
        own = [prompt for prompt in prompts if prompt.category == category]
        assert own[:6] == [prompt for prompt in fewer if prompt.category == category]
        assert len({prompt.text for prompt in own}) == len(own) == 15
    assert len({prompt.id for prompt in prompts}) == len(prompts)
    assert suite.prompts(0, 0) == []
    with pytest.raises(ValueError, match="negative"):
        suite.prompts(-1, 0)


@pytest.mark.parametrize("name", DRAWN)
def test_prompts_are_english(name):
    checked = 0
    for prompt in SUITES[name].prompts(15, 8):
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  |,,", prompt.text), prompt.text
        for group in prompt.asked["objects"]:
            words = WORDS[SUITES[name].domain]
            noun = words.plurals[group["kind"]] if group["count"] > 1 else group["kind"]
            assert re.search(rf"\b{noun}\b", prompt.text) and (group["color"] or "") in prompt.text
        checked += 1
    assert checked >= 15


@pytest.mark.parametrize("name", [name for name in DRAWN if name.startswith("scenes")])
def test_prompts_about_scenes_can_be_judged(name):
    for prompt in SUITES[name].prompts(10, 2):
        assert not judge(Reading(None, ()), prompt.asked).right


def test_all_there_are_come_before_any_comes_again():
    texts = [prompt.text for prompt in SUITES["scenes/geneval"].prompts(45, 0) if prompt.category == "single_object"]
    assert len(set(texts[:20])) == 20 == len(KINDS) and len(set(texts[20:40])) == 20


def test_prompts_survive_a_file(tmp_path):
    prompts = SUITES["photos/geneval"].prompts(3, 1)
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    assert read_prompts(tmp_path / "prompts.jsonl") == prompts


def test_words():
    assert len(COCO_CATEGORIES) == 80 and list(COCO_CATEGORIES) == sorted(COCO_CATEGORIES)
    assert len(COLORS) == 10 and "person" not in WORDS["photos"].colored
    assert {name.split("/")[1] for name in SUITES} == {"basic", "multigen", "optigen", "binding", "geneval", "spatial"}
    for suite in SUITES.values():
        assert suite.scored_by == "detector" and suite.score


def test_swaps_are_tied_to_their_pairs():
    prompts = {prompt.id: prompt for prompt in SUITES["scenes/binding"].prompts(9, 3)}
    for index in range(9):
        first, second = prompts[f"pair-{index:04d}"].asked["objects"]
        swap, other = prompts[f"swapped-{index:04d}"].asked["objects"]
        assert (first["kind"], second["kind"]) == (swap["kind"], other["kind"])
        assert (first["color"], second["color"]) == (other["color"], swap["color"])
        assert first["color"] != second["color"] and first["kind"] != second["kind"]


def test_a_name_that_is_not_known_is_told():
    assert find_suite("scenes/basic") is SUITES["scenes/basic"]
    assert find_suite("photos/parti:some.tsv").scored_by == "clip"
    for name in ("geneval", "photos/parti:"):
        with pytest.raises(ValueError, match="scenes/geneval"):
            find_suite(name)
