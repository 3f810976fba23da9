"""Compositional suites: prompts from a seed, and what a picture's reading says about each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from ar_t2i.evaluation.judge import Reading
from ar_t2i.evaluation.prompts import Prompt

Scores = Mapping[str, float | None]
"""Of one picture, by metric, 0 to 1 (a cosine: -1 to 1); None for what was not asked. Keys are the suite's own and
the same for all its prompts."""


FAULTS = ("leakage", "missing")
"""Metrics of which less is better."""


class Detector(Protocol):
    """Says what pictures show: `ar_t2i.evaluation.scenes.SceneVerifier`, or an open-vocabulary detector."""

    def read(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[Reading]:
        """A reading for each picture."""
        ...


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A kind of test: what is asked, and how an answer is scored."""

    name: str
    """For example "geneval"."""
    about: str
    """A line for reports: what it measures, and the paper."""
    domain: Literal["scenes", "photos"]
    """What its prompts are about: drawn scenes, read by the scene verifier; or anything, read by a detector."""
    scored_by: Literal["detector", "clip"]
    """What scores a picture: a `Detector` and `score`, or the similarity of picture and text."""
    headline: str
    """The metric that the suite is known by."""
    prompts: Callable[[int, int], list[Prompt]]
    """(number in each category, seed) -> prompts, of every category; those of a smaller number come first."""
    score: Callable[[Prompt, Reading], Scores] | None = None
    """Scores of one picture; None for `clip`."""
