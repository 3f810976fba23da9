"""Small pictures and tiny models, so that every recipe runs whole in seconds."""

from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from ar_t2i.cli import RECIPES
from ar_t2i.config import build
from ar_t2i.data import scenes

SIZE = 32
TITOK = {
    "image_size": SIZE,
    "num_latent_tokens": 8,
    "codebook_size": 64,
    "token_size": 6,
    "patch_size": 8,
    "encoder": {"width": 48, "num_layers": 2, "num_heads": 2},
    "decoder": {"width": 48, "num_layers": 2, "num_heads": 2},
}
VQGAN = {
    "channel_mult": [1, 1, 1, 1], "hidden_channels": 32, "num_res_blocks": 1, "z_channels": 8, "codebook_size": 32,
}  # fmt: skip
COMMON = {
    "batch_size": 8,
    "workers": 0,
    "validation_pictures": 2,
    "draw_every": 0,
    "optim": {"lr": 4e-3, "warmup_steps": 3, "ema_decay": 0.9},
    "loop": {"precision": "fp32", "log_every": 1, "evaluate_every": 0, "checkpoint_every": 0, "trackers": []},
}
GAN = {"gan": {"start": 1, "weight": 0.05, "hidden_channels": 32, "stages": 2}}
OPTIONS = {
    "vqgan": {"image_size": SIZE, "model": VQGAN, **GAN},
    "stage1": {"model": TITOK},
    "stage2": GAN,
    "single_stage": {"model": {**TITOK, "use_l2_norm": False}, **GAN},
}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """16 scenes to train on and 2 that are held out, 32 x 32; names decide which."""
    import zlib

    folder = tmp_path_factory.mktemp("pictures")
    drawn, _ = scenes.batch(0, 0, 18, "train")
    names = [f"{number:04d}" for number in range(200)]
    held_out = [name for name in names if zlib.crc32(name.encode()) % 20 == 0][:2]
    seen = [name for name in names if zlib.crc32(name.encode()) % 20][:16]
    for name, picture in zip(held_out + seen, drawn, strict=True):
        Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BOX).save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def train(pictures):
    """Train by a recipe with some options changed, given as nested dictionaries; returns the folder of the result."""

    def run(recipe: str, output: Path, resume: str = "", **changes) -> Path:
        module, config, function, _ = RECIPES["tokenizer train"][recipe]
        options = merged(COMMON, {"data": str(pictures), "output": str(output), **OPTIONS[recipe]})
        return getattr(import_module(module), function)(
            build(getattr(import_module(module), config), merged(options, changes)), resume
        )

    return run


@pytest.fixture(scope="session")
def vqgan_folder(train, tmp_path_factory) -> Path:
    """A VQGAN that knows the 16 pictures a little."""
    return train("vqgan", tmp_path_factory.mktemp("vqgan"), gan={"weight": 0.0}, loop={"steps": 60})


@pytest.fixture(scope="session")
def stage1_folder(train, vqgan_folder, tmp_path_factory) -> Path:
    """A first stage on its codes."""
    return train("stage1", tmp_path_factory.mktemp("stage1"), vqgan=str(vqgan_folder), loop={"steps": 4})


def merged(options: dict, changes: dict) -> dict:
    """Nested options with some of them changed."""
    result = dict(options)
    for name, value in changes.items():
        result[name] = merged(options.get(name, {}), value) if isinstance(value, dict) else value
    return result
