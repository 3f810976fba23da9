"""Pictures that are drawn and judged at each validation, shared out over the processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ar_t2i.bundles import Bundle
from ar_t2i.data.dataset import TEXT, TokenizedDataset
from ar_t2i.evaluation.alignment import CLIP_FILES, ClipScorer
from ar_t2i.evaluation.frechet import FeatureMoments
from ar_t2i.evaluation.probe import (
    ClipJudge,
    Judge,
    Marks,
    SceneJudge,
    measure,
    random_numbers,
    real_features,
    scene_prompts,
)
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.hub.names import resolve
from ar_t2i.image_tokenizer import ImageTokenizer
from ar_t2i.pipeline import TextToImagePipeline, to_uint8
from ar_t2i.sampling.logits import SamplingConfig
from ar_t2i.vocabulary import Vocabulary

BATCH = 32
SEED = 0
"""Of prompts, random numbers and real pictures: the same in all runs, so that their figures can be compared."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Pictures that are drawn at each validation, of scenes or, with `clip`, of anything."""

    prompts: int = 0
    """Captions of unseen scenes that a picture each is drawn and judged for at each validation, with the options of
    `samples`: validation_scene_score is the share that is right, validation_frechet_scenes the Frechet distance of
    the scene verifier's features to those of real scenes (compare only runs with as many prompts). 0 draws none."""
    real_pictures: int = 500
    """Pictures that the drawn ones are compared with; they are made and read once a run."""
    verifier: str = ""
    """Folder of the scene verifier; empty takes the one that comes with the package."""
    clip: str = ""
    """CLIP, a folder or Hub id, in place of the verifier, for a model of anything: captions are the first of the
    validation split, real pictures what the image tokenizer makes of its codes. validation_clip_score is the mean
    cosine, validation_frechet_clip the Frechet distance of CLIP's features."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.prompts < 0 or self.prompts == 1:
            raise ValueError(f"validation.prompts={self.prompts}: expected at least 2, or 0 for none")
        if self.real_pictures < 2:
            raise ValueError(f"validation.real_pictures={self.real_pictures}: expected at least 2")
        if self.verifier and self.clip:
            raise ValueError("validation.verifier and validation.clip are given: expected one of them")


class DrawnValidation:
    """Draws and judges; it reads no random numbers but its own, so that training goes on as without it."""

    def __init__(
        self,
        config: ValidationConfig,
        vocabulary: Vocabulary,
        image_tokenizer: ImageTokenizer,
        sampling: SamplingConfig,
        rows: TokenizedDataset | None = None,
    ) -> None:
        """Load the judge.

        Args:
            config: what to draw.
            vocabulary: of the captions.
            image_tokenizer: paints.
            sampling: how codes are drawn.
            rows: the validation split, for `config.clip`.

        Raises:
            ValueError: the judge is not there, or has no captions; or the verifier reads pictures of another size
                than the image tokenizer makes.
        """
        self.vocabulary, self.image_tokenizer, self.sampling = vocabulary, image_tokenizer, sampling
        self.real_pictures = config.real_pictures
        self.reference: FeatureMoments | None = None
        if config.clip:
            self._judge_by_clip(config, rows)
        else:
            self._judge_scenes(config)

    def _judge_scenes(self, config: ValidationConfig) -> None:
        judge = SceneJudge.from_pretrained(config.verifier or None)
        size, wanted = self.image_tokenizer.image_size, judge.verifier.config.image_size
        if size != wanted:
            raise ValueError(
                f"validation.prompts={config.prompts}: the image tokenizer makes pictures of {size} pixels, the scene "
                f"verifier reads {wanted}; set it to 0"
            )
        self.judge: Judge = judge
        self.prompts = scene_prompts(config.prompts, SEED)
        self.captions = self.vocabulary.encode_captions([prompt.text for prompt in self.prompts])
        self.real: Callable[[Sequence[int]], Tensor] = lambda mine: real_features(judge, mine, SEED)

    def _judge_by_clip(self, config: ValidationConfig, rows: TokenizedDataset | None) -> None:
        said = [text for text in rows.texts[TEXT] if text and text.strip()][: config.prompts] if rows else []
        if rows is None or len(said) < 2:
            raise ValueError(
                f"validation.clip={config.clip!r}: the validation split has {len(said)} captions to draw; expected "
                "data.validation_split with at least 2"
            )
        judge = self.judge = ClipJudge(ClipScorer.from_pretrained(resolve(config.clip, CLIP_FILES)))
        self.prompts = [Prompt(id=f"row-{number:05d}", text=text, category="all") for number, text in enumerate(said)]
        self.captions = [ids[: rows.max_caption_length] for ids in self.vocabulary.encode_captions(said)]
        self.real_pictures = min(config.real_pictures, len(rows))

        @torch.no_grad()
        def real(mine: Sequence[int]) -> Tensor:
            parts = []
            for start in range(0, len(mine), BATCH):
                codes_BT = torch.tensor(rows.rows[list(mine[start : start + BATCH])]["codes"], dtype=torch.int64)
                pixels_B3SS = self.image_tokenizer.decode(codes_BT.to(self.image_tokenizer.code_vectors.device))
                parts.append(judge.features([Image.fromarray(each) for each in to_uint8(pixels_B3SS.float())]))
            return torch.cat(parts)

        self.real = real

    def measure(self, trained: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """The figures of `trained`, the same in all processes and whatever their number."""
        self.judge.to(accelerator.device)
        self.image_tokenizer.to(accelerator.device)
        if self.reference is None:
            self.reference = FeatureMoments()
            self.reference.add(gathered(self.real_pictures, self.real, accelerator))
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
            f"validation_{self.judge.metric}": marks.alignment,
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
