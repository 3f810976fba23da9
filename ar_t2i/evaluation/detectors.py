"""A detector for photos: OWLv2 (arXiv 2306.09683) looks for any kinds that are named, CLIP says their colours.

Shape suffixes: B pictures, P boxes of a picture, K kinds, L colours, N crops, S pixels along a side, D width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ar_t2i.data.scenes import COLORS
from ar_t2i.evaluation.judge import Reading, SameBox, Seen, box_overlap
from ar_t2i.hub.names import resolve
from ar_t2i.model.build import check_plain
from ar_t2i.untrusted import printable, read_json
from ar_t2i.vocabulary import load_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPModel, Owlv2ForObjectDetection, PreTrainedTokenizerBase

OWLV2 = "google/owlv2-base-patch16-ensemble"
THRESHOLD = 0.1
"""Score above which TokenCompose (arXiv 2312.03626) takes an object of OWLv2 as seen."""
MOST_OVERLAP = 0.5
"""Two boxes of one kind that overlap by a larger IoU are taken for one object."""
COLOR_PHRASES = ("a photo of a {color} {kind}", "a photo of a {color}-colored {kind}", "a photo of a {color} object")
"""How GenEval (arXiv 2310.11513) asks CLIP for a colour; the three embeddings are averaged."""
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pictures that CLIP was trained on; OWLv2 has them from it."""


