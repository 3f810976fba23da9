"""Memory and speed of training and preprocessing against the number of rows: both should stay where they are.

    python benchmarks/memory.py --rows 10000 3000000
    python benchmarks/memory.py --rows 10000 300000 --what preprocess

Rows are made up: random codes, captions of the shipped words. Memory is what the processes have for themselves
(RssAnon, sampled), start-up included: pages of memory-mapped files belong to the system, which takes them back.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

_TRAIN = """
import sys, json
from ar_t2i.config import build
from ar_t2i.training.decoder import TrainConfig, train_decoder
train_decoder(build(TrainConfig, json.loads(sys.argv[1])))
"""
_PREPROCESS = """
import sys
import torch
from ar_t2i.data.preprocess import PreprocessConfig, tokenize_shards, _shipped_vocabulary
from ar_t2i.data.shards import expand_sources
from ar_t2i.vocabulary import Vocabulary
class Means:
    num_codes, codebook_size, image_size, fingerprint = 16, 256, 16, "means"
    def encode(self, pixels):
        return torch.nn.functional.avg_pool2d(pixels[:, 0] * 255, 4).flatten(1).round().long()
    def decode(self, codes):
        return (codes.reshape(-1, 1, 4, 4) / 255).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    def to(self, device): return self
    def eval(self): return self
config = PreprocessConfig(sources=(sys.argv[1],), out=sys.argv[2], image_tokenizer="", workers=1, min_edge=2)
tokenize_shards(expand_sources(config.sources), Means(), Vocabulary.from_pretrained(_shipped_vocabulary()), config)
"""


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 3_000_000])
    parser.add_argument("--what", choices=("train", "preprocess"), default="train")
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    print(f"{platform.platform()}, {psutil.cpu_count()} cores\n")
    print("| rows | memory of all processes, MB | pictures/s | seconds in all |\n|---|---|---|---|")
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            measure = train if options.what == "train" else preprocess
            megabytes, speed, seconds = measure(folder, rows, options.steps)
        print(f"| {rows:,} | {megabytes:,.0f} | {speed:,.0f} | {seconds:,.0f} |", flush=True)


def train(folder: Path, rows: int, steps: int) -> tuple[float, float, float]:
    """Train a small decoder on so many rows."""
    make_rows(folder / "tokens" / "data", rows)
    bundle = Path(__file__).parents[1] / "ar_t2i" / "bundle"
    options = {
        "output": str(folder / "run"), "image_tokenizer": str(bundle / "image_tokenizer"), "vocabulary": str(bundle),
        "data": {"dataset": str(folder / "tokens"), "validation_split": "", "batch_size": 64},
        "model": {"hidden_size": 64, "num_layers": 2, "intermediate_size": 128, "head_dim": 32},
        "loop": {"steps": steps, "trackers": [], "log_every": 10, "checkpoint_every": 0, "precision": "fp32"},
        "samples": {"prompts": []},
    }  # fmt: skip
    megabytes, seconds = watched(_TRAIN, json.dumps(options), cache=folder / "cache")
    records = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(record["pictures_per_second"] for record in records if "pictures_per_second" in record)
    return megabytes, speeds[len(speeds) // 2], seconds


def preprocess(folder: Path, rows: int, steps: int) -> tuple[float, float, float]:
    """Preprocess so many pictures of 16x16 pixels, in tars of ten thousand."""
    make_tars(folder / "in", rows)
    megabytes, seconds = watched(
        _PREPROCESS, str(folder / "in" / "*.tar"), str(folder / "out"), cache=folder / "cache"
    )
    return megabytes, rows / seconds, seconds


def watched(script: str, *arguments: str, cache: Path) -> tuple[float, float]:
    """Run a script; the most memory that it and its workers had for themselves, MB, and its seconds."""
    import os

    started = time.perf_counter()
    environment = {**os.environ, "HF_HOME": str(cache), "HF_DATASETS_CACHE": str(cache / "datasets")}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    most, errors = 0.0, []
    reader = threading.Thread(target=lambda: errors.append(process.stderr.read()))  # type: ignore[union-attr]
    reader.start()
    while process.poll() is None:
        most = max(most, private_memory(process.pid))
        time.sleep(0.05)
    reader.join()
    if process.returncode:
        sys.exit(errors[0].decode()[-2000:])
    return most / 1e6, time.perf_counter() - started


def private_memory(number: int) -> float:
    """Bytes that a process and its children have for themselves."""
    total = 0.0
    try:
        for process in (root := psutil.Process(number), *root.children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status").read_text()
            total += float(status.split("RssAnon:")[1].split()[0]) * 1024
    except (psutil.Error, OSError, IndexError):
        pass  # it has just ended
    return total


def make_rows(folder: Path, rows: int) -> None:
    """Parquet files of random codes and captions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    words = np.array("red green blue bird tree house car sheep fish ball flower by the sea at night in snow".split())
    rng, size, parts = np.random.default_rng(0), 100_000, -(-rows // 100_000)
    captions = np.array([" ".join(rng.choice(words, length)) for length in rng.integers(4, 16, 10_000).tolist()])
    for part in range(parts):
        count = min(size, rows - part * size)
        codes = pa.array(rng.integers(0, 4096, count * 32))
        lists = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * 32), codes)
        texts = captions[rng.integers(0, len(captions), count)]
        name = f"train-{part:05d}-of-{parts:05d}.parquet"
        pq.write_table(pa.table({"image_tokens": lists, "text": texts}), folder / name, row_group_size=10_000)


def make_tars(folder: Path, rows: int) -> None:
    """Tars of ten thousand small PNGs with captions; the same thousand pictures again and again."""
    import io
    import tarfile

    from PIL import Image

    folder.mkdir(parents=True)
    rng, pictures = np.random.default_rng(0), []
    for _ in range(1000):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG", compress_level=1)
        pictures.append(buffer.getvalue())
    for start in range(0, rows, 10_000):
        with tarfile.open(folder / f"a-{start // 10_000:05d}.tar", "w") as archive:
            for number in range(start, min(start + 10_000, rows)):
                for kind, data in (("png", pictures[number % 1000]), ("txt", f"caption {number}".encode())):
                    info = tarfile.TarInfo(f"{number:08d}.{kind}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
