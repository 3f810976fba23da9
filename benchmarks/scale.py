"""Measure what the plan for large datasets rests on: decoding, writing, the bookkeeping of parts, the Ray driver.

python benchmarks/scale.py
"""

import argparse
import io
import json
import os
import platform
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ar_t2i.data.card import write_card
from ar_t2i.data.images import DEFAULT_LIMITS, prepare_many
from ar_t2i.data.manifest import TokenizedFolder
from ar_t2i.data.parts import PartRecord, new_part
from ar_t2i.data.tar import TarShard

CAPTION = "a small red bird on a green tree by the sea, in the evening light"


def jpeg(width: int, height: int, seed: int = 0) -> bytes:
    """A picture as smooth and as noisy as a photograph: about two bits a pixel."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noisy = (smooth + random.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(noisy).save(file, "JPEG", quality=90)
        return file.getvalue()


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decoding() -> None:
    """Milliseconds of one core a picture."""
    print("| picture | KB | decode and crop, ms a core |\n|---|---|---|")
    for width, height in ((341, 256), (512, 384), (1024, 768), (2048, 1536)):
        files = [jpeg(width, height, seed) for seed in range(8)]
        prepare_many(files[:1], 256, "center", DEFAULT_LIMITS)
        took = min(seconds(lambda files=files: prepare_many(files, 256, "center", DEFAULT_LIMITS)) for _ in range(5))
        size = sum(map(len, files)) / len(files) / 1000
        print(f"| {width}x{height} | {size:,.0f} | {took / len(files) * 1000:.1f} |")


def writing(rows: int) -> None:
    """Rows a second of one writer, and bytes of a row."""
    codes = np.random.default_rng(0).integers(0, 4096, (rows, 32))
    random = np.random.default_rng(1)
    words = [
        "".join(chr(97 + letter) for letter in random.integers(0, 26, size)) for size in random.integers(2, 9, 3000)
    ]
    chosen = np.minimum(random.zipf(1.3, (rows, 12)) - 1, 2999)  # a few words are most of any text
    captions = [" ".join(words[word] for word in row) for row in chosen]
    ids = (4105 + chosen).tolist()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train-00000-of-00001.parquet")

        def write() -> None:
            with new_part(path, path.with_suffix(".json"), "a", None, lambda: None) as part:
                for start in range(0, rows, 64):
                    span = slice(start, min(start + 64, rows))
                    keys = [f"{number:09d}" for number in range(span.start, span.stop)]
                    part.add(keys, captions[span], codes[span], ids[span])

        took = min(seconds(write) for _ in range(3))
        print(f"\nwriting a part of {rows:,} rows: {rows / took:,.0f} rows/s, "
              f"{path.stat().st_size / rows:,.0f} bytes a row on the disk")  # fmt: skip


def bookkeeping(parts: int, processes: int) -> None:
    """Seconds that a process waits before it begins, and that the card takes, with so many parts finished."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        shards = [
            TarShard(name=f"in/{number:06d}.tar", url=f"in/{number:06d}.tar", fingerprint=f"1-{number}")
            for number in range(parts)
        ]
        facts = {
            "image_tokenizer": "0", "num_codes": 32, "codebook_size": 4096, "image_size": 256, "vocabulary": "0",
            "crop": "center", "max_pixels": 1, "min_edge": 1, "max_aspect": 20.0, "max_caption_chars": 1,
        }  # fmt: skip
        empty = TokenizedFolder(out, "train", shards, facts, {})
        with empty.claim(0, 1):
            for number, shard in enumerate(shards):
                record = PartRecord(
                    shard=shard.name, source=shard.fingerprint, checksum="0" * 64, sha256="0" * 64, bytes=0, kept=1000,
                    dropped={}, examples={}, arithmetic="cuda bfloat16",
                )  # fmt: skip
                empty.record_path(number).write_text(json.dumps(record.__dict__))
                empty.path(number).touch()

        def begin(rank: int, world: int) -> None:
            later = TokenizedFolder(out, "train", shards, facts, {})
            later._update_card = lambda: None  # measured below
            with later.claim(rank, world):
                pass

        def begin_anew() -> None:
            (out / "manifest" / ".train.layout").unlink()
            begin(0, 1)

        print(f"\nwith {parts:,} parts finished: one process of {processes} begins after "
              f"{seconds(lambda: begin(1, processes)):.2f} s, one alone after {seconds(lambda: begin(0, 1)):.2f} s, "
              f"with other sources than last time after {seconds(begin_anew):.2f} s; "
              f"the card takes {seconds(lambda: write_card(out)):.2f} s")  # fmt: skip


