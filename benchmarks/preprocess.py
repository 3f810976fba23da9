"""What turns pictures into codes: a core's decoding beside plain Pillow, and the whole verb beside encoding alone.

The pictures are made here; `AR_T2I_PHOTOS=/folder/of/tars` takes the codes' agreement on real ones.
"""

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from ar_t2i.data import decode
from ar_t2i.data.encode import Encoder
from ar_t2i.data.images import prepare
from ar_t2i.data.preprocess import PreprocessConfig, _shipped_vocabulary, tokenize_shards
from ar_t2i.data.shards import expand_sources, iterate_samples
from ar_t2i.image_tokenizer import ImageTokenizer, load_image_tokenizer
from ar_t2i.titok.config import published_config
from ar_t2i.titok.model import TiTok
from ar_t2i.vocabulary import Vocabulary
from benchmarks.machine import Options, Timing, compare
from benchmarks.scale import jpeg


def run(options: Options) -> None:
    """Print the tables."""
    shipped = load_image_tokenizer(_shipped_vocabulary() / "image_tokenizer")
    one_core(options, shipped)
    large = shipped if options.small else TiTok.from_scratch(published_config("b64"), torch.Generator())
    print("\n| tokenizer | encode alone, pictures/s | limit of the cores | verb | of limit |\n|---|---|---|---|---|")
    whole(options, "shipped", shipped, 256 if options.small else 768, 32)
    whole(options, "titok b64, random weights", large, 16, 2)


def one_core(options: Options, tokenizer: ImageTokenizer) -> None:
    """Milliseconds a picture of one core, beside plain Pillow, and what becomes of the codes."""
    threads = torch.get_num_threads()
    print("| JPEG | plain Pillow | exact | fast | plain at half the size | gain of fast | cores for 1,500/s "
          "| same codes: fast | half the size |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    ways: dict[str, Callable[[bytes], object]] = {
        "plain": plain, "exact": prepare, "fast": partial(prepare, pixels="fast"), "half": partial(plain, least=512),
    }  # fmt: skip
    for width, height in ((500, 375),) if options.small else ((500, 375), (1024, 768), (2048, 1536)):
        files = _files(width, height, 8 if options.small else 16)
        torch.set_num_threads(1)
        works = {name: partial(_each, way, files) for name, way in ways.items()}
        took = {name: Timing(found.median / len(files), found.spread / len(files))
                for name, found in compare(works, times=options.times).items()}  # fmt: skip
        torch.set_num_threads(threads)
        encode = Encoder(tokenizer, options.device, "float32")
        codes = {name: encode(_each(way, files)) for name, way in ways.items()}
        same = [f"{(codes[fast] == codes[slow]).mean():.1%}" for fast, slow in (("fast", "exact"), ("half", "plain"))]
        gain, cores = took["plain"].median / took["fast"].median, 1500 * took["fast"].median
        print(f"| {width}x{height} | {' | '.join(map(str, took.values()))} | {gain:.2f}x | {cores:.1f} | "
              f"{' | '.join(same)} |", flush=True)  # fmt: skip


