"""The six published tokenizers have exactly the published tensors; nothing is allocated to check it."""

import pytest
import torch

from ar_t2i.titok import MaskGITVQGAN, TiTok, VQGANConfig, published_config


@pytest.mark.parametrize("name", ["l32", "b64", "s128", "bl64_vq8k", "bl128_vq8k", "sl256_vq8k"])
def test_names_and_shapes(manifests, name):
    with torch.device("meta"):
        model = TiTok(published_config(name))
    manifest = manifests[name]
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == manifest["tensors"]
    assert sum(tensor.numel() for tensor in model.parameters()) == manifest["num_parameters"]
    trainable = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    assert trainable == manifest["num_trainable_parameters"]
    assert not list(model.buffers())


def test_published_vqgan_matches_the_pixel_decoder_it_supplies(manifests):
    with torch.device("meta"):
        vqgan = MaskGITVQGAN(VQGANConfig())
    supplied = {
        f"pixel_{name}": list(tensor.shape)
        for name, tensor in vqgan.state_dict().items()
        if not name.startswith("encoder.")
    }
    wanted = {name: shape for name, shape in manifests["l32"]["tensors"].items() if name.startswith("pixel_")}
    assert len(wanted) > 50 and supplied == wanted
