"""How well an image tokenizer keeps pictures: originals and reconstructions compared, on scenes or on any shards.

Shape suffixes: B batch, S picture edge, T codes of a picture.
"""

import json
import platform
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import ar_t2i
from ar_t2i.bundles import shipped_bundle
from ar_t2i.data import scenes
from ar_t2i.data.pictures import SCENES, check_scenes_size, decoded, shrunk
from ar_t2i.data.shards import expand_sources
from ar_t2i.device import keep_freed_memory, pick_device
from ar_t2i.evaluation.extractors import FeatureExtractor
from ar_t2i.evaluation.frechet import FeatureMoments, frechet_distance
from ar_t2i.evaluation.inception import HOW_TO, load_inception
from ar_t2i.hub.names import resolve
from ar_t2i.image_tokenizer import ImageTokenizer, load_image_tokenizer
from ar_t2i.likeness import MOST_PSNR, Spread, psnr, ssim
from ar_t2i.perceptual import Perceptual, load_perceptual
from ar_t2i.pipeline import make_grid, to_uint8
from ar_t2i.slots.codebook import CodeUsage

LPIPS = "lpips-alex"
"""The kind of LPIPS that papers report."""
SHOWN, COLUMNS = 12, 3
"""Pairs of pictures in reconstructions.png, the first that come, and pairs in a row."""