def encoding(name: str) -> None:
    """FLOPs of a TiTok's encoder for one picture, counted by torch on tensors without memory."""
    from torch.utils.flop_counter import FlopCounterMode

    from ar_t2i.titok import TiTok, published_config

    with torch.device("meta"):
        model = TiTok(published_config(name)).eval()
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model.encode_latents(torch.empty(1, 3, model.image_size, model.image_size))
    print(f"\nTiTok {name}: {counter.get_total_flops() / 1e9:,.1f} GFLOP to encode one picture")


class Reds(torch.nn.Module):
    """An image tokenizer that costs nothing."""

    num_codes, codebook_size, image_size, fingerprint = 32, 256, 16, "reds"

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """32 red values of each picture."""
        return (pixels[:, 0].flatten(1)[:, :32] * 255).round().long()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Grey."""
        return torch.full((len(codes), 3, 16, 16), 0.5)


def driver(shards: int, pictures: int) -> None:
    """Time of the Ray driver's process for a block, with pictures that cost nothing, in blocks of five chunks."""
    import ray.cloudpickle

    from ar_t2i.data import cluster
    from ar_t2i.data.preprocess import PreprocessConfig, tokenize_shards
    from ar_t2i.data.shards import expand_sources
    from ar_t2i.vocabulary import Vocabulary

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    cluster.BLOCK_BYTES = 5 * 64 * 16 * 16 * 3
    with io.BytesIO() as file:
        Image.new("RGB", (16, 16), "red").save(file, "PNG")
        picture = file.getvalue()
    with tempfile.TemporaryDirectory() as folder:
        for shard in range(shards):
            with tarfile.open(Path(folder, f"{shard:05d}.tar"), "w") as archive:
                for number in range(pictures):
                    for kind, data in (("png", picture), ("txt", CAPTION.encode())):
                        info = tarfile.TarInfo(f"{number:06d}.{kind}")
                        info.size = len(data)
                        archive.addfile(info, io.BytesIO(data))
        out = str(Path(folder, "out"))
        config = PreprocessConfig(
            sources=(folder,), out=out, image_tokenizer="", engine="ray", dtype="float32", encoders=1, min_edge=2
        )
        vocabulary = Vocabulary.train([CAPTION, "another caption"])
        ray.init(address="local", log_to_driver=False)
        before, began = time.process_time(), time.monotonic()
        tokenize_shards(expand_sources([folder]), Reds(), vocabulary, config)  # type: ignore[arg-type]
        took, lasted, blocks = time.process_time() - before, time.monotonic() - began, shards * pictures / 320
        ray.shutdown()
    print(f"\nRay driver: {took:.1f} s of its process for {blocks:.0f} blocks of {shards} shards, "
          f"{took / blocks * 1000:.1f} ms a block; the run took {lasted:.0f} s")  # fmt: skip


def main() -> None:
    """Print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--titok", default="l32", help="name of a published TiTok")
    parser.add_argument("--ray-shards", type=int, default=0, help="measure the Ray driver with so many")
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--rows", type=int, default=20_000)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores\n")
    decoding()
    writing(options.rows)
    bookkeeping(options.parts, options.processes)
    encoding(options.titok)
    if options.ray_shards:
        driver(options.ray_shards, 3200)


if __name__ == "__main__":
    main()
