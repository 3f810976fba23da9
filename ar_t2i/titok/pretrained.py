"""Strict reading and writing of a folder with config.json and weights, and of single weight files."""

import json
import os
import pickle
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ar_t2i.untrusted import read_json, read_tensors

Config = TypeVar("Config")

CONFIG_NAME = "config.json"
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")


def read_config(directory: Path, parse: Callable[[dict[str, Any]], Config]) -> Config:
    """The config.json of a folder as `parse` understands it.

    Raises:
        ValueError: no such file, no valid json, or a config that `parse` refuses; the file is named.
    """
    path = directory / CONFIG_NAME
    try:
        config = read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); expected a folder with {CONFIG_NAME}") from error
    try:
        return parse(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill `model`, which may be on the meta device, from a folder or a weight file, as float32.

    Raises:
        ValueError: no such path, an unreadable file, or tensors that are not exactly the model's.
    """
    file = _weights_file(path)
    tensors = _read_tensors(file)
    problems = _mismatch(model.state_dict(), tensors)
    if problems:
        raise ValueError(
            f"{file} does not fit the config: {'; '.join(problems)}. Use the config these weights were trained with"
            f"{_hint(model.state_dict(), tensors)}"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)


def save(model: nn.Module, config: Mapping[str, Any], directory: Path) -> None:
    """Write config.json and model.safetensors; each is complete or not there at all."""
    directory.mkdir(parents=True, exist_ok=True)
    config_file, weights_file = directory / f"{CONFIG_NAME}.partial", directory / f"{WEIGHTS_NAMES[0]}.partial"
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, weights_file, metadata={"format": "pt"})
    shutil.copymode(config_file, weights_file)  # save_file leaves a file that only its owner can read
    # Replacing, not overwriting: the tensors of a loaded model may still be mapped to the old file.
    os.replace(weights_file, directory / WEIGHTS_NAMES[0])
    os.replace(config_file, directory / CONFIG_NAME)


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(
            f"{path} is neither a folder nor a file; give the folder with {CONFIG_NAME} and {WEIGHTS_NAMES[0]}"
        )
    files = [path / name for name in WEIGHTS_NAMES if (path / name).is_file()]
    if not files:
        raise ValueError(f"{path} holds no weights; expected {' or '.join(WEIGHTS_NAMES)} in it")
    return files[0]


def _read_tensors(file: Path) -> dict[str, Tensor]:
    tensors = read_tensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{file} holds a {type(tensors).__name__}, expected tensors by name")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{file}: {name!r} is of type {kind}, expected a float tensor; give a plain state dict")
    return dict(tensors)


def _read_pickle(file: Path) -> object:
    try:
        with warnings.catch_warnings():
            # torch remarks on the pickle protocol of a file that it goes on to refuse.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL (\S+)", str(error))
        if called is None:
            raise ValueError(f"{file} is damaged or no file of tensors alone; ask for safetensors") from error
        raise ValueError(
            f"{file} is refused: reading it would run code ({called[1]}), expected tensors alone; ask for safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(
            f"{file} is damaged or no file of tensors ({type(error).__name__}); fetch it again"
        ) from error


def _mismatch(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    wrong_shape = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    groups = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "wrongly shaped": wrong_shape,
    }
    return [
        f"{len(names)} {what} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"
        for what, names in groups.items()
        if names
    ]


def _hint(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    wanted, given = (any(name.startswith("pixel_") for name in names) for names in (expected, found))
    if wanted == given:
        return ""
    return (
        f" (finetune_decoder: {str(given).lower()} goes with weights {'with' if given else 'without'} pixel_* tensors)"
    )
