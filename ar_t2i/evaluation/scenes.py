"""The scene verifier: reads what a picture of a scene shows, and judges whether that is what was asked for.

>>> verifier = SceneVerifier.from_pretrained()
>>> reading = verifier.read([picture])[0]
>>> judge(reading, said).right

Shape suffixes as in `ar_t2i.evaluation.reader`.
"""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from ar_t2i.bundles import VERIFIER, shipped_bundle
from ar_t2i.config import build
from ar_t2i.data.scenes import example
from ar_t2i.evaluation.judge import Reading, Seen, Verdict, box_overlap, judge, same_scene
from ar_t2i.evaluation.reader import CELL, ReaderConfig, ReaderOutput, SceneReader
from ar_t2i.image_tokenizer import ImageTokenizer
from ar_t2i.likeness import psnr
from ar_t2i.untrusted import outlined, read_json, read_tensors

__all__ = [
    "Reading",
    "ReconstructionScores",
    "SceneVerifier",
    "Seen",
    "Verdict",
    "judge",
    "same_scene",
    "score_reconstruction",
]

MODEL_TYPE = "scene_verifier"
MOST_OVERLAP = 0.6
"""Two objects whose boxes overlap by a larger IoU are taken for one."""


class SceneVerifier:
    """Reads pictures of scenes with a trained `SceneReader`."""

    def __init__(self, reader: SceneReader) -> None:
        self.reader = reader

    @property
    def config(self) -> ReaderConfig:
        """The reader's sizes, names and threshold."""
        return self.reader.config

    def with_threshold(self, threshold: float) -> Self:
        """A verifier with the same weights and another threshold (ValueError outside 0..1)."""
        reader = copy.copy(self.reader)
        reader.config = replace(self.config, threshold=threshold)
        return type(self)(reader)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self.reader.to(device)
        return self

    def read(self, images: Sequence[Image.Image] | Tensor, batch_size: int = 32) -> list[Reading]:
        """Say what each picture shows; arguments and errors as those of `look`."""
        return self.look(images, batch_size)[0]

    @torch.inference_mode()
    def look(self, images: Sequence[Image.Image] | Tensor, batch_size: int = 32) -> tuple[list[Reading], Tensor]:
        """Say what each picture shows, whatever else is in the batch; and the features it is told from.

        Args:
            images: pictures of 256 x 256 pixels, or a tensor (B, 3, 256, 256), float in [0, 1].
            batch_size: pictures read at a time.

        Raises:
            ValueError: pictures of another size, type or range, or a batch size below 1.

        Returns:
            The readings, and `ReaderOutput.features_BF` of all pictures, float32, on the CPU.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        pixels_B3HW = self.pixels(images)
        device = next(self.reader.parameters()).device
        training = self.reader.training
        self.reader.eval()
        readings: list[Reading] = []
        features = [torch.zeros(0, 2 * self.config.wide_width)]
        for start in range(0, len(pixels_B3HW), batch_size):
            part_B3HW = pixels_B3HW[start : start + batch_size]
            said = self.reader(part_B3HW.to(device).float())
            readings += self._readings(said)
            features.append(said.features_BF.cpu())
        self.reader.train(training)
        return readings, torch.cat(features)

    def pixels(self, images: Sequence[Image.Image] | Tensor) -> Tensor:
        """Pictures as a tensor (B, 3, 256, 256), float in [0, 1]; arguments and errors as those of `read`."""
        side = self.config.image_size
        if isinstance(images, Tensor):
            if images.ndim != 4 or images.shape[1:] != (3, side, side):
                raise ValueError(f"pictures of shape {tuple(images.shape)}: expected (B, 3, {side}, {side})")
            if not images.is_floating_point():
                raise ValueError(f"pictures of type {images.dtype}: expected float in [0, 1]; divide uint8 by 255")
            if images.numel() and not (images.min() >= 0 and images.max() <= 1):
                raise ValueError(f"pictures from {images.min():g} to {images.max():g}: expected values in [0, 1]")
            return images
        for image in images:
            if not isinstance(image, Image.Image) or image.size != (side, side):
                shape = image.size if isinstance(image, Image.Image) else type(image).__name__
                raise ValueError(f"a picture of {shape}: expected Pillow pictures of {side} x {side} pixels")
        arrays = [np.asarray(image.convert("RGB")) for image in images]
        stacked = np.stack(arrays) if arrays else np.zeros((0, side, side, 3), np.uint8)
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255

    def _readings(self, said: ReaderOutput) -> list[Reading]:
        """Keep the cells that are surer than all eight around them, and the surest of objects that overlap."""
        heat_BKGG = said.heat_BKGG.sigmoid()
        score_BGG, kind_BGG = heat_BKGG.max(1)
        peak_BGG = (score_BGG == F.max_pool2d(score_BGG, 3, 1, 1)) & (score_BGG > self.config.threshold)
        color_BGG = said.color_BLGG.argmax(1)
        place_BP = said.place_BP.softmax(1)
        readings = []
        for row in range(len(score_BGG)):
            cells = peak_BGG[row].nonzero().tolist()
            cells.sort(key=lambda cell: -float(score_BGG[row, cell[0], cell[1]]))
            kept: list[Seen] = []
            for down, across in cells:
                color = int(color_BGG[row, down, across])
                left, top, right, bottom = said.sides_B4GG[row, :, down, across].tolist()
                x, y = across * CELL + CELL / 2, down * CELL + CELL / 2
                seen = Seen(
                    kind=self.config.kinds[int(kind_BGG[row, down, across])],
                    color=self.config.colors[color] if color < len(self.config.colors) else None,
                    box=(x - left, y - top, x + right, y + bottom),
                    score=float(score_BGG[row, down, across]),
                )
                if all(box_overlap(seen.box, other.box) < MOST_OVERLAP for other in kept):
                    kept.append(seen)
            chance, place = place_BP[row].max(0)
            readings.append(Reading(self.config.places[int(place)] if chance > 0.5 else None, tuple(kept)))
        return readings

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors, the weights as float16."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        facts = {"model_type": MODEL_TYPE, **asdict(self.config)}
        (directory / "config.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        stored = {
            name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
            for name, tensor in self.reader.state_dict().items()
        }
        (directory / "model.safetensors").write_bytes(save(stored, metadata={"format": "pt"}))

    @classmethod
    def from_pretrained(cls, directory: str | Path | None = None) -> Self:
        """Load what `save_pretrained` wrote, as float32; None loads the verifier that comes with the package.

        Raises:
            ValueError: a file that is missing or unreadable, or tensors that do not fit the config.
        """
        directory = shipped_bundle() / VERIFIER if directory is None else Path(directory)
        try:
            values, state = read_json(directory / "config.json"), read_tensors(directory / "model.safetensors")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"no scene verifier at {str(directory)!r}: {error}; expected config.json and model.safetensors"
            ) from error
        if values.pop("model_type", None) != MODEL_TYPE:
            raise ValueError(f'{directory / "config.json"} does not say "model_type": "{MODEL_TYPE}"')
        config = build(ReaderConfig, values)
        with outlined(str(directory / "config.json")):
            reader = SceneReader(config)
        try:
            copies = {
                name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
                for name, tensor in state.items()
            }
            reader.load_state_dict(copies, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"the weights in {directory} do not fit its config: {' '.join(str(error).split())}"
            ) from error
        return cls(reader.eval())


@dataclass(frozen=True)
class ReconstructionScores:
    """How well scenes come back from an image tokenizer, as the verifier sees it."""

    same: dict[int, tuple[int, int]]
    """By number of objects: pictures read as the original, and pictures."""
    psnr: float
    """Mean over the pictures, dB."""
    distinct_codes: int
    """Codes that came up at least once."""
    wrong: list[tuple[dict[str, Any], Reading]]
    """Truth and reading of those that were not read as the original."""


@torch.inference_mode()
def score_reconstruction(
    image_tokenizer: ImageTokenizer,
    verifier: SceneVerifier,
    count: int = 500,
    seed: int = 0,
    split: str = "validation",
    batch_size: int = 32,
) -> ReconstructionScores:
    """Encode and decode scenes and read them.

    Args:
        image_tokenizer: of 256 x 256 pixels.
        verifier: reads the pictures that come back.
        count: scenes, number 0 to count - 1 of the split.
        seed: of the scenes.
        split: of the scenes.
        batch_size: scenes at a time.

    Raises:
        ValueError: a split that is not known, no scenes, or a tokenizer of another size.
    """
    if count < 1 or batch_size < 1:
        raise ValueError(f"count={count}, batch_size={batch_size}: expected at least 1")
    if image_tokenizer.image_size != verifier.config.image_size:
        raise ValueError(
            f"the image tokenizer makes pictures of {image_tokenizer.image_size} pixels, "
            f"the verifier reads {verifier.config.image_size}"
        )
    right, total, wrong = Counter[int](), Counter[int](), []
    decibels: list[Tensor] = []
    codes: list[Tensor] = []
    for start in range(0, count, batch_size):
        examples = [example(seed, index, split) for index in range(start, min(start + batch_size, count))]
        pixels_B3HW = verifier.pixels([picture for picture, _, _ in examples])
        codes_BT = image_tokenizer.encode(pixels_B3HW.to(image_tokenizer.code_vectors.device))
        again_B3HW = image_tokenizer.decode(codes_BT).float().cpu()
        decibels.append(psnr(again_B3HW, pixels_B3HW))
        codes.append(codes_BT.unique())
        for (_, _, facts), reading in zip(examples, verifier.read(again_B3HW), strict=True):
            number = len(facts["objects"])
            total[number] += 1
            if same_scene(reading, facts):
                right[number] += 1
            else:
                wrong.append((facts, reading))
    return ReconstructionScores(
        same={number: (right[number], total[number]) for number in sorted(total)},
        psnr=float(torch.cat(decibels).mean()),
        distinct_codes=len(torch.cat(codes).unique()),
        wrong=wrong,
    )
