"""Networks by name: what they see of pictures, and what is said where they are not at hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ar_t2i.data.scenes import batch
from ar_t2i.evaluation.extractors import INCEPTION, FeatureExtractor, load_extractor, resized
from ar_t2i.evaluation.scenes import SceneVerifier


def pictures(count=3, height=40, width=60):
    drawn = np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return torch.from_numpy(drawn)


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=518, patch_size=14)
    folder = tmp_path_factory.mktemp("dinov2")
    network = Dinov2Model(config).eval()
    network.save_pretrained(folder)
    return folder, network


def test_scenes_are_told_apart_at_once():
    """The features are the reader's own, the same in every batch, and pictures of one kind are near each other."""
    extractor = load_extractor("scenes")
    scenes_B3HW = torch.from_numpy(batch(0, 0, 4, "validation")[0]).permute(0, 3, 1, 2)
    found_BD = extractor.features(scenes_B3HW)
    assert found_BD.shape == (4, 256) and found_BD.isfinite().all() and extractor.metric == "frechet_scenes"
    alone_BD = torch.cat([extractor.features(picture[None]) for picture in scenes_B3HW])
    torch.testing.assert_close(alone_BD, found_BD, rtol=1e-4, atol=1e-5)
    reader = SceneVerifier.from_pretrained().reader
    with torch.inference_mode():
        pixels = scenes_B3HW.float() / 255
        torch.testing.assert_close(reader.place(reader.pooled(pixels)[:, 128:]), reader(pixels).place_BP)
    assert torch.equal(extractor.features(pictures(1)), extractor.features(resized(pictures(1), 256)))


def test_resizing_is_pillows():
    found = resized(pictures(), 32)
    for before, after in zip(pictures(), found, strict=True):
        expected = Image.fromarray(before.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.array_equal(after.permute(1, 2, 0).numpy(), np.asarray(expected))
    with pytest.raises(ValueError, match="torch.float32"):
        resized(pictures().float(), 32)
    assert resized(pictures(0), 32).shape == (0, 3, 32, 32)


def test_dinov2_is_the_class_token_of_transformers(dinov2):
    """All but the positions, whose table is brought to 16 x 16 as the original does: here by its own formula."""
    folder, network = dinov2
    extractor = load_extractor("dinov2", folder)
    assert extractor.name == "dinov2_2x16" and extractor.metric == "frechet_dinov2_2x16"
    table = network.embeddings.position_embeddings.detach()
    grid = F.interpolate(
        table[:, 1:].reshape(1, 37, 37, 16).permute(0, 3, 1, 2), scale_factor=(16.1 / 37, 16.1 / 37), mode="bicubic"
    )
    scaled = torch.cat((table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, 256, 16)), 1)
    pixels = resized(pictures(), 224).float() / 255
    pixels = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    original = network.embeddings.position_embeddings
    network.embeddings.position_embeddings = torch.nn.Parameter(scaled)
    with torch.inference_mode():
        expected = network(pixels).last_hidden_state[:, 0]
    network.embeddings.position_embeddings = original
    torch.testing.assert_close(extractor.features(pictures()), expected, rtol=1e-4, atol=1e-5)


def test_names_of_figures():
    names = [FeatureExtractor(name, lambda x: x) for name in (INCEPTION, "dinov2", "scenes")]
    assert [each.metric for each in names] == ["fid", "fd_dinov2", "frechet_scenes"]
    assert [each.kernel_metric for each in names] == ["kid", "kernel_dinov2", "kernel_scenes"]
    assert [each.reconstruction_metric for each in names] == ["rfid", "fd_dinov2", "frechet_scenes"]


def test_what_cannot_be_had(tmp_path):
    for arguments, message in (
        (("clip",), "'clip': expected one of inception, dinov2, scenes"),
        (("inception",), r"weights of its network.*--inception-weights"),
        (("dinov2", tmp_path), "no DINOv2 can be loaded.*download facebook/dinov2-large"),
        (("scenes", tmp_path), "no scene verifier"),
    ):
        with pytest.raises(ValueError, match=message):
            load_extractor(*arguments)
