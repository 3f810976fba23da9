"""The verb `evaluate compare`: reports of one protocol side by side, paired by prompt and round."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ar_t2i.evaluation.harness import PROMPTS
from ar_t2i.evaluation.prompts import read_prompts
from ar_t2i.evaluation.report import read_report
from ar_t2i.evaluation.report.side_by_side import side_by_side, side_by_side_text
from ar_t2i.evaluation.results import RESULTS, Result, by_category, figures_of, read_results, scale_of
from ar_t2i.evaluation.statistics import paired_interval

MOST_SHOWN = 18
"""Prompts whose pictures are shown side by side."""


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare evaluations; differences are to the first one. Prompts that not all of them have are left out."""

    reports: tuple[str, ...]
    """Folders that evaluate wrote, the one to compare to first."""
    out: str
    """Folder for compare.json, compare.md and compare.html."""
    seed: int = 0
    """Seed of the bootstrap."""

    def __post_init__(self) -> None:
        """Check the number."""
        if len(self.reports) < 2:
            raise ValueError(f"{len(self.reports)} report: expected at least two folders that evaluate wrote")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed}: expected 0 to {2**32 - 1}")


@dataclass(frozen=True)
class Evaluation:
    """A report and where it lies."""

    name: str
    folder: Path
    report: Mapping[str, Any]

    def part(self, suite: str) -> Mapping[str, Any]:
        """Of one suite."""
        return next(part for part in self.report["suites"] if part["suite"] == suite)

    def results(self, suite: str) -> dict[tuple[str, int], Result]:
        """By prompt and round; ValueError where a picture lies outside of the report, which others may have made."""
        folder, home = self.folder / self.part(suite)["folder"], self.folder.resolve()
        found = read_results(folder / RESULTS) if folder.resolve().is_relative_to(home) else []
        for result in found:
            if not (folder / result.picture).resolve().is_relative_to(home):
                raise ValueError(f"{folder / RESULTS} names {result.picture!r}, which lies outside of {self.folder}")
        return {(result.id, result.round): result for result in found}


