"""Pictures of captions against the true pictures of the same captions, as whole sets.

Beside the model's figures stand two that they cannot be read without: what the image tokenizer's own reconstructions
of the true pictures get (the floor: no model that draws with it can be expected to do better), and what one half of
the true pictures gets against the other.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ar_t2i import __version__
from ar_t2i.data.captions import clean_caption
from ar_t2i.data.images import prepare
from ar_t2i.data.pictures import SCENES
from ar_t2i.data.sample import Reason
from ar_t2i.data.scenes import example
from ar_t2i.data.shards import expand_sources, iterate_samples
from ar_t2i.evaluation.alignment import ClipScorer
from ar_t2i.evaluation.distribution import FeatureSet, compare, real_against_real
from ar_t2i.evaluation.extractors import FeatureExtractor
from ar_t2i.evaluation.harness import PROMPTS, draw_all, opened, round_to, suite_folder, weights_fingerprint
from ar_t2i.evaluation.pictures import fingerprint, picture_name
from ar_t2i.evaluation.prompts import Prompt, write_prompts
from ar_t2i.evaluation.published import CC3M_ROWS, CC3M_SOURCE
from ar_t2i.evaluation.results import RESULTS, Result, figures_of, write_results
from ar_t2i.evaluation.sources import CROP, SIZE, Source, squared
from ar_t2i.image_tokenizer import ImageTokenizer
from ar_t2i.pipeline import to_uint8

DISTRIBUTION, CC3M = "distribution", "cc3m"
ABOUT = {
    DISTRIBUTION: "Pictures of captions against the true pictures of the same captions, as sets of features.",
    CC3M: "One picture a caption of CC3M's validation set: FID against its pictures, cosine of CLIP ViT-B/32.",
}
_SHOWN = 12
Pair = tuple[Prompt, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What sets of pictures are compared by."""

    extractor: FeatureExtractor
    clip: ClipScorer | None = None
    """Scores pictures by their captions, if given."""
    image_tokenizer: ImageTokenizer | None = None
    """Makes the floor, if given."""
    weights: str = ""
    """Tells the extractor's from others of its name."""


def reference_pairs(data: Sequence[str], count: int, seed: int, dropped: Counter[str]) -> Iterator[Pair]:
    """Captions and true pictures (`SIZE`, `SIZE`, 3) uint8, in order.

    Args:
        data: `SCENES` for unseen scenes, or sources with captions as `expand_sources` takes them.
        count: at most so many; 0 for all that files hold.
        seed: of the scenes.
        dropped: what cannot be read is counted here by reason.
    """
    if tuple(data) == SCENES:
        for index in range(count):
            picture, text, facts = example(seed, index, "validation")
            prompt = Prompt(id=f"scene-{index:06d}", text=text, category="scenes", asked=facts["said"])
            yield prompt, np.asarray(picture)
        return
    yield from islice(_good_pairs(data, dropped), count or None)


def _good_pairs(data: Sequence[str], dropped: Counter[str]) -> Iterator[Pair]:
    number = 0
    for shard in expand_sources(data):
        for sample in iterate_samples(shard):
            if sample.image is None or sample.caption is None:
                dropped[str(sample.reason)] += 1
                continue
            text, picture = clean_caption(sample.caption), prepare(sample.image, SIZE)
            bad = next((each for each in (text, picture) if isinstance(each, Reason)), None)
            if bad is not None:
                dropped[str(bad)] += 1
                continue
            assert isinstance(picture, np.ndarray)
            yield Prompt(id=f"pair-{number:07d}", text=str(text), category="all"), picture
            number += 1


