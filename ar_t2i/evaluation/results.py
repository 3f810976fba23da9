"""What came of each picture, kept line by line, and the figures that are made of it."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ar_t2i.evaluation.judge import Reading
from ar_t2i.evaluation.statistics import Share, mean_interval

RESULTS = "results.jsonl"
Figure = dict[str, Any]
"""value, low, high (95 %), count (prompts), interval (how it was made), scale; deviation, over the rounds, where they
are several."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One picture and its scores."""

    id: str
    """Of the prompt."""
    round: int
    """0 is the first picture of the prompt."""
    seed: int
    """Of the run."""
    category: str
    text: str
    """The prompt."""
    picture: str
    """The file, relative to the folder of the results."""
    sha256: str
    """Of the file."""
    scorer: str
    """Fingerprint of what scored it."""
    scores: Mapping[str, float | None]
    """By metric; None for what was not asked."""
    reading: Mapping[str, Any] | None = None
    """What was seen: "place", "objects"."""


def reading_facts(reading: Reading) -> dict[str, Any]:
    """A reading ready for json, boxes to a tenth of a pixel."""
    objects = [
        {**asdict(seen), "box": [round(edge, 1) for edge in seen.box], "score": round(seen.score, 4)}
        for seen in reading.objects
    ]
    return {"place": reading.place, "objects": objects}


def read_results(path: Path) -> list[Result]:
    """The results in a file; a last line that was cut is passed over, for a run that was killed leaves one.

    Raises:
        ValueError: a line that is no result.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            found.append(Result(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no result ({error}): delete the file to start anew") from error
    return found


def write_results(path: Path, results: Iterable[Result]) -> None:
    """One json object a line, in place of what stood there."""
    lines = (json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in results)
    aside = path.with_suffix(".part")
    aside.write_text("".join(lines), encoding="utf-8")
    aside.replace(path)


def figures_of(results: Sequence[Result], seed: int = 0) -> dict[str, Figure]:
    """Mean of each metric over the prompts of which it was asked.

    A metric of yes and no has Wilson's interval where each prompt has one picture; else prompts are drawn with
    replacement (bootstrap), each with the mean of its rounds, since pictures of one prompt do not stand for several.

    Args:
        results: of one suite, or of one category of it.
        seed: of the bootstrap.
    """
    figures = {}
    for metric in dict.fromkeys(name for result in results for name in result.scores):
        by_prompt: dict[str, list[float]] = defaultdict(list)
        by_round: dict[int, list[float]] = defaultdict(list)
        for result in results:
            score = result.scores.get(metric)
            if score is not None:
                by_prompt[result.id].append(score)
                by_round[result.round].append(score)
        if by_prompt:
            figures[metric] = {**_figure(by_prompt, by_round, seed), "scale": scale_of(metric)}
    return figures


def _figure(by_prompt: Mapping[str, list[float]], by_round: Mapping[int, list[float]], seed: int) -> Figure:
    means = [float(np.mean(scores)) for scores in by_prompt.values()]
    value = float(np.mean(means))
    if len(by_round) == 1 and set(means) <= {0.0, 1.0}:
        low, high = Share(round(sum(means)), len(means)).interval
        return {"value": value, "low": low, "high": high, "count": len(means), "interval": "Wilson"}
    estimate = mean_interval(means, seed)
    figure = {"value": value, "low": estimate.low, "high": estimate.high, "count": len(means), "interval": "bootstrap"}
    if len(by_round) > 1:
        figure["deviation"] = float(np.std([np.mean(scores) for scores in by_round.values()], ddof=1))
    return figure


def scale_of(metric: str) -> str:
    """How a metric is told: "share", 0 to 1, or "cosine"."""
    return "cosine" if metric == "clip" else "share"


def by_category(results: Sequence[Result], seed: int = 0) -> dict[str, dict[str, Figure]]:
    """`figures_of` each category, in the order in which they first come."""
    grouped: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        grouped[result.category].append(result)
    return {category: figures_of(group, seed) for category, group in grouped.items()}