@dataclass(frozen=True, kw_only=True)
class TokenizerEvaluationConfig:
    """Compare pictures with what an image tokenizer makes of them."""

    data: tuple[str, ...] = SCENES
    """scenes, or tars, folders and tables as preprocess takes them, without captions; all pictures count."""
    tokenizer: str = ""
    """Image tokenizer, a folder or Hub id (default: the shipped bundle's)."""
    out: str
    """Folder for report.json and reconstructions.png."""
    count: int = 1000
    """Pictures at most; 0 takes all that the files hold."""
    split: str = "validation"
    """Split of the scenes: train, validation, or heldout, whose pairs of colour and object the others never show."""
    seed: int = 0
    """Seed of the scenes."""
    batch_size: int = 32
    """Pictures that are encoded together."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto takes the best there is."""
    perceptual: str = ""
    """Perceptual distance: lpips-alex, lpips-vgg, pyramid, convnext (default: lpips-alex if it can be had)."""
    inception_weights: str = ""
    """File of the Inception network's weights, for rFID; wants torch-fidelity installed."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.data:
            raise ValueError("data is empty: expected scenes, or tars, folders or tables")
        if self.count < 0 or self.batch_size < 1:
            raise ValueError(f"count={self.count}, batch_size={self.batch_size}: expected at least 0 and 1")
        if self.data == SCENES and not self.count:
            raise ValueError("count=0 with data=scenes: they have no end, so expected a number")
        if self.seed < 0 or self.split not in scenes.SPLITS:
            raise ValueError(
                f"seed={self.seed}, split={self.split!r}: expected 0 or more, and one of {', '.join(scenes.SPLITS)}"
            )


class Comparison:
    """All figures of originals and reconstructions, batch by batch, in memory that does not grow."""

    def __init__(self, codebook_size: int, perceptual: Perceptual | None, extractor: FeatureExtractor | None):
        """Start with nothing.

        Args:
            codebook_size: codes run from 0 to codebook_size - 1.
            perceptual: a distance whose mean is taken.
            extractor: network for the Frechet distance.
        """
        self.psnr, self.ssim, self.distance = Spread(0, MOST_PSNR), Spread(-1, 1), 0.0
        self.codebook_size, self.usage, self.codes = codebook_size, CodeUsage(codebook_size), 0
        self.perceptual, self.extractor = perceptual, extractor
        self.before, self.after = FeatureMoments(), FeatureMoments()

    def add(self, pixels_B3SS: Tensor, rebuilt_B3SS: Tensor, codes_BT: Tensor) -> None:
        """Take in pictures in [0, 1], their reconstructions, and the codes between."""
        self.psnr.add(psnr(pixels_B3SS, rebuilt_B3SS))
        self.ssim.add(ssim(pixels_B3SS, rebuilt_B3SS))
        self.usage.add(codes_BT)
        self.codes += codes_BT.numel()
        if self.perceptual is not None:
            self.distance += self.perceptual(pixels_B3SS, rebuilt_B3SS).double().sum().item()
        if self.extractor is not None:
            for moments, pictures in ((self.before, pixels_B3SS), (self.after, rebuilt_B3SS)):
                moments.add(self.extractor.features((pictures * 255).round().byte()))

    def read(self) -> dict[str, Any]:
        """The figures by name; once only."""
        usage = self.usage.read()
        found: dict[str, Any] = {"psnr": self.psnr.read(), "ssim": self.ssim.read()}
        if self.perceptual is not None:
            found[self.perceptual.name] = self.distance / self.psnr.count
        if self.extractor is not None:
            found[self.extractor.reconstruction_metric] = frechet_distance(self.before, self.after)
        used = {"codes_used": usage["codes_used"], "codes_used_share": usage["codes_used"] / self.codebook_size}
        return {**found, **used, "perplexity": usage["perplexity"], "codes": self.codes}


def evaluate_tokenizer(
    config: TokenizerEvaluationConfig, *, extractor: FeatureExtractor | None = None
) -> dict[str, Any]:
    """Measure an image tokenizer, write report.json and reconstructions.png to `config.out`, and print a table.

    Args:
        config: what to measure on what.
        extractor: in place of Inception; the distance then has its name and is not called FID.

    Returns:
        What report.json holds.

    Raises:
        ValueError: no image tokenizer there, no picture, weights or libraries that were asked for and are not there.
    """
    keep_freed_memory()
    device = pick_device(config.device)
    folder = resolve(config.tokenizer) if config.tokenizer else shipped_bundle() / "image_tokenizer"
    image_tokenizer = load_image_tokenizer(folder).to(device)
    perceptual, extractor, missing = _networks(config, extractor, device)
    out = _make_folder(config.out)
    comparison = Comparison(image_tokenizer.codebook_size, perceptual, extractor)
    dropped: Counter[str] = Counter()
    pairs: list[Image.Image] = []
    started = time.perf_counter()
    with torch.inference_mode(), tqdm(total=config.count or None, unit="picture", disable=None) as bar:
        for pictures_BSS3 in _batches(config, image_tokenizer.image_size, dropped):
            pixels_B3SS = torch.from_numpy(pictures_BSS3).to(device).permute(0, 3, 1, 2).float() / 255
            codes_BT = image_tokenizer.encode(pixels_B3SS)
            rebuilt_B3SS = image_tokenizer.decode(codes_BT)
            comparison.add(pixels_B3SS, rebuilt_B3SS, codes_BT)
            pairs += _side_by_side(pictures_BSS3, rebuilt_B3SS[: SHOWN - len(pairs)])
            bar.update(len(pictures_BSS3))
    measured = comparison.psnr.count
    if not measured:
        raise ValueError(f"no picture in {' '.join(config.data)}; dropped: {dict(dropped) or 'none'}")
    report = {
        **_facts(config, image_tokenizer, device),
        "pictures": {"measured": measured, "dropped": dict(dropped.most_common())},
        "metrics": comparison.read(),
        "not_computed": missing,
        "seconds": round(time.perf_counter() - started, 2),
    }
    make_grid(pairs, COLUMNS, gap=12).save(out / "reconstructions.png")
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join([*_table(report), f"{out / 'report.json'}   {out / 'reconstructions.png'}"]))
    return report


def _networks(
    config: TokenizerEvaluationConfig, extractor: FeatureExtractor | None, device: torch.device
) -> tuple[Perceptual | None, FeatureExtractor | None, dict[str, str]]:
    """The networks that are at hand, and which figures are not computed and why."""
    missing, perceptual = {}, None
    try:
        perceptual = load_perceptual(config.perceptual or LPIPS).to(device)
    except ValueError as error:
        if config.perceptual:
            raise
        missing["lpips"] = str(error)
    if perceptual is not None and not perceptual.name.startswith("lpips"):
        missing["lpips"] = f"give --perceptual {LPIPS}"
    if extractor is None and config.inception_weights:
        extractor = load_inception(config.inception_weights, device)
    if extractor is None or extractor.reconstruction_metric != "rfid":
        missing["rfid"] = HOW_TO
    return perceptual, extractor, missing


def _batches(config: TokenizerEvaluationConfig, size: int, dropped: Counter[str]) -> Iterator[np.ndarray]:
    """Pictures (B, S, S, 3) uint8; what cannot be read is counted by reason in `dropped`."""
    if config.data == SCENES:
        check_scenes_size(size)
        for start in range(0, config.count, config.batch_size):
            pictures_BSS3, _ = scenes.batch(
                config.seed, start, min(config.batch_size, config.count - start), config.split
            )
            yield shrunk(pictures_BSS3, size)
        return
    batch: list[np.ndarray] = []
    taken = 0
    for picture in decoded(expand_sources(config.data), size, dropped):
        batch.append(picture)
        taken += 1
        if len(batch) == config.batch_size or taken == config.count:
            yield np.stack(batch)
            batch = []
        if taken == config.count:
            return
    if batch:
        yield np.stack(batch)


def _side_by_side(pictures_BSS3: np.ndarray, rebuilt_B3SS: Tensor) -> list[Image.Image]:
    """Original left, reconstruction right, for as many as there are reconstructions."""
    pairs = zip(pictures_BSS3, to_uint8(rebuilt_B3SS), strict=False)
    return [make_grid([Image.fromarray(picture) for picture in pair], columns=2, gap=2) for pair in pairs]


def _make_folder(name: str) -> Path:
    out = Path(name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write out={name!r}: {error.strerror}; give another folder") from error
    return out


def _facts(config: TokenizerEvaluationConfig, image_tokenizer: ImageTokenizer, device: torch.device) -> dict[str, Any]:
    drawn = {"split": config.split, "seed": config.seed} if config.data == SCENES else {}
    versions = {name: metadata.version(name) for name in ("torch", "numpy", "pillow")}
    return {
        "image_tokenizer": {
            "name": config.tokenizer or "shipped",
            "fingerprint": image_tokenizer.fingerprint,
            "num_codes": image_tokenizer.num_codes,
            "codebook_size": image_tokenizer.codebook_size,
            "image_size": image_tokenizer.image_size,
        },
        "data": {"sources": list(config.data), **drawn},
        "device": str(device),
        "versions": {"ar_t2i": ar_t2i.__version__, "python": platform.python_version(), **versions},
    }


_LABELS = {"psnr": "PSNR, dB", "ssim": "SSIM (Gaussian 11x11, RGB mean)", "lpips": "LPIPS", "rfid": "rFID"}


def _table(report: dict[str, Any]) -> list[str]:
    about, data, metrics = report["image_tokenizer"], report["data"], report["metrics"]
    drawn = f", {data['split']}, seed {data['seed']}" if "split" in data else ""
    lost = "".join(f", {count:,} {reason}" for reason, count in report["pictures"]["dropped"].items())
    lines = [
        f"image tokenizer {about['name']} ({about['fingerprint'][:12]}): {about['num_codes']} codes "
        f"of {about['codebook_size']:,}, {about['image_size']} pixels",
        f"{report['pictures']['measured']:,} pictures of {' '.join(data['sources'])}{drawn}; "
        f"dropped: {lost[2:] or 'none'}",
        f"{'':34}{'mean':>9}{'5 %':>9}{'50 %':>9}{'95 %':>9}",
    ]
    for name, value in metrics.items():
        if isinstance(value, dict):
            digits = 2 if name == "psnr" else 4
            lines.append(f"{_LABELS[name]:34}" + "".join(f"{figure:9.{digits}f}" for figure in value.values()))
        elif name not in ("codes_used", "codes_used_share", "perplexity", "codes"):
            lines.append(f"{_LABELS.get(name, name):34}{value:9.4f}")
    lines += [f"{_LABELS[name]:34}not computed: {how}" for name, how in report["not_computed"].items()]
    used = f"{metrics['codes_used']:,} of {about['codebook_size']:,} ({metrics['codes_used_share']:.1%})"
    lines.append(f"{'codes used, perplexity':34}{used}, {metrics['perplexity']:,.1f} in {metrics['codes']:,} codes")
    return lines
