"""What many tests need: a small vocabulary, a small image tokenizer, a tokenized dataset, all made here."""

import itertools
import multiprocessing
import os
import shutil
import subprocess
import tempfile
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

COLORS = "red green blue yellow black white brown purple".split()
THINGS = "bird tree house car sheep fish ball flower".split()
PLACES = "at night|by the sea|in the snow|on the grass".split("|")
CAPTIONS = [f"a {color} {thing} {place}" for color, thing, place in itertools.product(COLORS, THINGS, PLACES)]


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors are faster on one thread, and sums are the same everywhere."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def no_process_stays():
    """The interpreter would wait at its end for processes that tests started and left."""
    yield
    if left := multiprocessing.active_children():
        for process in left:
            process.kill()
        pytest.fail(f"processes are left: {left}")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """The datasets library caches in a folder of this test run."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def small_disk(tmp_path):
    """Make a disk of so many bytes: its folder; a test that wants it is skipped where mounting is not allowed."""
    made = []

    def make(size: int) -> Path:
        folder = tmp_path / f"disk-{len(made)}"
        folder.mkdir()
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if not shutil.which("mount") or subprocess.run(line, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def little_memory():
    """A test may have 100 MB more than it had."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20


@pytest.fixture
def as_nobody():
    """A context of somebody who may not write everywhere, with a folder of their own."""

    @contextmanager
    def change():
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o777)
            root = os.geteuid() == 0
            if root:
                os.setresuid(65534, 65534, 0)
            try:
                yield Path(folder)
            finally:
                if root:
                    os.setresuid(0, 0, 0)
                for path in Path(folder).rglob("*"):
                    path.chmod(0o777)

    return change


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data; a test that wants it is skipped where it is missing."""
    folder = Path(os.environ.get("AR_T2I_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set AR_T2I_SHARED")
    return folder


@pytest.fixture(scope="session")
def vocabulary():
    from ar_t2i.vocabulary import Vocabulary

    return Vocabulary.train(CAPTIONS)


@pytest.fixture(scope="session")
def vocabulary_folder(vocabulary, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    vocabulary.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def image_tokenizer():
    """Random weights: it draws noise, but every law of the interface holds."""
    from ar_t2i.slots import SlotConfig, SlotTokenizer

    torch.manual_seed(0)
    config = SlotConfig(image_size=64, code_dim=2, stage_widths=(8, 8, 8, 8), regions=(2, 2), unmixer_width=16)
    return SlotTokenizer(config).eval()


@pytest.fixture(scope="session")
def image_tokenizer_folder(image_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("image_tokenizer")
    image_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(vocabulary):
    from ar_t2i.model.build import ModelConfig, build_model

    return build_model(
        ModelConfig(hidden_size=64, num_layers=2, intermediate_size=128, head_dim=32), vocabulary, seed=0
    ).eval()


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory) -> Path:
    """A CLIP of random weights that knows letters."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={entry: i for i, entry in enumerate(entries)}, merges=[]).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(entries) - 2, "eos_token_id": len(entries) - 1, "pad_token_id": len(entries) - 1}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(entries)},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenized(vocabulary, tmp_path_factory) -> Path:
    """A tokenized dataset in the published schema: distinct captions, random codes; 192 + 64 rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ar_t2i.sequence import sequence_text

    folder = tmp_path_factory.mktemp("tokenized")
    (folder / "data").mkdir()
    codes = np.random.default_rng(0).integers(0, 4096, (len(CAPTIONS), 32)).tolist()
    rows = {
        "__key__": [f"{number:09d}" for number in range(len(CAPTIONS))],
        "image_tokens": codes,
        "text_tokens": vocabulary.encode_captions(CAPTIONS),
        "text": CAPTIONS,
        "data": [sequence_text(caption, row) for caption, row in zip(CAPTIONS, codes, strict=True)],
    }
    table = pa.table(rows)
    assert table.schema.field("image_tokens").type == pa.list_(pa.int64())
    pq.write_table(table.slice(0, 192), folder / "data" / "train-00000-of-00001.parquet")
    pq.write_table(table.slice(192), folder / "data" / "validation-00000-of-00001.parquet")
    return folder


@pytest.fixture
def run_options(tokenized, vocabulary_folder, image_tokenizer_folder, tmp_path) -> dict:
    """Options of a small run, as a yaml file would hold them."""
    return {
        "output": str(tmp_path / "run"),
        "vocabulary": str(vocabulary_folder),
        "image_tokenizer": str(image_tokenizer_folder),
        "data": {"dataset": str(tokenized), "batch_size": 16, "workers": 0},
        "model": {"hidden_size": 64, "num_layers": 2, "intermediate_size": 128, "head_dim": 32},
        "optim": {"lr": 3e-3, "warmup_steps": 5},
        "loop": {
            "steps": 8,
            "precision": "fp32",
            "log_every": 1,
            "evaluate_every": 4,
            "checkpoint_every": 4,
            "trackers": [],
        },
        "samples": {"every": 4, "prompts": ["a red bird", "a blue fish at night"], "num_images": 2},
    }


@pytest.fixture
def train_run(run_options):
    """Train with some options changed, given as nested dictionaries; returns the run's folder."""
    from ar_t2i.config import build
    from ar_t2i.training.decoder import TrainConfig, train_decoder

    def run(resume: str = "", **changes) -> Path:
        options = merge(run_options, changes)
        train_decoder(build(TrainConfig, options), resume)
        return Path(options["output"])

    return run


def merge(options: dict, changes: dict) -> dict:
    """Nested options with some of them changed."""
    merged = dict(options)
    for name, value in changes.items():
        merged[name] = merge(options.get(name, {}), value) if isinstance(value, dict) else value
    return merged
