"""Distances between pictures that see structure rather than single pixels: a term of the loss, and a measure.

Shape suffixes: B batch, H and W pixels, F features.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVNEXT = "facebook/convnext-small-224"
"""What `convnext` stands for."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CONVNEXT_SIZE = 224


def load_perceptual(name: str) -> "Perceptual":
    """A frozen distance between pictures, by name.

    - ``pyramid``: mean absolute difference of Laplacian pyramids. It has no weights and knows nothing of what people
      see: a stand-in where no network is at hand, and not comparable with LPIPS.
    - ``lpips-vgg``, ``lpips-alex``: LPIPS (arXiv 1801.03924) of the package lpips, which fetches its network's
      weights. Papers report ``lpips-alex`` and train with ``lpips-vgg``.
    - ``convnext``, or a folder or Hub id of a ConvNeXt: mean squared difference of the classifier's logits, as TiTok's
      second stage takes it (arXiv 2406.07550); of the pooled features where the folder holds no classifier.
    - a weighted sum of these, ``lpips-vgg+0.1*convnext`` (what TA-TiTok takes, arXiv 2501.07730).

    Raises:
        ValueError: an unknown name, a package that is not installed, or weights that cannot be had.
    """
    terms = [term.strip() for term in name.split("+")]
    if len(terms) == 1 and "*" not in name:
        return _load_one(name)
    weighted = []
    for term in terms:
        weight, times, kind = term.rpartition("*")
        try:
            weighted.append((float(weight) if times else 1.0, _load_one(kind.strip())))
        except ValueError as error:
            raise ValueError(f"perceptual={name!r}: {error}") from error
    return WeightedSum(weighted)


def _load_one(name: str) -> "Perceptual":
    if name == "pyramid":
        return LaplacianPyramid()
    if name in ("lpips-vgg", "lpips-alex"):
        return Lpips(name.removeprefix("lpips-"))
    if name == "convnext" or "/" in name or Path(name).is_dir():
        return ConvNextDistance.from_pretrained(CONVNEXT if name == "convnext" else name)
    raise ValueError(
        f"no perceptual distance is called {name!r}; expected pyramid, lpips-vgg, lpips-alex, convnext, a folder or "
        "Hub id of a ConvNeXt, or a weighted sum such as lpips-vgg+0.1*convnext"
    )


class Perceptual(nn.Module):
    """A distance with a name; it stays in evaluation and has no gradients of its own."""

    name: str
    """What it is, for logs."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation."""
        return super().train(False)

    def forward(self, pixels_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
        """Distances (B,), 0 for equal pictures, of two batches of pictures in [0, 1]."""
        raise NotImplementedError


class LaplacianPyramid(Perceptual):
    """Mean absolute difference on each level of a Laplacian pyramid, summed over levels (as in arXiv 1707.05776).

    Level by level the pictures are halved; what halving loses, edges at that scale, is compared, and last what
    is left.
    """

    def __init__(self, levels: int = 5) -> None:
        super().__init__()
        self.name = "pyramid"
        self.levels = levels

    def forward(self, pixels_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
        """Distances (B,); a pyramid is linear, so that of the difference is the difference of the two."""
        rest = pixels_B3HW.float() - other_B3HW.float()
        distance_B = rest.new_zeros(len(rest))
        for _ in range(self.levels - 1):
            if min(rest.shape[2:]) < 2:
                break
            smaller = F.avg_pool2d(rest, 2)
            edges = rest - F.interpolate(smaller, size=rest.shape[2:], mode="bilinear", align_corners=False)
            distance_B = distance_B + edges.abs().mean((1, 2, 3))
            rest = smaller
        return distance_B + rest.abs().mean((1, 2, 3))


class Lpips(Perceptual):
    """LPIPS by the package of its authors."""

    def __init__(self, network: str) -> None:
        super().__init__()
        try:
            import lpips  # type: ignore[import-not-found]
        except ImportError as error:
            raise ValueError(f"lpips-{network} needs the package lpips: pip install 'ar_t2i[lpips]'") from error
        self.name = f"lpips-{network}"
        try:
            self.network = lpips.LPIPS(net=network, verbose=False).eval().requires_grad_(False)
        except OSError as error:
            raise ValueError(f"the weights of lpips-{network} cannot be fetched ({error})") from error

    def forward(self, pixels_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
        """Distances (B,); the package is told that pictures are in [0, 1]."""
        return self.network(pixels_B3HW, other_B3HW, normalize=True).flatten(1).mean(1)


class ConvNextDistance(Perceptual):
    """Mean squared difference of what a ConvNeXt says of two pictures."""

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.name = f"convnext:{name}"
        self.network = network.eval().requires_grad_(False)
        self.register_buffer("mean_3", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std_3", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def from_pretrained(cls, path: str) -> Self:
        """Load a folder or Hub id of transformers' ConvNextModel or ConvNextForImageClassification, strictly.

        Raises:
            ValueError: no such folder or repository, another architecture, or weights that are missing.
        """
        from transformers import AutoConfig, ConvNextForImageClassification, ConvNextModel

        try:
            config = AutoConfig.from_pretrained(path)
            made = config.architectures or ["ConvNextModel"]
            classes = {
                "ConvNextModel": ConvNextModel,
                "ConvNextForImageClassification": ConvNextForImageClassification,
            }
            if made[0] not in classes:
                raise ValueError(f"it holds a {made[0]}, expected one of {', '.join(classes)}")
            loaded: Any = classes[made[0]].from_pretrained(path, output_loading_info=True)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"no ConvNeXt can be loaded from {path!r}: {reason}") from error
        network, info = loaded
        problems = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys") if info[kind]}
        if problems:
            raise ValueError(f"{path!r} does not hold exactly a {made[0]}: {problems}")
        return cls(network, path)

    def forward(self, pixels_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
        """Distances (B,) of pictures scaled to 224 x 224."""
        return (self._read(pixels_B3HW) - self._read(other_B3HW)).square().mean(1)

    def _read(self, pixels_B3HW: Tensor) -> Tensor:
        scaled = F.interpolate(
            pixels_B3HW.float(), size=_CONVNEXT_SIZE, mode="bilinear", align_corners=False, antialias=True
        )
        output: Mapping[str, Tensor] = self.network((scaled - self.mean_3) / self.std_3)
        features_BF = output["logits"] if "logits" in output else output["pooler_output"]
        return features_BF.float()


class WeightedSum(Perceptual):
    """A weighted sum of distances."""

    def __init__(self, weighted: list[tuple[float, Perceptual]]) -> None:
        super().__init__()
        self.name = "+".join(f"{weight:g}*{part.name}" for weight, part in weighted)
        self.weights = [weight for weight, _ in weighted]
        self.parts = nn.ModuleList(part for _, part in weighted)

    def forward(self, pixels_B3HW: Tensor, other_B3HW: Tensor) -> Tensor:
        """Distances (B,)."""
        distances = [part(pixels_B3HW, other_B3HW) for part in self.parts]
        return torch.stack([weight * distance for weight, distance in zip(self.weights, distances, strict=True)]).sum(
            0
        )