def run_reference(
    name: str,
    data: Sequence[str],
    source: Source,
    measures: Measures,
    out: Path,
    *,
    count: int,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Draw a picture for each caption of the reference and compare the sets.

    Args:
        name: `DISTRIBUTION` or `CC3M`.
        data: as `reference_pairs` takes it.
        source: draws.
        measures: networks.
        out: folder of the run.
        count: captions at most; 0 for all that files hold.
        seed: of the scenes, of subsets and of the bootstrap.
        batch_size: pictures at a time.

    Returns:
        The suite's part of a report; "rows" has a comparison for the model, the floor, and real against real.

    Raises:
        ValueError: fewer than two pairs in the reference, or captions that cannot be drawn.
    """
    started = time.perf_counter()
    dropped: Counter[str] = Counter()
    reference, rebuilt = FeatureSet(), FeatureSet()
    prompts: list[Prompt] = []
    true_clip: list[float] = []
    for batch in _batched(reference_pairs(data, count, seed, dropped), batch_size, f"{name}: read", count):
        texts, keys = [prompt.text for prompt, _ in batch], [prompt.id for prompt, _ in batch]
        prompts += [prompt for prompt, _ in batch]
        pictures_B3SS = _stacked([picture for _, picture in batch])
        reference.add(measures.extractor.features(pictures_B3SS), keys)
        if measures.clip is not None:
            true_clip += measures.clip.score(pictures_B3SS, texts)
        if measures.image_tokenizer is not None:
            rebuilt.add(measures.extractor.features(_rebuilt(measures.image_tokenizer, pictures_B3SS)), keys)
    if len(prompts) < 2:
        raise ValueError(
            f"{len(prompts)} pictures with captions in {' '.join(data)}, dropped: {dict(dropped) or 'none'}; expected "
            "at least 2"
        )
    folder = out / suite_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder / PROMPTS, prompts)
    drawn = draw_all(name, source, prompts, 1, folder)
    generated, results = FeatureSet(), []
    measured_by = {
        "features": measures.extractor.name,
        "weights": measures.weights,
        "clip": weights_fingerprint(measures.clip.name) if measures.clip else None,
    }
    for batch in _batched(iter(prompts), batch_size, f"{name}: measure", len(prompts)):
        images = [opened(folder / picture_name(prompt, 0)) for prompt in batch]
        keys = [prompt.id for prompt in batch]
        generated.add(measures.extractor.features(_stacked([np.asarray(image) for image in images])), keys)
        cosines = (
            measures.clip.score(images, [prompt.text for prompt in batch]) if measures.clip else [None] * len(batch)
        )
        results += [
            _result(prompt, folder, seed, measured_by, cosine) for prompt, cosine in zip(batch, cosines, strict=True)
        ]
    write_results(folder / RESULTS, results)
    rows = [{"name": source.name, "what": "generated", **compare(reference, generated, measures.extractor, seed)}]
    if measures.image_tokenizer is not None:
        floor = compare(reference, rebuilt, measures.extractor, seed)
        rows.append({"name": "image tokenizer's reconstruction (floor)", "what": "floor", **floor})
    if min(half.count for half in reference.halves()) > 1:
        real = real_against_real(reference, measures.extractor, seed)
        rows.append({"name": "real against real (two halves)", "what": "real", **real})
        if true_clip:
            rows[-1]["clip"] = float(np.mean(true_clip))
    figures = figures_of(results, seed)
    if "clip" in figures:
        rows[0]["clip"] = figures["clip"]["value"]
    return {
        "suite": name,
        "kind": "distribution",
        "folder": suite_folder(name),
        "about": ABOUT[name],
        "domain": "reference",
        "headline": measures.extractor.metric,
        "protocol": {
            "suite": name,
            "prompts": fingerprint([asdict(prompt) for prompt in prompts]),
            "rounds": 1,
            "scored_by": measured_by,
            "reference": [Path(each).name for each in data],
            "crop": CROP,
        },
        "prompts": len(prompts),
        "pictures": len(prompts),
        "dropped": dict(dropped.most_common()),
        "rows": rows,
        "figures": figures,
        "categories": {},
        "examples": {"right": [], "wrong": [], "some": [asdict(result) for result in results[:_SHOWN]]},
        "published": {"source": CC3M_SOURCE, "rows": [asdict(row) for row in CC3M_ROWS]} if name == CC3M else None,
        "drawn_now": drawn,
        "seconds": round_to(time.perf_counter() - started),
    }


def _result(prompt: Prompt, folder: Path, seed: int, measured_by: dict[str, Any], cosine: float | None) -> Result:
    picture = picture_name(prompt, 0)
    return Result(
        id=prompt.id,
        round=0,
        seed=seed,
        category=prompt.category,
        text=prompt.text,
        picture=picture,
        sha256=hashlib.sha256((folder / picture).read_bytes()).hexdigest(),
        scorer=fingerprint([measured_by, __version__]),
        scores={"clip": cosine} if cosine is not None else {},
    )


def _batched(items: Iterator[Any], size: int, told: str, total: int) -> Iterator[list[Any]]:
    with tqdm(total=total or None, desc=told, unit="picture", disable=None) as bar:
        while batch := list(islice(items, size)):
            yield batch
            bar.update(len(batch))


def _stacked(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """(B, 3, S, S) uint8."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


@torch.inference_mode()
def _rebuilt(image_tokenizer: ImageTokenizer, pictures_B3SS: torch.Tensor) -> torch.Tensor:
    """What the image tokenizer makes of pictures, in their size, uint8."""
    size, device = image_tokenizer.image_size, image_tokenizer.code_vectors.device
    arrays = list(pictures_B3SS.permute(0, 2, 3, 1).numpy())
    if size != SIZE:
        arrays = [_resized(array, size) for array in arrays]
    pixels = (_stacked(arrays).float() / 255).to(device)
    again = to_uint8(image_tokenizer.decode(image_tokenizer.encode(pixels)).float())
    return _stacked([np.asarray(squared(Image.fromarray(array))) for array in again])


def _resized(array: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(array).resize((size, size), Image.Resampling.BICUBIC))
