"""A small measurement of a model: fixed prompts and random numbers, each picture judged, all compared with real ones.

It tells how well pictures fit their prompts and how far they are from real pictures, over a few hundred prompts or
fewer, so that settings or steps of training can be compared. A Frechet distance grows as pictures get fewer: compare
those of equally many, and no number of another project.

Shape suffixes: N pictures, B batch, S pixels, T codes, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ar_t2i.data.scenes import draw, scene_at
from ar_t2i.evaluation.alignment import ClipScorer
from ar_t2i.evaluation.frechet import FeatureMoments, frechet_distance
from ar_t2i.evaluation.judge import judge
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.scenes import SceneVerifier
from ar_t2i.evaluation.sources import squared
from ar_t2i.pipeline import TextToImagePipeline, to_uint8
from ar_t2i.sampling.logits import SamplingConfig


@dataclass(frozen=True)
class Marks:
    """What came of pictures, in the order of their prompts."""

    scores_N: Tensor
    """How well each fits its prompt, float64."""
    features_ND: Tensor
    """What the judge's network sees in each, float64."""

    @property
    def alignment(self) -> float:
        """Mean score."""
        return float(self.scores_N.mean())

    def distance(self, reference: FeatureMoments) -> float:
        """Frechet distance to real pictures' features.

        Raises:
            ValueError: fewer than two pictures.
        """
        moments = FeatureMoments()
        moments.add(self.features_ND)
        return frechet_distance(moments, reference)

    def resampled(self, rows: np.ndarray) -> "Marks":
        """The marks of the pictures of these numbers, which may come more than once."""
        chosen = torch.from_numpy(rows)
        return Marks(self.scores_N[chosen], self.features_ND[chosen])


class Judge(Protocol):
    """Looks at pictures."""

    name: str
    """Of its features, for the names of figures."""
    metric: str
    """Name of a mean score among figures."""
    scores: str
    """What a mean score is, for tables."""
    shares: bool
    """Whether a score is 0 or 1, so that a mean of them is a share; else it is a cosine."""

    def to(self, device: torch.device | str) -> object:
        """Move the weights."""
        ...

    def mark(self, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> Marks:
        """Score each picture against its prompt, and take its features."""
        ...

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """Features (N, D), float64, on the CPU."""
        ...


class SceneJudge:
    """The scene verifier: 1 for a picture that shows all that was asked for, 0 for another.

    Features are those of `ar_t2i.evaluation.extractors.load_extractor` under the same name.
    """

    name, metric, scores, shares = "scenes", "scene_score", "right pictures", True

    def __init__(self, verifier: SceneVerifier) -> None:
        self.verifier = verifier

    def to(self, device: torch.device | str) -> object:
        """See `Judge`."""
        return self.verifier.to(device)

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> "SceneJudge":
        """Load a verifier; None takes the one that comes with the package (ValueError where there is none)."""
        return cls(SceneVerifier.from_pretrained(folder))

    def mark(self, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> Marks:
        """See `Judge`.

        Raises:
            ValueError: a prompt that does not say what must be seen, or a picture of another size than the verifier's.
        """
        for prompt in prompts:
            if prompt.asked is None:
                raise ValueError(f"the prompt {prompt.text!r} does not say what must be seen: expected `asked`")
        readings, features_ND = self.verifier.look(images)
        right = [judge(reading, prompt.asked or {}).right for reading, prompt in zip(readings, prompts, strict=True)]
        return Marks(torch.tensor(right, dtype=torch.float64), features_ND.double())

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Judge`."""
        return self.verifier.look(images)[1].double()


class ClipJudge:
    """CLIP: the cosine of picture and prompt, and the embeddings of pictures, of whatever they are.

    Pictures are brought to the size and crop of all evaluations first.
    """

    name, metric, scores, shares = "clip", "clip_score", "CLIP cosine", False

    def __init__(self, clip: ClipScorer) -> None:
        self.clip = clip

    def to(self, device: torch.device | str) -> object:
        """See `Judge`."""
        return self.clip.to(device)

    def mark(self, prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> Marks:
        """See `Judge`."""
        cosines, features_ND = self.clip.look(list(map(squared, images)), [prompt.text for prompt in prompts])
        return Marks(torch.tensor(cosines, dtype=torch.float64), features_ND)

    def features(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Judge`."""
        return self.clip.look(list(map(squared, images)))[1]


def scene_prompts(number: int, seed: int) -> list[Prompt]:
    """Captions of unseen scenes, with what a picture must show; those of a smaller number come first."""
    captions = [scene_at(seed, index, "validation")[1] for index in range(number)]
    return [
        Prompt(id=f"scene-{index:05d}", text=words.text, category="scenes", asked=words.said)
        for index, words in enumerate(captions)
    ]


def real_features(judge: Judge, indices: Sequence[int], seed: int, batch_size: int = 32) -> Tensor:
    """Features (N, D) of scenes as they are drawn, by their numbers; none that `scene_prompts` speak of."""
    parts = []
    for start in range(0, len(indices), batch_size):
        scenes = [scene_at(seed + 1, index, "validation")[0] for index in indices[start : start + batch_size]]
        parts.append(judge.features([draw(scene) for scene in scenes]))
    return torch.cat(parts)


def real_scenes(judge: Judge, number: int, seed: int, batch_size: int = 32) -> FeatureMoments:
    """Mean and covariance of the first `real_features`."""
    moments = FeatureMoments()
    moments.add(real_features(judge, range(number), seed, batch_size))
    return moments


def random_numbers(number: int, num_codes: int, seed: int) -> Tensor:
    """Uniform numbers in [0, 1), (N, T), for the codes of pictures; row n depends on the seed and n alone."""
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + index) for index in range(number)]
    return torch.stack([torch.rand(num_codes, generator=generator) for generator in generators])


def measure(
    pipe: TextToImagePipeline,
    judge: Judge,
    prompts: Sequence[Prompt],
    captions: Sequence[Sequence[int]],
    sampling: SamplingConfig,
    uniform_NT: Tensor,
    batch_size: int = 32,
) -> Marks:
    """Draw a picture for each prompt and let it be judged, as a file would hold it, in 8 bits.

    Args:
        pipe: draws.
        judge: looks at the pictures.
        prompts: N of them.
        captions: their ids, as `pipe.encode_prompts` gives them.
        sampling: how codes are drawn.
        uniform_NT: as `random_numbers` gives them; a picture depends on its own row and caption alone.
        batch_size: pictures drawn at a time.
    """
    parts = []
    for start in range(0, len(prompts), batch_size):
        part = slice(start, start + batch_size)
        codes_BT = pipe.draw_codes(captions[part], sampling, uniform_NT[part])
        images = [Image.fromarray(pixels) for pixels in to_uint8(pipe.decode(codes_BT, batch_size))]
        parts.append(judge.mark(prompts[part], images))
    return Marks(
        torch.cat([part.scores_N for part in parts]),
        torch.cat([part.features_ND for part in parts]),
    )
