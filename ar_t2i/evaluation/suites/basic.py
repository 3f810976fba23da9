"""What scenes are made of, asked for as their captions do: one thing, two, a relation, a number, a place."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import count, islice

from ar_t2i.data.scenes import Caption, Scene, scene_at
from ar_t2i.evaluation.judge import Reading, Verdict, judge
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import Scores, Suite


@dataclass(frozen=True)
class Category:
    """A kind of prompt."""

    split: str
    """The split of the scenes that the prompts are taken from."""
    fits: Callable[[Scene, Caption], bool]
    """Whether a scene and its caption are of this kind."""


def _colored(words: Caption) -> bool:
    return all(group["color"] for group in words.said["objects"])


def _alike(scene: Scene, words: Caption, number: int) -> bool:
    return scene.layout == "several" and len(scene.things) == number and _colored(words)


def _is_pair(words: Caption) -> bool:
    return len(words.said["objects"]) == 2 and _colored(words)


def _is_single(scene: Scene, words: Caption) -> bool:
    return scene.layout == "single" and _colored(words)


CATEGORIES: dict[str, Category] = {
    "one object": Category("validation", _is_single),
    "held-out pair": Category("heldout", _is_single),
    "two objects": Category("validation", lambda scene, words: _is_pair(words) and not words.said["relations"]),
    "relation": Category("validation", lambda scene, words: _is_pair(words) and bool(words.said["relations"])),
    "two of a kind": Category("validation", lambda scene, words: _alike(scene, words, 2)),
    "three of a kind": Category("validation", lambda scene, words: _alike(scene, words, 3)),
    "place": Category("validation", lambda scene, words: _is_single(scene, words) and bool(words.said["place"])),
}
"""The kinds of prompts; all of them say the colours. Two objects are asked for without a relation or with one."""


def prompts(category: str, number: int, seed: int) -> list[Prompt]:
    """The first captions of a category among the scenes of a seed; as captions do, one may come again.

    Raises:
        ValueError: the category is not known.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category {category!r} is not known; use one of {', '.join(CATEGORIES)}")
    chosen = CATEGORIES[category]
    scenes = (scene_at(seed, index, chosen.split) for index in count())
    fitting = islice((words for scene, words in scenes if chosen.fits(scene, words)), number)
    name = category.replace(" ", "_")
    return [
        Prompt(id=f"{name}-{index:04d}", text=words.text, category=category, asked=words.said)
        for index, words in enumerate(fitting)
    ]


def score(prompt: Prompt, reading: Reading) -> Scores:
    """The fields of `Verdict`: right, objects, count, relation, place, size; None for what was not asked for."""
    assert prompt.asked is not None
    verdict = judge(reading, prompt.asked)
    values = {field.name: getattr(verdict, field.name) for field in fields(Verdict)}
    return {name: None if value is None else float(value) for name, value in values.items()}


SUITE = Suite(
    name="scenes/basic",
    about="one thing, two, relations, numbers and places of scenes, and nothing else in the picture",
    domain="scenes",
    scored_by="detector",
    headline="right",
    prompts=lambda number, seed: [each for category in CATEGORIES for each in prompts(category, number, seed)],
    score=score,
)
