"""The network whose features FID is defined on, from a library and a file of weights that the user has.

The library is torch-fidelity, which carries the TensorFlow network of 2015-12-05 over to PyTorch with its way of
resizing; the weights are the file that it and pytorch-fid share.
"""

import hashlib
import pickle
from pathlib import Path

import torch

from ar_t2i.evaluation.extractors import INCEPTION, FeatureExtractor

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
"""Name of the file of weights; it ends in the first eight digits of the file's sha256."""
HOW_TO = f"pip install 'ar_t2i[rfid]', then --inception-weights {WEIGHTS} (from its releases)"


def load_inception(weights: str | Path, device: torch.device) -> FeatureExtractor:
    """The 2048 features of FID, as torch-fidelity computes them.

    Raises:
        ValueError: torch-fidelity is not installed, or the file is not the one that FID is defined with.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision for another torch
        raise ValueError(f"inception_weights: {error}; pip install 'ar_t2i[rfid]'") from error
    path = Path(weights)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest[:8] != WEIGHTS[-12:-4]:
            raise ValueError(f"inception_weights={str(weights)!r} has the sha256 {digest[:8]}..., expected {WEIGHTS}")
        torch.load(path, weights_only=True, map_location="cpu")  # the library unpickles what this only then lets pass
    except (OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"cannot read inception_weights={str(weights)!r}: {error}") from error
    network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=str(path)).to(device)
    return FeatureExtractor(INCEPTION, lambda pictures: network(pictures.to(device))[0])
