"""Tars of small pictures, an image tokenizer whose codes can be told by eye, and a run of preprocessing."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ar_t2i.data.preprocess import PreprocessConfig, tokenize_shards
from ar_t2i.data.shards import expand_sources

SIZE = 16


class MeanTokenizer(torch.nn.Module):
    """Codes are the means of 4x4 blocks of the red channel: a picture's codes can be told by eye."""

    num_codes, codebook_size, image_size = 16, 256, SIZE

    def __init__(self, name="means", wrong=0, rough=0.0):
        super().__init__()
        self.fingerprint, self.wrong, self.rough = hashlib.sha256(name.encode()).hexdigest(), wrong, rough

    def encode(self, pixels):
        codes = torch.nn.functional.avg_pool2d(pixels[:, 0] * 255, 4).flatten(1).round().long()
        if self.rough and torch.is_autocast_enabled("cpu"):
            codes[:, : round(self.rough * 16)] += 1
        return codes + self.wrong

    def decode(self, codes):
        red = (codes.reshape(-1, 1, 4, 4) / 255).repeat_interleave(4, 2).repeat_interleave(4, 3)
        return torch.cat([red, 0 * red, 0 * red], 1)


def picture(number: int, kind: str = "PNG") -> bytes:
    red = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(red).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path: Path, numbers, bad: dict[int, dict[str, bytes]] | None = None) -> Path:
    """A tar of pictures; `bad` replaces the files of some numbers."""
    with tarfile.open(path, "w") as archive:
        for number in numbers:
            files = (bad or {}).get(number, {"png": picture(number), "txt": f" caption {number}\n".encode()})
            for kind, data in files.items():
                info = tarfile.TarInfo(f"{number:05d}.{kind}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def rows_of(out: Path, split: str = "train") -> list[dict]:
    paths = sorted((out / "data").glob(f"{split}-*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def records_of(out: Path, split: str = "train") -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((out / "manifest").glob(f"{split}-*.json"))]


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def stamps_of(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (out / "data").iterdir()}


def hostile_files() -> dict[int, dict[str, bytes]]:
    text = b"a caption"
    return {
        1: {"png": b"", "txt": text},
        2: {"png": b"no picture", "txt": text},
        3: {"png": picture(3)[:100], "txt": text},
        4: {"png": picture(4)},
        5: {"txt": text},
        6: {"png": picture(6), "txt": b" \n"},
        7: {"png": picture(7), "txt": b"caf\xe9"},
        8: {"png": picture(8), "txt": b"a\0b"},
        9: {"png": picture(9), "txt": b"x" * 51},
        10: {"png": picture(10), "txt": b"x" * 52},
    }


@pytest.fixture(scope="session")
def kit():
    """What tests of preprocessing make and look at."""
    return SimpleNamespace(
        SIZE=SIZE, MeanTokenizer=MeanTokenizer, picture=picture, write_tar=write_tar, rows_of=rows_of,
        records_of=records_of, files_of=files_of, stamps_of=stamps_of, hostile_files=hostile_files,
    )  # fmt: skip


@pytest.fixture
def source(tmp_path):
    """Four tars of 30 pictures: their pattern."""
    (tmp_path / "in").mkdir()
    for shard in range(4):
        write_tar(tmp_path / "in" / f"a-{shard}.tar", range(shard * 30, shard * 30 + 30))
    return str(tmp_path / "in" / "a-{0..3}.tar")


@pytest.fixture
def run(tmp_path, source, vocabulary):
    """Preprocess with the tokenizer above, by default in this process; returns the report."""

    def run(*sources, tokenizer=None, **options):
        settings = {"out": str(tmp_path / "out"), "workers": 0, "batch_size": 8, "dtype": "float32", "min_edge": 2}
        config = PreprocessConfig(sources=sources or (source,), image_tokenizer="", **{**settings, **options})
        return tokenize_shards(expand_sources(config.sources), tokenizer or MeanTokenizer(), vocabulary, config)

    return run
