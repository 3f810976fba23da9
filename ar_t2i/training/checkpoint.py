"""Checkpoints: everything that a run needs to go on as if it had never stopped.

    checkpoints/step-000200/  model, ema, optimizer[, companions].safetensors  state.json

Random states and the data position are functions of the seed and the step (`BatchStream`, `seed_step`), so the step
stands for them.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ar_t2i.bundles import replace_directory
from ar_t2i.hub.names import resolve_checkpoint
from ar_t2i.untrusted import check_tensors, read_json, read_tensors


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of its run."""

    step: int
    """Optimizer steps done."""
    facts: dict[str, Any]
    """What must be equal for the run to go on: fingerprints of data and vocabulary, seed, batch."""


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    model: nn.Module,
    ema: nn.Module | None,
    optimizer: Any,
    keep: int,
    companions: Sequence[Any] = (),
) -> Path:
    """Write `folder/step-xxxxxx` in one piece, then delete all but the newest `keep`.

    `companions` are what else has a state: `state_dict` and `load_state_dict`.
    """

    def write(target: Path) -> None:
        save_file(_tensors(model), target / "model.safetensors")
        if ema is not None:
            save_file(_tensors(ema), target / "ema.safetensors")
        save_states(optimizer.state_dict(), target / "optimizer.safetensors")
        if companions:
            save_states([companion.state_dict() for companion in companions], target / "companions.safetensors")
        (target / "state.json").write_text(json.dumps({"step": checkpoint.step, "facts": checkpoint.facts}, indent=2))

    path = replace_directory(folder / f"step-{checkpoint.step:06d}", write)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def find_checkpoint(output: Path, resume: str) -> Path | None:
    """The checkpoint that a run goes on from.

    Args:
        output: folder of the run.
        resume: "" starts anew, "auto" takes the newest checkpoint in `output` if there is any, else a checkpoint's
            folder, or an id of the Hub, whose newest one is downloaded.

    Raises:
        ValueError: a new run where there is one already, a checkpoint of `output` that is not its newest, or none.
    """
    if not resume and (output / "metrics.jsonl").exists():
        raise ValueError(f"output={str(output)!r} holds a run already: pass --resume to go on, or give another output")
    own = list_checkpoints(output / "checkpoints")
    if resume == "auto":
        return own[-1] if own else None
    if not resume:
        return None
    path = resolve_checkpoint(resume)
    if path.resolve() in [old.resolve() for old in own[:-1]]:
        raise ValueError(f"{path} has a newer one beside it, {own[-1].name}: delete that, or give another output")
    return path


def check_checkpoint(path: Path, facts: dict[str, Any]) -> int:
    """The number of optimizer steps that a checkpoint has done.

    Raises:
        ValueError: not a checkpoint, or one of a run with other data, vocabulary, seed or batch; the difference is
            named.
    """
    try:
        state = read_json(path / "state.json")
    except OSError as error:
        raise ValueError(f"no checkpoint at {str(path)!r}: expected a folder with state.json") from error
    step, stored = state.get("step"), state.get("facts")
    if type(step) is not int or not 0 <= step < 2**48 or not isinstance(stored, dict):
        raise ValueError(f"{path / 'state.json'} tells no step and facts: resume from an older checkpoint")
    check_facts(path, stored, facts)
    return step


def check_facts(path: Path, stored: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raise ValueError where a run goes on under other facts than those stored with its checkpoint."""
    for name, value in facts.items():
        if stored.get(name) != value:
            raise ValueError(
                f"cannot resume {path}: {name} was {stored.get(name)!r}, now {value!r}; "
                "set it back, or start a new run with another output"
            )


def load_checkpoint(
    path: Path, model: nn.Module, ema: nn.Module | None, optimizer: Any, companions: Sequence[Any] = ()
) -> None:
    """Load a checkpoint into the given objects.

    Raises:
        ValueError: tensors are missing, damaged or of another shape.
    """
    _load(model, path / "model.safetensors")
    if ema is not None:
        _load(ema, path / "ema.safetensors")
    try:
        optimizer.load_state_dict(load_states(path / "optimizer.safetensors"))
        if companions:
            for companion, state in zip(companions, load_states(path / "companions.safetensors"), strict=True):
                companion.load_state_dict(state)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:  # states of something else
        raise ValueError(f"{path} holds states that do not fit this run: resume from an older checkpoint") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / "state.json").is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in module.named_parameters()}


def save_states(states: Any, path: Path) -> None:
    """Write nested dicts, lists and tuples of tensors and plain values, as `state_dict` gives them, without pickle.

    Tensors are numbered; what holds them stands as json in the file's metadata.

    Raises:
        TypeError: something else among them.
    """
    tensors: dict[str, torch.Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[str(len(tensors))] = value.detach().cpu().contiguous()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, Mapping):  # json has no other keys than strings
            return {"items": [[plain(key), plain(item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [plain(item) for item in value]}
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise TypeError(f"a state of type {type(value).__name__}: expected tensors, numbers, texts, lists and dicts")

    save_file(tensors, path, metadata={"states": json.dumps(plain(states))})


def load_states(path: Path) -> Any:
    """What `save_states` wrote, on the CPU (ValueError where it is missing or damaged)."""

    def original(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "items":
            return {original(key): original(item) for key, item in content}
        return (tuple if kind == "tuple" else list)(original(item) for item in content)

    try:
        check_tensors(path)
        with safe_open(path, "pt") as file:
            structure = json.loads(file.metadata()["states"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        return original(structure)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:  # also RecursionError
        raise ValueError(f"{path} is missing or damaged: resume from an older checkpoint") from error


def _load(module: nn.Module, path: Path) -> None:
    try:
        stored, own = read_tensors(path), _tensors(module)
    except ValueError as error:
        raise ValueError(f"{path} is missing or damaged: resume from an older checkpoint") from error
    if stored.keys() != own.keys():
        wrong = sorted(stored.keys() ^ own.keys())
        raise ValueError(f"{path} does not fit this model: {len(wrong)} tensors differ, the first {wrong[0]}")
    for name, tensor in own.items():
        if tensor.shape != stored[name].shape:
            raise ValueError(f"{path}: {name} is {tuple(stored[name].shape)}, this model has {tuple(tensor.shape)}")
        tensor.copy_(stored[name])
