"""Pictures that are drawn and judged at each validation, shared out over the processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ar_t2i.bundles import Bundle
from ar_t2i.evaluation.frechet import FeatureMoments
from ar_t2i.evaluation.probe import Marks, SceneJudge, measure, random_numbers, real_features, scene_prompts
from ar_t2i.image_tokenizer import ImageTokenizer
from ar_t2i.pipeline import TextToImagePipeline
from ar_t2i.sampling.logits import SamplingConfig
from ar_t2i.vocabulary import Vocabulary

SEED = 0
"""Of prompts, random numbers and real pictures: the same in all runs, so that their figures can be compared."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Pictures that are drawn at each validation, for a model of scenes."""

    prompts: int = 0
    """Captions of unseen scenes that a picture each is drawn and judged for at each validation, with the options of
    `samples`: validation_scene_score is the share that is right, validation_frechet_scenes the Frechet distance of
    the scene verifier's features to those of real scenes (compare only runs with as many prompts). 0 draws none."""
    real_pictures: int = 500
    """Scenes that the drawn ones are compared with; they are drawn and read once a run."""
    verifier: str = ""
    """Folder of the scene verifier; empty takes the one that comes with the package."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.prompts < 0 or self.prompts == 1:
            raise ValueError(f"validation.prompts={self.prompts}: expected at least 2, or 0 for none")
        if self.real_pictures < 2:
            raise ValueError(f"validation.real_pictures={self.real_pictures}: expected at least 2")


class DrawnValidation:
    """Draws and judges; it reads no random numbers but its own, so that training goes on as without it."""

    def __init__(
        self,
        config: ValidationConfig,
        vocabulary: Vocabulary,
        image_tokenizer: ImageTokenizer,
        sampling: SamplingConfig,
    ) -> None:
        """Load the verifier.

        Raises:
            ValueError: it is not there, or reads pictures of another size than the image tokenizer makes.
        """
        self.vocabulary, self.image_tokenizer, self.sampling = vocabulary, image_tokenizer, sampling
        self.judge = SceneJudge.from_pretrained(config.verifier or None)
        wanted = self.judge.verifier.config.image_size
        if image_tokenizer.image_size != wanted:
            raise ValueError(
                f"validation.prompts={config.prompts}: the image tokenizer makes pictures of "
                f"{image_tokenizer.image_size} pixels, the scene verifier reads {wanted}; set it to 0"
            )
        self.prompts = scene_prompts(config.prompts, SEED)
        self.captions = vocabulary.encode_captions([prompt.text for prompt in self.prompts])
        self.real_pictures = config.real_pictures
        self.reference: FeatureMoments | None = None

    def measure(self, trained: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """The figures of `trained`, the same in all processes and whatever their number."""
        self.judge.verifier.to(accelerator.device)
        self.image_tokenizer.to(accelerator.device)
        if self.reference is None:
            self.reference = FeatureMoments()
            self.reference.add(
                gathered(self.real_pictures, lambda mine: real_features(self.judge, mine, SEED), accelerator)
            )
        model: Any = trained
        was_training = model.training
        bundle = Bundle(model.eval(), self.vocabulary, self.image_tokenizer, self.sampling)
        pipe = TextToImagePipeline(bundle)
        uniform_NT = random_numbers(len(self.prompts), self.image_tokenizer.num_codes, SEED)

        def rows(mine: Sequence[int]) -> Tensor:
            chosen = [self.prompts[number] for number in mine], [self.captions[number] for number in mine]
            marks = measure(pipe, self.judge, *chosen, self.sampling, uniform_NT[list(mine)])
            return torch.cat([marks.scores_N[:, None], marks.features_ND], 1)

        drawn = gathered(len(self.prompts), rows, accelerator)
        model.train(was_training)
        marks = Marks(drawn[:, 0], drawn[:, 1:])
        return {
            "validation_scene_score": marks.alignment,
            f"validation_frechet_{self.judge.name}": marks.distance(self.reference),
        }


def gathered(number: int, rows: Callable[[Sequence[int]], Tensor], accelerator: Accelerator) -> Tensor:
    """Rows 0 .. number - 1, (number, D) float64, of which each process computes some: `rows` says those of numbers.

    Every row comes from one process and the others add zeros, so nothing is rounded.
    """
    if accelerator.num_processes == 1:
        return rows(range(number))
    mine = range(accelerator.process_index, number, accelerator.num_processes)
    own_MD = rows(mine or range(1))  # without a row of its own a process would not know how wide they are
    whole_ND = own_MD.new_zeros(number, own_MD.shape[1])
    whole_ND[list(mine)] = own_MD[: len(mine)]
    summed = accelerator.reduce(whole_ND.to(accelerator.device), "sum")
    assert isinstance(summed, Tensor)
    return summed.cpu()
