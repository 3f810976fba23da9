"""CLIP scores of a tiny CLIP, against transformers itself."""

import numpy as np
import pytest
import torch
from PIL import Image

from ar_t2i.evaluation.alignment import ClipScorer

TEXTS = ["a red bird", "two blue boats on the sea", "a house"]


@pytest.fixture(scope="module")
def folder(clip_folder):
    return clip_folder


def pictures():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 48, 40), dtype=np.uint8))


def images():
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures()]


def test_the_cosine_is_that_of_transformers(folder):
    """CLIPModel's own logits are the cosine times its scale; pictures and texts go one by one, without padding."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    network = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = CLIPTokenizer.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    scorer = ClipScorer.from_pretrained(folder)
    found = {name: scorer.score(images(), TEXTS, name) for name in ("clip", "clip_x100", "clip_photo_prefix")}
    checked = 0
    for row, image in enumerate(images()):
        for name, prefix in (("clip", ""), ("clip_photo_prefix", "A photo depicts ")):
            said = tokenizer([prefix + TEXTS[row]], return_tensors="pt")
            seen = processor(image, return_tensors="pt")
            with torch.inference_mode():
                logits = network(**said, **seen).logits_per_image.item()
            assert found[name][row] == pytest.approx(logits / network.logit_scale.exp().item(), abs=1e-5)
            checked += 1
    assert checked == 6 and found["clip"] != found["clip_photo_prefix"]
    assert found["clip_x100"] == pytest.approx([100 * score for score in found["clip"]])


def test_batches_and_kinds_of_pictures_change_nothing(folder):
    scorer = ClipScorer.from_pretrained(folder)
    first = scorer.score(images(), TEXTS)
    assert first == scorer.score(images(), TEXTS) == scorer.score(pictures(), TEXTS)
    assert scorer.score(images()[::-1], TEXTS[::-1], batch_size=1) == pytest.approx(first[::-1], abs=1e-5)
    assert -1 <= scorer.score(images()[:1], ["word " * 200])[0] <= 1
    assert scorer.score([], []) == []


def test_what_is_refused(folder, tmp_path):
    scorer = ClipScorer.from_pretrained(folder)
    for arguments, message in (
        ((images(), TEXTS, "clip_2.5"), "variant='clip_2.5': expected one of clip, clip_x100, clip_photo_prefix"),
        ((images(), TEXTS[:2]), "3 pictures with 2 texts"),
        ((images(), TEXTS, "clip", 0), "batch_size=0"),
        ((pictures().float(), TEXTS), "expected uint8"),
    ):
        with pytest.raises(ValueError, match=message):
            scorer.score(*arguments)
    with pytest.raises(ValueError, match="no CLIP can be loaded.*download openai/clip-vit-base-patch32"):
        ClipScorer.from_pretrained(tmp_path)
