"""Measure preprocessing: decoding alone, encoding alone, and the whole beside the limit that these two set.

python benchmarks/preprocess.py 'photos-train-{0000..0007}.tar' --image-tokenizer PATH --vocabulary PATH
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ar_t2i.data.decode import Decoder
from ar_t2i.data.shards import expand_sources, iterate_samples

if TYPE_CHECKING:
    from ar_t2i.data.encode import Encoder


def read(shards: list) -> int:
    """Read everything and throw it away; returns the number of samples."""
    return sum(1 for shard in shards for _ in iterate_samples(shard))


def decode(shards: list, workers: int, size: int) -> int:
    """Read and decode everything; returns the number of samples."""
    with Decoder(workers, size) as decoder:
        return sum(1 for _, samples in decoder(enumerate(map(iterate_samples, shards))) for _ in samples)


def encode(encoder: "Encoder", pictures: list[np.ndarray], batch_size: int, count: int) -> int:
    """Encode `count` pictures, those given again and again; returns their number."""
    done = 0
    while done < count:
        batch = [pictures[i % len(pictures)] for i in range(done, done + batch_size)]
        encoder(batch)
        done += batch_size
    return done


def whole(options: argparse.Namespace, workers: int) -> float:
    """The verb itself, into a folder that is thrown away; returns pictures a second once everything is loaded."""
    from ar_t2i.data.preprocess import PreprocessConfig, preprocess

    with tempfile.TemporaryDirectory() as out, open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        config = PreprocessConfig(
            sources=tuple(options.sources), out=out, image_tokenizer=options.image_tokenizer,
            vocabulary=options.vocabulary, batch_size=options.batch_size, workers=workers, device=options.device,
            dtype=options.dtype,
        )  # fmt: skip
        return preprocess(config).pictures_per_second


def rate(work: Callable[[], int]) -> float:
    """Pictures a second."""
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    import torch  # here, for each worker process imports this file

    from ar_t2i.data.encode import Encoder
    from ar_t2i.device import keep_freed_memory
    from ar_t2i.image_tokenizer import load_image_tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--image-tokenizer", required=True)
    parser.add_argument("--vocabulary", required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[max((os.cpu_count() or 2) - 1, 1)])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    keep_freed_memory()
    shards = expand_sources(options.sources)
    tokenizer = load_image_tokenizer(options.image_tokenizer)
    encoder = Encoder(tokenizer, options.device, options.dtype)
    with Decoder(0, tokenizer.image_size) as decoder:
        _, samples = next(decoder([(0, iterate_samples(shards[0]))]))
        decoded = islice(samples, options.batch_size)
        pictures = [item.picture for item in decoded if item.picture is not None]
    encode(encoder, pictures, options.batch_size, 1)
    count = read(shards)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
          f"{encoder.arithmetic}; {count} pictures, batches of {options.batch_size}; pictures/s\n")  # fmt: skip
    print("| workers | read | decode | encode | limit | whole |\n|---|---|---|---|---|---|")
    for workers in options.workers:
        reading = rate(lambda: read(shards))
        decoding = rate(lambda workers=workers: decode(shards, workers, tokenizer.image_size))
        encoding = rate(lambda: encode(encoder, pictures, options.batch_size, min(count, 512)))
        everything = whole(options, workers)
        side_by_side, in_turn = min(decoding, encoding), 1 / (1 / decoding + 1 / encoding)
        limit = side_by_side if workers else in_turn
        print(f"| {workers} | {reading:,.0f} | {decoding:,.1f} | {encoding:,.1f} | {limit:,.1f} | {everything:,.1f} |")


if __name__ == "__main__":
    main()
