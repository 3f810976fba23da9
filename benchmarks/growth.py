"""Time a unit of work against the amount of work: it should stay, or fall.

Pictures of a batch, prompts of a call, rows of a dataset, workers that decode; curves in docs/images/growth.png.
"""

import io
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ar_t2i.bundles import shipped_bundle
from ar_t2i.data.batching import BatchStream
from ar_t2i.data.dataset import TokenizedDataset, load_rows
from ar_t2i.data.decode import Decoder
from ar_t2i.data.shards import expand_sources, iterate_samples
from ar_t2i.pipeline import TextToImagePipeline
from ar_t2i.vocabulary import Vocabulary
from benchmarks.machine import Options, Timing, seconds
from benchmarks.memory import make_rows

PLOT = Path(__file__).parent.parent / "docs" / "images" / "growth.png"
Point = tuple[int, Timing]


def run(options: Options) -> None:
    """Print the table and draw the plot."""
    small = options.small
    pipeline = TextToImagePipeline.from_pretrained(shipped_bundle()).to(options.device)
    curves = {
        "pictures of a batch: time a picture": list(batches(pipeline, 4 if small else 256, options)),
        "prompts of a call: time a prompt": list(prompts(pipeline, 10 if small else 10_000, options)),
        "rows of a dataset: time a row read to train on": list(rows(10_000 if small else 10_000_000)),
        "workers: time a picture decoded": list(workers(1 if small else 16, 100 if small else 2000)),
    }
    print("| what grows | amount | time a unit | of the first |\n|---|---|---|---|")
    for name, points in curves.items():
        for amount, timing in points:
            print(f"| {name} | {amount:,} | {timing} | {timing.median / points[0][1].median:.2f} |")
    if not small:
        draw(curves)


def batches(pipeline: TextToImagePipeline, most: int, options: Options) -> Iterable[Point]:
    """Of so many pictures drawn at once, from prompt to pixels."""
    for count in _powers(most, 4):
        generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
        work = partial(pipeline, ["a red bird on a tree"] * count, generator=generators, batch_size=count)
        times = options.times if count <= 16 else 3
        yield count, _a_unit(seconds(work, options.device, times), count)


def prompts(pipeline: TextToImagePipeline, most: int, options: Options) -> Iterable[Point]:
    """Of so many prompts in one call, without the drawing: ids, random numbers, checks."""
    for count in _powers(most, 10):
        texts = [f"a red bird on tree {number}" for number in range(count)]
        yield count, _a_unit(seconds(partial(pipeline.encode_prompts, texts), times=options.times), count)


def rows(most: int) -> Iterable[Point]:
    """Of batches of 64 from a dataset of so many rows, in shuffled order."""
    vocabulary = Vocabulary.from_pretrained(shipped_bundle())
    for count in _powers(most, 10, 10_000):
        with tempfile.TemporaryDirectory() as folder:
            datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
            make_rows(Path(folder) / "data", count)
            dataset = TokenizedDataset(load_rows(folder, "train"), vocabulary, num_codes=32, max_caption_length=64)
            stream = BatchStream(dataset, 64, 1, 0, 1, seed=0)
            start = iter(range(0, 10**9, 100))

            def read(stream: BatchStream = stream, start: Iterable[int] = start) -> None:
                at = next(start)
                for _ in stream.read(at, at + 100):
                    pass

            yield count, _a_unit(seconds(read), 6400)


def workers(most: int, pictures: int) -> Iterable[Point]:
    """Of pictures that so many processes decode."""
    with tempfile.TemporaryDirectory() as folder:
        shards = _shards(Path(folder), pictures)
        for count in _powers(most, 2):
            with Decoder(count, 256) as decoder:

                def decode(decoder: Decoder = decoder) -> int:
                    return sum(1 for _, items in decoder(enumerate(map(iterate_samples, shards))) for _ in items)

                yield count, _a_unit(seconds(decode, times=3), pictures)


def draw(curves: dict[str, list[Point]]) -> None:
    """One small plot a curve, time a unit beside that of the first amount."""
    figure = Figure(figsize=(12, 3), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, points) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        first = points[0][1].median
        amounts, times = [amount for amount, _ in points], [timing.median / first for _, timing in points]
        axes.errorbar(amounts, times, [timing.spread / first / 2 for _, timing in points], marker="o")
        axes.set(
            xscale="log", ylim=(0, max(1.5, 1.1 * max(times))), xlabel=name.split(":")[0], title=name.split(": ")[1]
        )
        axes.title.set_size(9)
        axes.grid(alpha=0.3)
    figure.savefig(PLOT, dpi=110)
    print(f"\n{PLOT}")


def _a_unit(timing: Timing, units: int) -> Timing:
    return Timing(timing.median / units, timing.spread / units)


def _powers(most: int, base: int, first: int = 1) -> Iterator[int]:
    while first <= most:
        yield first
        first *= base


def _shards(folder: Path, pictures: int) -> list:
    """A tar of JPEGs of 500 x 375 pixels: ten pictures, again and again."""
    rng, files = np.random.default_rng(0), []
    for _ in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        with io.BytesIO() as buffer:
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
            files.append(buffer.getvalue())
    with tarfile.open(folder / "a.tar", "w") as archive:
        for number in range(pictures):
            for kind, data in (("jpg", files[number % 10]), ("txt", b"a picture")):
                info = tarfile.TarInfo(f"{number:08d}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return expand_sources([str(folder / "a.tar")])