def compare(config: CompareConfig) -> dict[str, Any]:
    """Write compare.json, compare.md and compare.html, and print the table.

    Returns:
        What compare.json holds.

    Raises:
        ValueError: a folder without a report, or reports that cannot be compared; the field that differs is named.
    """
    evaluations = open_evaluations(config.reports)
    suites = shared_suites(evaluations)
    comparison = {
        "models": [
            {"name": each.name, "folder": str(each.folder), "source": each.report["source"]} for each in evaluations
        ],
        "seed": config.seed,
        "suites": [_compared(suite, evaluations, config.seed) for suite in suites],
    }
    out = Path(config.out)
    text = side_by_side_text(comparison)
    page = side_by_side(comparison)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "compare.json").write_text(
            json.dumps(comparison, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (out / "compare.md").write_text(text, encoding="utf-8")
        (out / "compare.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write out={config.out!r}: {error.strerror}; give another folder") from error
    print(f"{text}\n{out / 'compare.html'}")
    return comparison


def open_evaluations(folders: Sequence[str]) -> list[Evaluation]:
    """Reports under names that differ: the model's, else the folder's.

    Raises:
        ValueError: a folder without a report, or one twice.
    """
    paths = [Path(folder) for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError(f"{' '.join(folders)}: a report comes twice; expected different ones")
    reports = [read_report(path) for path in paths]
    names = [report["source"]["name"] for report in reports]
    if len(set(names)) < len(names):
        names = [path.resolve().name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    return [Evaluation(*each) for each in zip(names, paths, reports, strict=True)]


def shared_suites(evaluations: Sequence[Evaluation]) -> list[str]:
    """The suites that all have, in the order of the first.

    Raises:
        ValueError: none, or one that was run in two ways; the field that differs is named.
    """
    named = [[part["suite"] for part in each.report["suites"]] for each in evaluations]
    shared = [name for name in named[0] if all(name in names for names in named)]
    if not shared:
        told = "; ".join(f"{each.name}: {', '.join(names)}" for each, names in zip(evaluations, named, strict=True))
        raise ValueError(f"no suite is in all reports ({told}): run evaluate with the same --suite")
    for suite in shared:
        for other in evaluations[1:]:
            _check_protocol(suite, evaluations[0], other)
    return shared


def shared_results(suite: str, evaluations: Sequence[Evaluation]) -> list[list[Result]]:
    """For each evaluation the results of the prompts and rounds that all have, in one order.

    Raises:
        ValueError: none, or a prompt that asks for different things under one id.
    """
    prompts = [
        {prompt.id: prompt for prompt in read_prompts(each.folder / each.part(suite)["folder"] / PROMPTS)}
        for each in evaluations
    ]
    results = [each.results(suite) for each in evaluations]
    keys = [key for key in results[0] if all(key in found for found in results)]
    if not keys:
        raise ValueError(f"{suite}: no prompt is in all reports; run evaluate with the same --seed or --prompts")
    for id in dict.fromkeys(id for id, _ in keys):
        for other, theirs in zip(evaluations[1:], prompts[1:], strict=True):
            mine, its = prompts[0].get(id), theirs.get(id)
            if mine is None or its is None or asdict(mine) != asdict(its):
                raise ValueError(
                    f"{suite}: protocol differs in prompts: {id} does not ask for the same in {evaluations[0].name} "
                    f"and {other.name}; run evaluate with the same --seed, or --prompts of the other"
                )
    return [[found[key] for key in keys] for found in results]


def _check_protocol(suite: str, first: Evaluation, second: Evaluation) -> None:
    one, other = _flat(first.part(suite)["protocol"]), _flat(second.part(suite)["protocol"])
    for field in dict.fromkeys([*one, *other]):
        loose = () if first.part(suite).get("kind") == "distribution" else ("prompts", "rounds")
        if field not in loose and one.get(field) != other.get(field):
            raise ValueError(
                f"{suite}: protocol differs in {field}: {first.name} has {one.get(field)!r}, {second.name} has "
                f"{other.get(field)!r}; their figures cannot be compared, run one of them again"
            )


def _flat(protocol: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in protocol.items():
        flat.update(_flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {f"{before}{name}": value})
    return flat


def _compared(suite: str, evaluations: Sequence[Evaluation], seed: int) -> dict[str, Any]:
    shared = shared_results(suite, evaluations)
    part = evaluations[0].part(suite)
    figures = [figures_of(results, seed) for results in shared]
    return {
        "suite": suite,
        "about": part["about"],
        "headline": part["headline"],
        "prompts": len({result.id for result in shared[0]}),
        "pictures": len(shared[0]),
        "left_out": [each.part(suite)["pictures"] - len(shared[0]) for each in evaluations],
        "rows": [
            {**row, "name": f"{each.name}: {row['name']}"}
            for each in evaluations
            for row in each.part(suite).get("rows", [])
            if row["what"] != "real" or each is evaluations[0]
        ],
        "figures": figures,
        "differences": [
            {metric: _difference(shared[0], results, metric, seed) for metric in figures[0]} for results in shared[1:]
        ],
        "categories": [by_category(results, seed) for results in shared],
        "apart": _most_apart(shared, [each.folder / each.part(suite)["folder"] for each in evaluations], part),
    }


def _difference(first: Sequence[Result], other: Sequence[Result], metric: str, seed: int) -> dict[str, Any] | None:
    """Of the other to the first: mean over prompts, and its interval from prompts drawn with replacement."""
    pairs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one, two in zip(first, other, strict=True):
        mine, its = one.scores.get(metric), two.scores.get(metric)
        if mine is not None and its is not None:
            pairs[one.id].append((mine, its))
    if not pairs:
        return None
    means = np.array([np.mean(values, axis=0) for values in pairs.values()])
    found = paired_interval(means[:, 1], means[:, 0], seed)
    return {"value": found.value, "low": found.low, "high": found.high, "count": len(pairs), "scale": scale_of(metric)}


def _most_apart(
    shared: Sequence[Sequence[Result]], folders: Sequence[Path], part: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The pictures whose headline scores differ most, each winner by turns."""

    def scores(row: Sequence[Result]) -> list[float]:
        return [result.scores.get(part["headline"]) or 0.0 for result in row]

    rows = sorted(zip(*shared, strict=True), key=lambda row: min(scores(row)) - max(scores(row)))
    winners: dict[int, list[tuple[Result, ...]]] = defaultdict(list)
    for row in rows:
        if max(scores(row)) > min(scores(row)):
            winners[int(np.argmax(scores(row)))].append(row)
    turns = [row for rank in range(MOST_SHOWN) for group in winners.values() for row in group[rank : rank + 1]]
    return [
        {
            "text": row[0].text,
            "category": row[0].category,
            "pictures": [
                {**asdict(result), "path": str(folder / result.picture)}
                for result, folder in zip(row, folders, strict=True)
            ],
        }
        for row in turns[:MOST_SHOWN]
    ]