class OpenVocabularyDetector:
    """Reads pictures of any size for the kinds that it is told to look for; it knows no places."""

    def __init__(
        self,
        model: "Owlv2ForObjectDetection",
        tokenizer: "PreTrainedTokenizerBase",
        categories: Sequence[str],
        clip: "CLIPModel | None" = None,
        clip_tokenizer: "PreTrainedTokenizerBase | None" = None,
        threshold: float = THRESHOLD,
    ) -> None:
        """Put a detector together; `from_pretrained` loads one.

        Raises:
            ValueError: no categories or one that comes twice, or a threshold outside 0..1.
        """
        if not categories or len(set(categories)) != len(categories):
            raise ValueError(f"categories={list(categories)}: expected at least one to look for, each once")
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold}: expected at least 0 and less than 1")
        self.model, self.tokenizer, self.categories = model.eval(), tokenizer, tuple(categories)
        self.clip, self.clip_tokenizer, self.threshold = clip and clip.eval(), clip_tokenizer, threshold
        self._colors_of: dict[str, Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        categories: Sequence[str],
        source: str | Path = OWLV2,
        clip: str | Path | None = None,
        threshold: float = THRESHOLD,
    ) -> Self:
        """Load a detector.

        Args:
            categories: nouns to look for, for example the keys of `ar_t2i.evaluation.suites.coco.COCO_CATEGORIES`.
            source: folder or Hub id of an OWLv2.
            clip: folder or Hub id of a CLIP that says the colours, for example openai/clip-vit-large-patch14 as in
                GenEval; without one the color of all objects is None, and no suite that asks for colours can be right.
            threshold: score, 0 to 1, above which an object counts as seen.

        Raises:
            ValueError: a model that cannot be loaded, or as when one is put together.
        """
        from transformers import CLIPModel, Owlv2ForObjectDetection

        model, tokenizer = _load(Owlv2ForObjectDetection, source)
        clip_model, clip_tokenizer = _load(CLIPModel, clip) if clip is not None else (None, None)
        return cls(model, tokenizer, categories, clip_model, clip_tokenizer, threshold)

    def to(self, device: torch.device | str) -> Self:
        """Move the weights."""
        self.model.to(device)  # type: ignore[arg-type]
        if self.clip is not None:
            self.clip.to(device)  # type: ignore[arg-type]
        self._colors_of.clear()
        return self

    @torch.inference_mode()
    def read(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[Reading]:
        """Say what each picture shows.

        Args:
            images: pictures of any sizes.
            batch_size: pictures read at a time.

        Raises:
            ValueError: a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        device = next(self.model.parameters()).device
        texts = [f"a photo of a {name}" for name in self.categories]
        query = self.tokenizer(texts, padding="max_length", truncation=True,
                               max_length=self.model.config.text_config.max_position_embeddings,
                               return_tensors="pt").to(device)  # fmt: skip
        readings = []
        for start in range(0, len(images), batch_size):
            part = [image.convert("RGB") for image in images[start : start + batch_size]]
            side = self.model.config.vision_config.image_size
            said = self.model(
                input_ids=query["input_ids"].repeat(len(part), 1),
                attention_mask=query["attention_mask"].repeat(len(part), 1),
                pixel_values=torch.stack([padded_pixels(image, side) for image in part]).to(device),
            )
            score_BPK = said.logits[..., : len(texts)].sigmoid().float().cpu()
            boxes_BP4 = said.pred_boxes.float().cpu()
            for image, score_PK, box_P4 in zip(part, score_BPK, boxes_BP4, strict=True):
                readings.append(Reading(None, self._colored(image, self._seen(image, score_PK, box_P4))))
        return readings

    def _seen(self, image: Image.Image, score_PK: Tensor, box_P4: Tensor) -> list[Seen]:
        """The objects of a picture, the surest first; each box is of its likeliest kind."""
        score_P, kind_P = score_PK.max(1)
        kept: list[Seen] = []
        for place in score_P.argsort(descending=True, stable=True).tolist():
            score, kind = float(score_P[place]), self.categories[int(kind_P[place])]
            if score <= self.threshold:
                break
            box = box_in_pixels(box_P4[place].tolist(), image.size)
            if all(other.kind != kind or box_overlap(box, other.box) <= MOST_OVERLAP for other in kept):
                kept.append(Seen(kind, None, box, score))
        return kept

    def _colored(self, image: Image.Image, objects: Sequence[Seen]) -> tuple[Seen, ...]:
        """The objects with the colour that CLIP finds likeliest for what their boxes hold."""
        if self.clip is None or not objects:
            return tuple(objects)
        device, names = next(self.clip.parameters()).device, list(COLORS)
        side = self.clip.config.vision_config.image_size
        pixels_N3SS = torch.stack([cropped_pixels(image, seen.box, side) for seen in objects]).to(device)
        crops_ND = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels_N3SS).pooler_output)
        return tuple(
            Seen(seen.kind, names[int((self._colors(seen.kind) @ crop_D).argmax())], seen.box, seen.score)
            for seen, crop_D in zip(objects, crops_ND, strict=True)
        )

    def _colors(self, kind: str) -> Tensor:
        """What CLIP knows of a kind in each of the colours, (L, D), each of length 1."""
        if kind not in self._colors_of:
            assert self.clip is not None and self.clip_tokenizer is not None
            texts = [form.format(color=color, kind=kind) for color in COLORS for form in COLOR_PHRASES]
            query = self.clip_tokenizer(texts, padding=True, truncation=True, return_tensors="pt",
                                        max_length=self.clip.config.text_config.max_position_embeddings)  # fmt: skip
            query = query.to(next(self.clip.parameters()).device)
            pooled = self.clip.text_model(
                input_ids=query["input_ids"], attention_mask=query["attention_mask"]
            ).pooler_output
            each = F.normalize(self.clip.text_projection(pooled), dim=-1)
            self._colors_of[kind] = F.normalize(each.unflatten(0, (len(COLORS), -1)).mean(1), dim=-1)
        return self._colors_of[kind]


def padded_pixels(image: Image.Image, side: int) -> Tensor:
    """An RGB picture as OWLv2 takes it, (3, side, side): made square with black at the right and the bottom."""
    square = Image.new("RGB", (max(image.size), max(image.size)))
    square.paste(image, (0, 0))
    pixels_1HW3 = torch.from_numpy(np.array(square))[None].float() / 255
    scaled = F.interpolate(pixels_1HW3.permute(0, 3, 1, 2), (side, side), mode="bilinear", antialias=True)
    return _normal(scaled[0])


def cropped_pixels(image: Image.Image, box: SameBox, side: int) -> Tensor:
    """What a box holds as CLIP takes it, (3, side, side): the shorter edge scaled to `side`, cut to its middle."""
    left, top = min(int(box[0]), image.width - 1), min(int(box[1]), image.height - 1)
    area = (left, top, max(round(box[2]), left + 1), max(round(box[3]), top + 1))
    crop = image.crop(area)
    scale = side / min(crop.size)
    wide, high = (max(side, round(edge * scale)) for edge in crop.size)
    crop = crop.resize((wide, high), Image.Resampling.BICUBIC)
    x, y = (wide - side) // 2, (high - side) // 2
    return _normal(torch.from_numpy(np.array(crop.crop((x, y, x + side, y + side)))).permute(2, 0, 1).float() / 255)


def _normal(pixels_3SS: Tensor) -> Tensor:
    return (pixels_3SS - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]


def box_in_pixels(box: Sequence[float], size: tuple[int, int]) -> SameBox:
    """A box of OWLv2, centre and extent as shares of the padded square, as x0, y0, x1, y1 within the picture."""
    x, y, width, height = (edge * max(size) for edge in box)
    edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    x0, y0, x1, y1 = (min(max(edge, 0.0), float(size[axis % 2])) for axis, edge in enumerate(edges))
    return x0, y0, x1, y1


def _load(kind: Any, source: str | Path) -> tuple[Any, "PreTrainedTokenizerBase"]:
    """A model of transformers in float32 and its tokenizer; code of theirs is never run."""
    folder = resolve(source)
    try:
        check_plain(read_json(folder / "config.json"))
        model = kind.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything on a config that is not as it expects
        reason = printable(str(error))[:200] or type(error).__name__
        raise ValueError(
            f"no {kind.__name__} with safetensors weights could be loaded from {str(source)!r}: {reason}"
        ) from error
    return model, load_tokenizer(folder)