def plain(data: bytes, size: int = 256, least: int = 10**6) -> np.ndarray:
    """What people write: nothing is checked, no picture is turned; `least` lets libjpeg shrink, to no less."""
    picture = Image.open(io.BytesIO(data))
    picture.draft("RGB", (least, least))
    picture = picture.convert("RGB")
    scale = size / min(picture.size)
    width, height = (max(int(edge * scale), size) for edge in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = ((edge - size) // 2 for edge in picture.size)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def _each(way: Callable[[bytes], Any], files: list[bytes]) -> list[Any]:
    return [way(data) for data in files]


def whole(options: Options, name: str, tokenizer: ImageTokenizer, count: int, batch_size: int) -> None:
    """The verb once it is under way, in turns with encoding alone."""
    decode.CHUNKS_AHEAD = 1  # else so short a run would have decoded everything before it is under way
    clock = _Clock(tokenizer)
    vocabulary = Vocabulary.from_pretrained(_shipped_vocabulary())
    files = _files(500, 375, 64)
    pictures = [picture for data in files[:batch_size] if isinstance(picture := prepare(data), np.ndarray)]
    rates: dict[str, list[float]] = {"alone": [], "limit": [], "verb": []}
    with tempfile.TemporaryDirectory() as folder:
        _write_tar(Path(folder, "pictures-0000.tar"), [files[i % len(files)] for i in range(count)])
        shards = expand_sources([folder])
        for turn in range(options.times):
            encode = Encoder(clock, options.device, "float32")  # pyright: ignore[reportArgumentType]
            for _ in range(count // batch_size):
                encode(pictures)
            alone = clock.rate()
            started = time.perf_counter()
            for data in files[:16]:
                prepare(data)
            decoding = (time.perf_counter() - started) / 16
            config = PreprocessConfig(
                sources=(folder,), out=f"{folder}/out-{turn}", image_tokenizer="", batch_size=batch_size,
                device=options.device, dtype="float32",
            )  # fmt: skip
            with redirect_stdout(io.StringIO()):
                tokenize_shards(shards, clock, vocabulary, config)  # pyright: ignore[reportArgumentType]
            verb = clock.rate()
            on_cpu = options.device == "cpu"  # encoding has the cores that decoding leaves
            cores = os.cpu_count() or 1
            limit = 1 / (1 / alone + decoding / cores) if on_cpu else min(alone, (cores - 1) / decoding)
            for key, rate in zip(rates, (alone, limit, verb), strict=True):
                rates[key].append(rate)
    share = median(verb / limit for verb, limit in zip(rates["verb"], rates["limit"], strict=True))
    cells = " | ".join(f"{median(found):.3g} ± {(max(found) - min(found)) / 2:.2g}" for found in rates.values())
    print(f"| {name} | {cells} | {share:.0%} |", flush=True)


class _Clock:
    """An image tokenizer that notes when it ends a batch."""

    def __init__(self, tokenizer: ImageTokenizer) -> None:
        self.tokenizer, self.ends = tokenizer, []

    def __getattr__(self, name: str):
        return getattr(self.tokenizer, name)

    def to(self, device: object) -> "_Clock":
        self.tokenizer = self.tokenizer.to(device)
        return self

    def eval(self) -> "_Clock":
        return self

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        codes = self.tokenizer.encode(pixels)
        if pixels.is_cuda:
            torch.cuda.synchronize()
        self.ends.append((time.perf_counter(), len(pixels)))
        return codes

    def rate(self) -> float:
        """Pictures a second without the first and the last of the batches, before and after which no file is read."""
        ends, self.ends = self.ends[:-1], []
        return sum(count for _, count in ends[1:]) / (ends[-1][0] - ends[0][0])


def _files(width: int, height: int, count: int) -> list[bytes]:
    """JPEGs: pieces of real photographs where there are any, made-up ones else."""
    if "AR_T2I_PHOTOS" not in os.environ:
        return [jpeg(width, height, seed) for seed in range(count)]
    shard = expand_sources([os.environ["AR_T2I_PHOTOS"]])[0]
    photos = [Image.open(io.BytesIO(sample.image)).convert("RGB") for sample in iterate_samples(shard) if sample.image]
    random, found = np.random.default_rng(0), []
    for _ in range(count):
        picture = Image.new("RGB", (width, height))
        for top in range(0, height, 256):
            for left in range(0, width, 256):
                picture.paste(photos[random.integers(len(photos))], (left, top))
        with io.BytesIO() as file:
            picture.save(file, "JPEG", quality=85)
            found.append(file.getvalue())
    return found


def _write_tar(path: Path, files: list[bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for number, data in enumerate(files):
            for suffix, content in (("jpg", data), ("txt", b"a small red bird on a green tree by the sea")):
                info = tarfile.TarInfo(f"{number:09d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
