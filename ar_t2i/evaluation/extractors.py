"""The networks whose features sets of pictures are compared by, and what the figures are then called.

Shape suffixes: B batch, C channels, H and W pixels, P patches, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ar_t2i.evaluation.scenes import SceneVerifier

INCEPTION = "inception-v3-compat"
DINOV2 = "facebook/dinov2-large"
"""The ViT-L/14 that FD-DINOv2 is defined with (Stein et al., arXiv 2306.04675)."""
EXTRACTORS = ("inception", "dinov2", "scenes")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DINOV2_SIZE = 224


@dataclass(frozen=True)
class FeatureExtractor:
    """A network that turns pictures into features."""

    name: str
    """What tells it from others; the name `INCEPTION` or "dinov2" is that of the network of the papers alone."""
    features: Callable[[Tensor], Tensor]
    """(B, 3, H, W) uint8 RGB to (B, D) float."""

    @property
    def metric(self) -> str:
        """Name of the Frechet distance between two sets with this network's features."""
        return {INCEPTION: "fid", "dinov2": "fd_dinov2"}.get(self.name, f"frechet_{self.name}")

    @property
    def kernel_metric(self) -> str:
        """Name of the kernel distance with this network's features; KID is that of Inception."""
        return "kid" if self.name == INCEPTION else f"kernel_{self.name}"

    @property
    def reconstruction_metric(self) -> str:
        """Name of the Frechet distance between reconstructions and originals."""
        return "rfid" if self.name == INCEPTION else self.metric


def load_extractor(name: str, weights: str | Path = "", device: torch.device | str = "cpu") -> FeatureExtractor:
    """A network by name.

    - ``inception``: the network of FID and KID; `weights` is the file that `ar_t2i.evaluation.inception` tells of.
    - ``dinov2``: the network of FD-DINOv2; `weights` is a folder or Hub id in place of `DINOV2`.
    - ``scenes``: the scene verifier, always at hand and for pictures of scenes alone; `weights` is a folder with
      another one. It knows the kinds, colours and places of the scenes, and compares with nothing published.

    Raises:
        ValueError: an unknown name, or weights or a library that cannot be had.
    """
    device = torch.device(device)
    if name == "inception":
        from ar_t2i.evaluation.inception import HOW_TO, load_inception

        if not weights:
            raise ValueError(f"FID needs the weights of its network, which do not come with this package: {HOW_TO}")
        return load_inception(weights, device)
    if name == "dinov2":
        return _load_dinov2(str(weights or DINOV2), device)
    if name == "scenes":
        return _load_scenes(weights, device)
    raise ValueError(f"no feature extractor is called {name!r}: expected one of {', '.join(EXTRACTORS)}")


def resized(pictures_B3HW: Tensor, size: int) -> Tensor:
    """Pictures (B, 3, size, size) uint8, scaled by Pillow's bicubic filter, whatever their shape was.

    Raises:
        ValueError: not (B, 3, H, W) uint8.
    """
    if pictures_B3HW.dtype != torch.uint8 or pictures_B3HW.ndim != 4 or pictures_B3HW.shape[1] != 3:
        raise ValueError(
            f"pictures of {pictures_B3HW.dtype}, shape {tuple(pictures_B3HW.shape)}: expected uint8, (B, 3, H, W)"
        )
    if pictures_B3HW.shape[2:] == (size, size):
        return pictures_B3HW
    scaled = [
        np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
        for picture in pictures_B3HW.permute(0, 2, 3, 1).cpu().numpy()
    ]
    stacked_BHW3 = np.stack(scaled) if scaled else np.zeros((0, size, size, 3), np.uint8)
    return torch.from_numpy(stacked_BHW3).permute(0, 3, 1, 2)


def _load_scenes(weights: str | Path, device: torch.device) -> FeatureExtractor:
    reader = SceneVerifier.from_pretrained(weights or None).to(device).reader
    size = reader.config.image_size

    @torch.inference_mode()
    def features(pictures_B3HW: Tensor) -> Tensor:
        return reader.pooled(resized(pictures_B3HW, size).to(device).float() / 255).float()

    return FeatureExtractor("scenes", features)


def _load_dinov2(path: str, device: torch.device) -> FeatureExtractor:
    """The class token of the last layer, with pictures as the authors' dgm-eval takes them.

    They are scaled to 224 x 224 by Pillow's bicubic filter without a crop, and normalised as ImageNet.
    """
    from transformers import AutoConfig, Dinov2Model

    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type != "dinov2" or _DINOV2_SIZE % config.patch_size:
            raise ValueError(f"it holds a {config.model_type}, expected a dinov2 with patches of 14 pixels")
        loaded: Any = Dinov2Model.from_pretrained(path, use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no DINOv2 can be loaded from {path!r}: {' '.join(str(error).split())}; download {DINOV2} "
            "(config.json and model.safetensors) and give the folder"
        ) from error
    network, info = loaded
    if info["missing_keys"]:
        raise ValueError(
            f"{path!r} does not hold a whole DINOv2: {sorted(map(str, info['missing_keys']))} are missing"
        )
    _scale_positions(network, _DINOV2_SIZE // config.patch_size)
    network = network.eval().requires_grad_(False).to(device)
    mean_3, std_3 = (torch.tensor(each, device=device).view(1, 3, 1, 1) for each in (_MEAN, _STD))

    @torch.inference_mode()
    def features(pictures_B3HW: Tensor) -> Tensor:
        pixels_B3HW = resized(pictures_B3HW, _DINOV2_SIZE).to(device).float() / 255
        return network((pixels_B3HW - mean_3) / std_3).pooler_output.float()

    layers, width = config.num_hidden_layers, config.hidden_size
    published = (layers, width, config.patch_size) == (24, 1024, 14)
    return FeatureExtractor("dinov2" if published else f"dinov2_{layers}x{width}", features)


def _scale_positions(network: Any, grid: int) -> None:
    """Bring the table of positions to grid x grid patches as the original code does.

    It asks for a tenth of a patch more than there are ((grid + 0.1) / side), which moves every position a little;
    transformers asks for the grid itself.
    """
    embeddings = network.embeddings
    table_1PD = embeddings.position_embeddings.detach().float()
    side = round((table_1PD.shape[1] - 1) ** 0.5)
    if side == grid:
        return
    patches_1DHW = table_1PD[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scaled_1DHW = F.interpolate(patches_1DHW, scale_factor=((grid + 0.1) / side,) * 2, mode="bicubic")
    assert scaled_1DHW.shape[2:] == (grid, grid)
    scaled_1PD = torch.cat((table_1PD[:, :1], scaled_1DHW.flatten(2).transpose(1, 2)), 1)
    embeddings.position_embeddings = torch.nn.Parameter(scaled_1PD, requires_grad=False)
