"""Checkpoints: everything that a run needs to go on as if it had never stopped.

    checkpoints/step-000200/  model, ema, optimizer[, companions].safetensors  state.json

Random states and the data position are functions of the seed and the step (`BatchStream`, `seed_step`), so the step
stands for them. Files are whole tensors however they were spread over processes, and their sha256 stand in state.json:
a checkpoint that is damaged is noticed, and the one before taken.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ar_t2i.bundles import replace_directory
from ar_t2i.hub.names import CHECKPOINT_FILES, resolve_checkpoint
from ar_t2i.hub.remote import file_digest
from ar_t2i.untrusted import check_tensors, read_json, read_tensors

STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says of its run."""

    step: int
    """Optimizer steps done."""
    facts: dict[str, Any]
    """What must be equal for the run to go on: fingerprints of data and vocabulary, seed, rows of a step."""
    guard: dict[str, Any]
    """The state of what watches the steps."""


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds of the weights, whole, however they are spread over processes."""

    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor] | None
    optimizer: dict[str, Any]


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, saved: Saved, keep: int, companions: Sequence[Any] = ()
) -> Path:
    """Write `folder/step-xxxxxx` in one piece, then delete all but the newest `keep`.

    `companions` are what else has a state: `state_dict` and `load_state_dict`.

    Raises:
        ValueError: it cannot be written; what was there is as it was.
    """

    def write(target: Path) -> None:
        save_file(_contiguous(saved.model), target / "model.safetensors")
        if saved.ema is not None:
            save_file(_contiguous(saved.ema), target / "ema.safetensors")
        save_states(saved.optimizer, target / "optimizer.safetensors")
        if companions:
            save_states([companion.state_dict() for companion in companions], target / "companions.safetensors")
        digests = {path.name: file_digest(path, "sha256") for path in sorted(target.iterdir())}
        (target / STATE).write_text(json.dumps({**asdict(checkpoint), "sha256": digests}, indent=2))

    try:
        path = replace_directory(folder / f"step-{checkpoint.step:06d}", write)
        done = [old for old in list_checkpoints(folder) if int(old.name[5:]) <= checkpoint.step]
        for old in done[:-keep]:
            shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"cannot write the checkpoint of step {checkpoint.step} to {folder}: {reason}") from error
    return path


def find_checkpoint(output: Path, resume: str, say: Callable[[str], None] = print) -> Path | None:
    """The checkpoint that a run goes on from.

    Args:
        output: folder of the run.
        resume: "" starts anew, "auto" takes the newest whole checkpoint in `output` if there is any, else a
            checkpoint's folder, or an id of the Hub, whose newest one is downloaded.
        say: prints which damaged ones were passed over.

    Raises:
        ValueError: a new run where there is one already, a checkpoint of `output` that is not its newest, none, or
            only damaged ones.
    """
    if not resume and (output / "metrics.jsonl").exists():
        raise ValueError(f"output={str(output)!r} holds a run already: pass --resume to go on, or give another output")
    own = list_checkpoints(output / "checkpoints")
    if resume == "auto":
        for path in reversed(own):
            if not (problem := damage(path)):
                return path
            say(f"{path} is damaged ({problem}): going on from the one before")
        if own:
            raise ValueError(f"all checkpoints of {output} are damaged: delete {output / 'checkpoints'} to start anew")
        return None
    if not resume:
        return None
    path = resolve_checkpoint(resume)
    if own and path.resolve() not in [old.resolve() for old in own]:
        raise ValueError(f"output={str(output)!r} holds another run's checkpoints: give another output")
    if path.resolve() in [old.resolve() for old in own[:-1]]:
        raise ValueError(f"{path} has a newer one beside it, {own[-1].name}: delete that, or give another output")
    if problem := damage(path):
        raise ValueError(f"{path} is damaged ({problem}): resume from an older checkpoint")
    return path


def damage(path: Path) -> str:
    """What is wrong with the files of a checkpoint, "" for nothing."""
    try:
        digests = read_json(path / STATE)["sha256"]
        for name, digest in digests.items():
            if name not in CHECKPOINT_FILES or file_digest(path / name, "sha256") != digest:
                return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{STATE} or a file is missing or unreadable: {error}"
    return ""


def read_checkpoint(path: Path, facts: dict[str, Any]) -> Checkpoint:
    """What a checkpoint says of its run.

    Raises:
        ValueError: not a checkpoint, or one of a run with other data, vocabulary, seed or rows of a step; the
            difference is named.
    """
    try:
        state = read_json(path / STATE)
    except OSError as error:
        raise ValueError(f"no checkpoint at {str(path)!r}: expected a folder with {STATE}") from error
    step, stored, guard = state.get("step"), state.get("facts"), state.get("guard")
    if type(step) is not int or not 0 <= step < 2**48 or not isinstance(stored, dict) or not isinstance(guard, dict):
        raise ValueError(f"{path / STATE} tells no step, facts and guard: resume from an older checkpoint")
    check_facts(path, stored, facts)
    return Checkpoint(step, stored, guard)


def check_facts(path: Path, stored: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Raise ValueError where a run goes on under other facts than those stored with its checkpoint."""
    for name, value in facts.items():
        if stored.get(name) != value:
            raise ValueError(
                f"cannot resume {path}: {name} was {stored.get(name)!r}, now {value!r}; "
                "set it back, or start a new run with another output"
            )


def load_checkpoint(
    path: Path,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None,
    companions: Sequence[Any] = (),
    place: Callable[[Tensor, Tensor], Tensor] = lambda tensor, like: tensor,
) -> dict[str, Any]:
    """Load a checkpoint into the given tensors; returns the optimizer's state, whole, on the CPU.

    Args:
        path: its folder.
        model: the trained parameters, by name.
        ema: their averages.
        companions: as they were saved.
        place: makes of a whole tensor what belongs into one of the given.

    Raises:
        ValueError: tensors are missing, damaged or of another shape.
    """
    _load(model, path / "model.safetensors", place)
    if ema is not None:
        _load(ema, path / "ema.safetensors", place)
    try:
        if companions:
            for companion, state in zip(companions, load_states(path / "companions.safetensors"), strict=True):
                companion.load_state_dict(state)
        optimizer = load_states(path / "optimizer.safetensors")
        return {"state": dict(optimizer["state"]), "param_groups": list(optimizer["param_groups"])}
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:  # states of something else
        raise ValueError(f"{path} holds states that do not fit this run: resume from an older checkpoint") from error


def list_checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = [path for path in folder.glob("step-*") if (path / STATE).is_file()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


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


@torch.no_grad()
def _load(own: Mapping[str, Tensor], path: Path, place: Callable[[Tensor, Tensor], Tensor]) -> None:
    try:
        stored = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"{path} is missing or damaged: resume from an older checkpoint") from error
    if stored.keys() != own.keys():
        wrong = sorted(stored.keys() ^ own.keys())
        raise ValueError(f"{path} does not fit this model: {len(wrong)} tensors differ, the first {wrong[0]}")
    for name, tensor in own.items():
        if tensor.shape != stored[name].shape:
            raise ValueError(f"{path}: {name} is {tuple(stored[name].shape)}, this model has {tuple(tensor.shape)}")
        tensor.copy_(place(stored[name], tensor))
