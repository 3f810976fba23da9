"""The bundle that ships with the package."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ar_t2i.bundles import shipped_bundle
from ar_t2i.data import scenes
from ar_t2i.pipeline import TextToImagePipeline
from ar_t2i.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def pipe():
    return TextToImagePipeline.from_pretrained(shipped_bundle())


def test_it_is_small_and_has_a_card():
    files = [path for path in shipped_bundle().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 45e6
    assert "# " in (shipped_bundle() / "README.md").read_text()


def test_its_vocabulary_is_the_shipped_one(pipe):
    shipped = Vocabulary.from_pretrained(Path(__file__).parents[1] / "tokenizer")
    assert pipe.vocabulary.fingerprint == shipped.fingerprint


def test_its_image_tokenizer_knows_unseen_scenes(pipe):
    pictures, _ = scenes.batch(seed=99, start=0, count=32, split="validation")
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    codes = pipe.image_tokenizer.encode(pixels)
    error = (pipe.image_tokenizer.decode(codes) - pixels).square().mean((1, 2, 3))
    assert (-10 * error.log10()).mean() > 22.5


def test_what_it_draws_follows_the_prompt(pipe):
    """Night is dark, snow is bright, and a seed gives the same picture again."""
    prompts = ["a red car at night", "a red car in the snow"]
    generators = [torch.Generator().manual_seed(seed) for seed in range(16)]
    pictures = pipe(prompts, num_images_per_prompt=8, generator=generators, output_type="np").images
    assert pictures.shape == (16, 256, 256, 3)
    brightness = pictures.mean((1, 2, 3))
    assert brightness[:8].max() < brightness[8:].min()
    again = pipe(prompts[1], generator=torch.Generator().manual_seed(8), output_type="np").images
    np.testing.assert_allclose(again[0], pictures[8], atol=1e-4)
