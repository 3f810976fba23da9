"""Golden numbers of the original code: a trimmed set beside this file, the full set where a shared folder holds it."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ar_t2i.titok import TiTok, TiTokConfig, VQGANConfig

TRIMMED = Path(__file__).parent / "golden"
SHARED = Path(os.environ.get("AR_T2I_SHARED", Path(__file__).parents[3] / "shared"))


class Golden:
    """Configs, weights and numbers of one folder of golden files."""

    def __init__(self, folder):
        self.folder = folder

    def json(self, name):
        return json.loads((self.folder / f"{name}.json").read_text())

    def tensors(self, name):
        return load_file(self.folder / f"{name}.safetensors")

    def config(self, name):
        return TiTokConfig.from_dict(self.json(name))

    def vqgan_config(self):
        shape = self.json("maskgit_vqgan_tiny")["_fixture"]
        blocks = {"pixel_decoder": shape["pixel_encoder_and_decoder"], "pixel_quantize": shape["quantize"]}
        return VQGANConfig.from_dict(blocks)

    def titok(self, name):
        return TiTok.from_pretrained(self.folder / f"{name}.safetensors", self.config(name))


@pytest.fixture(scope="session")
def golden():
    return Golden(TRIMMED)


@pytest.fixture(scope="session")
def full_golden():
    folder = SHARED / "golden" / "titok"
    if not folder.is_dir():
        pytest.skip(f"no full golden files at {folder}; set AR_T2I_SHARED to the folder that holds golden/titok")
    return Golden(folder)


@pytest.fixture(scope="session")
def manifests():
    """Names, shapes and parameter counts of the six published tokenizers."""
    return json.loads(gzip.decompress((TRIMMED / "manifests.json.gz").read_bytes()))


@pytest.fixture(scope="session")
def images_uint8():
    """Two pictures (2, 3, 256, 256)."""
    images = [np.asarray(Image.open(TRIMMED / f"image_{i}.png")) for i in range(2)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="session")
def pixels(images_uint8):
    return images_uint8.float() / 255


@pytest.fixture(scope="session")
def _legacy(golden):
    return golden.titok("titok_tiny_legacy")


@pytest.fixture
def legacy(_legacy):
    """A second-stage TiTok with the golden weights, whole again after a test that damaged it."""
    kept = {name: tensor.clone() for name, tensor in _legacy.state_dict().items()}
    yield _legacy
    _legacy.load_state_dict(kept)
