"""Checkpoints: everything that a run needs to go on as if it had never stopped.

    checkpoints/step-000200/  model.safetensors  ema.safetensors  optimizer.pt  state.json

Random states and the data position are functions of the seed and the step (`BatchStream`, `seed_step`), so the step
stands for them.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ar_t2i.hub import replace_directory


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of its run."""

    step: int
    """Optimizer steps done."""
    facts: dict[str, Any]
    """What must be equal for the run to go on: fingerprints of data and vocabulary, seed, batch."""


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, model: nn.Module, ema: nn.Module | None, optimizer: Any, keep: int
) -> Path:
    """Write `folder/step-xxxxxx` in one piece, then delete all but the newest `keep`."""

    def write(target: Path) -> None:
        save_file(_tensors(model), target / "model.safetensors")
        if ema is not None:
            save_file(_tensors(ema), target / "ema.safetensors")
        torch.save(optimizer.state_dict(), target / "optimizer.pt")
        (target / "state.json").write_text(json.dumps({"step": checkpoint.step, "facts": checkpoint.facts}, indent=2))

    path = replace_directory(folder / f"step-{checkpoint.step:06d}", write)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: Path, facts: dict[str, Any], model: nn.Module, ema: nn.Module | None, optimizer: Any) -> int:
    """Load a checkpoint into the given objects; returns the number of optimizer steps done.

    Raises:
        ValueError: not a checkpoint, or one of a run with other data, vocabulary, seed or batch; the difference is
            named.
    """
    try:
        state = json.loads((path / "state.json").read_text())
    except OSError as error:
        raise ValueError(f"no checkpoint at {str(path)!r}: expected a folder with state.json") from error
    for name, value in facts.items():
        if state["facts"].get(name) != value:
            raise ValueError(
                f"cannot resume {path}: {name} was {state['facts'].get(name)!r}, now {value!r}; "
                "set it back, or start a new run with another output"
            )
    _load(model, path / "model.safetensors")
    if ema is not None:
        _load(ema, path / "ema.safetensors")
    optimizer.load_state_dict(torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"))
    return state["step"]


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in module.named_parameters()}


def _load(module: nn.Module, path: Path) -> None:
    stored, own = load_file(path), _tensors(module)
    if stored.keys() != own.keys():
        wrong = sorted(stored.keys() ^ own.keys())
        raise ValueError(f"{path} does not fit this model: {len(wrong)} tensors differ, the first {wrong[0]}")
    for name, tensor in own.items():
        if tensor.shape != stored[name].shape:
            raise ValueError(f"{path}: {name} is {tuple(stored[name].shape)}, this model has {tuple(tensor.shape)}")
        tensor.copy_(stored[name])
