"""Figures about scenes: how often the verifier itself errs, and how often a model draws what it was asked for."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from ar_t2i.data.scenes import Scene, draw, scene_at, truth
from ar_t2i.evaluation.judge import Reading, Verdict, judge, same_scene
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.reader_scenes import free_scene
from ar_t2i.evaluation.scenes import SceneVerifier
from ar_t2i.evaluation.statistics import Share
from ar_t2i.pipeline import TextToImagePipeline

BOX_OVERLAP = 0.7
"""IoU from which on a box counts as read rightly where the verifier itself is measured."""


def blurred(image: Image.Image) -> Image.Image:
    """The picture under a Gaussian blur of 1.5 pixels."""
    return image.filter(ImageFilter.GaussianBlur(1.5))


def compressed(image: Image.Image) -> Image.Image:
    """The picture as it comes back from a JPEG of quality 50."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=50)
    return Image.open(content).convert("RGB")


SPOILERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "clean": lambda image: image,
    "blur 1.5": blurred,
    "JPEG 50": compressed,
}


def fresh_scenes(seed: int, what: str) -> Iterator[Scene]:
    """Endless scenes to measure the verifier on.

    Args:
        seed: of the scenes.
        what: "one object", "two objects", "three objects", "held-out pair" (one object) or "free" (one to four things
            put together freely).

    Raises:
        ValueError: `what` is not known.
    """
    sizes = {"one object": 1, "two objects": 2, "three objects": 3, "held-out pair": 1}
    if what == "free":
        for index in count():
            rng = np.random.default_rng((seed, index, 7))
            yield free_scene(rng, int(rng.integers(1, 5)))
    if what not in sizes:
        raise ValueError(f"{what!r} is not known; use one of {', '.join([*sizes, 'free'])}")
    split = "heldout" if what == "held-out pair" else "validation"
    for index in count():
        scene, _ = scene_at(seed, index, split)
        if len(scene.things) == sizes[what]:
            yield scene


def verifier_shares(
    verifier: SceneVerifier, what: str, number: int, seed: int, spoilers: Sequence[str] = tuple(SPOILERS)
) -> dict[str, Share]:
    """The share of fresh scenes that are read rightly, by what was done to the pictures.

    Right means: exactly the objects that are there, each with kind, colour and a box of IoU 0.7 or more, the place,
    every relation that holds, and the size of a single object.

    Args:
        verifier: is measured.
        what: as `fresh_scenes` takes it.
        number: scenes.
        seed: of the scenes.
        spoilers: names among `SPOILERS`.
    """
    scenes = list(islice(fresh_scenes(seed, what), number))
    facts = [truth(scene) for scene in scenes]
    shares = {}
    for name in spoilers:
        readings = verifier.read([SPOILERS[name](draw(scene)) for scene in scenes])
        right = sum(
            same_scene(reading, known, BOX_OVERLAP) and (what == "free" or judge(reading, as_asked(known)).right)
            for reading, known in zip(readings, facts, strict=True)
        )
        shares[name] = Share(right, number)
    return shares


def as_asked(known: Mapping[str, Any]) -> dict[str, Any]:
    """All that a truth holds, in the form of what a caption says."""
    groups = [{"count": 1, "kind": thing["kind"], "color": thing["color"]} for thing in known["objects"]]
    if len(groups) == 1:
        groups[0]["size"] = known["size_word"]
    return {"objects": groups, "relations": known["relations"], "place": known["place"]}


@dataclass(frozen=True)
class Drawn:
    """A picture that was drawn for a prompt, and what came of it."""

    prompt: Prompt
    image: Image.Image
    reading: Reading
    verdict: Verdict


def draw_and_judge(
    pipe: TextToImagePipeline, verifier: SceneVerifier, prompts: Sequence[Prompt], seed: int, batch_size: int = 32
) -> list[Drawn]:
    """Draw one picture for each prompt and judge it; picture i depends on its text, the seed and i alone."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in range(len(prompts))]
    images = pipe([prompt.text for prompt in prompts], generator=generators, batch_size=batch_size).images
    readings = verifier.read(images)
    return [
        Drawn(prompt, image, reading, judge(reading, prompt.asked or {}))
        for prompt, image, reading in zip(prompts, images, readings, strict=True)
    ]


def shares_of(drawn: Sequence[Drawn]) -> dict[str, Share]:
    """For each field of `Verdict` the share of the pictures, of which it was asked, where it holds."""
    shares = {}
    for name in ("right", "objects", "count", "relation", "place", "size"):
        found = [getattr(each.verdict, name) for each in drawn]
        asked = [value for value in found if value is not None]
        shares[name] = Share(sum(asked), len(asked))
    return shares
