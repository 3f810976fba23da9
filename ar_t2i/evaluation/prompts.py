"""Prompts of a suite, with what a picture must show to be right, kept in a file so that a score can be repeated."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What is asked of a model once."""

    id: str
    """Names it among the prompts of its suite, for example "two_object-0007"; pictures and scores are kept by it."""
    text: str
    """What the model reads."""
    category: str
    """Scores are told by it."""
    asked: Mapping[str, Any] | None = None
    """What must be seen, as `ar_t2i.evaluation.judge.judge` takes it: "objects", each {"count", "kind", "color",
    "size"}, "relations" as [index, relation, index], "place". None where the text itself is all there is."""


def write_prompts(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """One json object a line."""
    lines = (json.dumps(asdict(prompt), ensure_ascii=False) + "\n" for prompt in prompts)
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_prompts(path: str | Path) -> list[Prompt]:
    """Prompts as `write_prompts` writes them, or lines of plain text, which ask for nothing but themselves.

    Raises:
        ValueError: a file that cannot be read, an object that is no prompt, an id that comes twice, or no prompt.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read prompts from {str(path)!r}: {error}") from error
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = (
                Prompt(**json.loads(line))
                if line.lstrip().startswith("{")
                else Prompt(id=f"line-{number:05d}", text=line.strip(), category="all")
            )
        except (ValueError, TypeError) as error:
            hint = 'expected text, or an object with "id", "text", "category" perhaps "asked", as evaluate keeps them'
            raise ValueError(f"{path}, line {number}: {line.strip()[:60]!r}: {hint}") from error
        if not all(isinstance(value, str) for value in (prompt.id, prompt.text, prompt.category)):
            raise ValueError(f"{path}, line {number}: id, text and category are not all text")
        if not isinstance(prompt.asked, Mapping | None):
            raise ValueError(f"{path}, line {number}: asked is {prompt.asked!r}: expected a json object")
        if prompt.id in prompts:
            raise ValueError(f"{path}, line {number}: the id {prompt.id!r} comes twice")
        prompts[prompt.id] = prompt
    if not prompts:
        raise ValueError(f"no prompt in {str(path)!r}")
    return list(prompts.values())
