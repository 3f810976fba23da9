"""Examples by number, batches for training, and webdataset shards on disk."""

import io
import json
import os
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ar_t2i.data.scenes.captions import Caption, caption
from ar_t2i.data.scenes.draw import draw, truth
from ar_t2i.data.scenes.sample import sample_scene
from ar_t2i.data.scenes.world import SPLITS, Scene

JPEG_QUALITY = 95


def scene_at(seed: int, index: int, split: str) -> tuple[Scene, Caption]:
    """Return scene and caption number `index`: they depend on seed, index and split alone; each split has its stream.

    Raises:
        ValueError: the split is not known, or seed or index is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not known; use one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0:
        raise ValueError(f"seed {seed} and index {index} must not be negative")
    rng = np.random.default_rng((SPLITS.index(split), seed, index))
    scene = sample_scene(rng, split)
    return scene, caption(scene, rng)


def example(seed: int, index: int, split: str = "train") -> tuple[Image.Image, str, dict[str, Any]]:
    """Return picture, caption and truth number `index` of a split.

    The truth has the keys of `truth` and also "caption", "said" (as in `Caption`), "seed", "index" and "split".

    Raises:
        ValueError: the split is not known, or seed or index is negative.
    """
    scene, words = scene_at(seed, index, split)
    facts = {"caption": words.text, "said": words.said, **truth(scene), "seed": seed, "index": index, "split": split}
    return draw(scene), words.text, facts


def batch(seed: int, start: int, count: int, split: str = "train") -> tuple[np.ndarray, list[str]]:
    """Return pictures `start` to `start + count - 1` as a uint8 array of (count, 256, 256, 3), and their captions."""
    pictures, captions = [], []
    for index in range(start, start + count):
        scene, words = scene_at(seed, index, split)
        pictures.append(np.asarray(draw(scene)))
        captions.append(words.text)
    return np.stack(pictures), captions


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """Options of `ar-t2i scenes`: draw captioned pictures into webdataset shards."""

    out: str
    """Folder to write the shards to; it is made where it is missing."""
    count: int = 10000
    """Number of pictures."""
    seed: int = 0
    """Same seed, same pictures."""
    split: str = "train"
    """train, validation, or heldout, whose pictures show pairs of colour and object that the others never show."""
    shard_size: int = 1000
    """Pictures in a shard."""
    image_format: str = "jpg"
    """jpg (quality 95) or png (without loss)."""
    workers: int = 1
    """Processes that draw; the shards do not depend on it."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("count", "shard_size", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if self.split not in SPLITS:
            raise ValueError(f"split {self.split!r} is not known; use one of {', '.join(SPLITS)}")
        if self.image_format not in ("jpg", "png"):
            raise ValueError(f"image_format {self.image_format!r} is not known; use jpg or png")


def _members(config: ScenesConfig, index: int) -> Iterator[tuple[str, bytes]]:
    """Yield the files of one picture: name and content."""
    picture, text, facts = example(config.seed, index, config.split)
    content = io.BytesIO()
    if config.image_format == "jpg":
        picture.save(content, "JPEG", quality=JPEG_QUALITY)
    else:
        picture.save(content, "PNG")
    yield f"{index:09d}.{config.image_format}", content.getvalue()
    yield f"{index:09d}.txt", text.encode()
    yield f"{index:09d}.json", json.dumps(facts, separators=(",", ":")).encode()


def _shard_path(config: ScenesConfig, number: int) -> Path:
    return Path(config.out) / f"scenes-{config.split}-{number:04d}.tar"


def _write_shard(config: ScenesConfig, number: int) -> Path:
    """Write one shard under a temporary name and rename it when it is whole."""
    path = _shard_path(config, number)
    partial = path.with_suffix(f".tar.{os.getpid()}.partial")
    first = number * config.shard_size
    try:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(first, min(first + config.shard_size, config.count)):
                for name, content in _members(config, index):
                    entry = tarfile.TarInfo(name)
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def write_shards(
    out: str,
    count: int,
    seed: int = 0,
    split: str = "train",
    shard_size: int = 1000,
    image_format: str = "jpg",
    workers: int = 1,
) -> list[Path]:
    """Write the pictures as webdataset shards and return their paths; the arguments are those of `ScenesConfig`.

    A shard `scenes-train-0000.tar` holds for each picture KEY.jpg (or KEY.png), KEY.txt (the caption) and KEY.json
    (the truth). It is written under a temporary name and renamed when whole; the same options give the same bytes.

    Raises:
        ValueError: an argument is out of range, the folder cannot be made or written to, or it holds shards of an
            earlier run that this one would leave there.
    """
    config = ScenesConfig(
        out=out,
        count=count,
        seed=seed,
        split=split,
        shard_size=shard_size,
        image_format=image_format,
        workers=workers,
    )
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {out}: {error.strerror}; choose another one") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to the folder {out}; choose another one or change its permissions")
    numbers = range(-(-count // shard_size))
    strangers = set(Path(out).glob(f"scenes-{split}-*.tar")) - {_shard_path(config, number) for number in numbers}
    if strangers:
        raise ValueError(f"{out} holds {min(strangers).name} of an earlier, larger run; choose an empty folder")
    if workers == 1 or len(numbers) == 1:
        return [_write_shard(config, number) for number in numbers]
    with ProcessPoolExecutor(min(workers, len(numbers)), mp_context=get_context("spawn")) as pool:
        return list(pool.map(_write_shard, [config] * len(numbers), numbers))


def write_scenes(config: ScenesConfig) -> list[Path]:
    """Write the shards as `write_shards` does, and print what was written and how fast."""
    start = time.perf_counter()
    paths = write_shards(**asdict(config))
    seconds = time.perf_counter() - start
    size = sum(path.stat().st_size for path in paths) / 2**20
    print(f"{config.count} pictures of the split {config.split} in {len(paths)} shard(s), {size:.1f} MiB")
    print(f"{seconds:.1f} s, {config.count / seconds:.0f} pictures/s")
    print(f"first: {paths[0]}")
    return paths
