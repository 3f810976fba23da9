"""The verb `evaluate blind`: a page to choose between pictures without knowing whose they are, and its votes."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ar_t2i.evaluation.compare import Evaluation, open_evaluations, shared_results, shared_suites
from ar_t2i.evaluation.pictures import fingerprint
from ar_t2i.evaluation.report.page import page, picture_uri
from ar_t2i.evaluation.results import Result
from ar_t2i.evaluation.statistics import Share, mean_interval
from ar_t2i.untrusted import read_text

COLUMNS = ("suite", "id", "round", "prompt", "left", "right", "choice")
WORTH = {"left": 1.0, "tie": 0.5, "right": 0.0}
_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class BlindConfig:
    """Make a page of two models' pictures in random order and sides, or count its votes."""

    reports: tuple[str, ...]
    """Two folders that evaluate wrote."""
    count: int = 100
    """Pairs on the page at most, of the prompts that both have."""
    seed: int = 0
    """Seed of the choice of prompts, their order, and the sides."""
    out: str = "blind.html"
    """File of the page."""
    result: str = ""
    """File of votes, which the page saves: say who was preferred, and write no page."""

    def __post_init__(self) -> None:
        """Check the number."""
        if len(self.reports) != 2:
            raise ValueError(f"{len(self.reports)} reports: expected two folders that evaluate wrote")
        if self.count < 1 or not 0 <= self.seed < 2**32:
            raise ValueError(f"count={self.count}, seed={self.seed}: expected at least 1, and 0 to {2**32 - 1}")


def blind(config: BlindConfig) -> dict[str, Any]:
    """Write the page, or count the votes of `config.result`.

    Returns:
        The number of pairs and the page; or the preference.

    Raises:
        ValueError: reports that cannot be compared, or votes that are damaged or not about these two.
    """
    evaluations = open_evaluations(config.reports)
    if config.result:
        preference = count_votes(config.result, evaluations, config.seed)
        print(_said(preference))
        return preference
    pairs = _pairs(evaluations, config)
    held = {"columns": COLUMNS, "pairs": pairs, "name": f"votes-{_sign(evaluations[0])}-{_sign(evaluations[1])}.csv"}
    text = page("Which picture is better?", _BODY, "blind.js", json.dumps(held, ensure_ascii=False))
    try:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        Path(config.out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"cannot write out={config.out!r}: {error.strerror}; give another file") from error
    print(f"{config.out}: {len(pairs)} pairs; give the votes that it saves to --result")
    return {"pairs": len(pairs), "out": config.out}


def count_votes(path: str, evaluations: Sequence[Evaluation], seed: int = 0) -> dict[str, Any]:
    """How often the first model was preferred; a tie counts as half.

    The interval is Wilson's where each prompt has one vote and none is a tie, else a bootstrap over prompts.

    Raises:
        ValueError: no votes, or one that is damaged, comes twice, or is about other models; the line is named.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(Path(path)).removeprefix("\ufeff"))))
    except (OSError, csv.Error) as error:
        raise ValueError(f"cannot read result={path!r}: {error}") from error
    if not rows:
        raise ValueError(f"result={path!r} holds no votes: expected the file that the page saves")
    signs = [_sign(each) for each in evaluations]
    votes: dict[tuple[str, str], list[float]] = defaultdict(list)
    tally = {"first": 0, "tie": 0, "second": 0}
    seen = set()
    for number, row in enumerate(rows, 2):
        where = f"result={path!r}, line {number}"
        if any(row.get(column) is None for column in COLUMNS) or row["choice"] not in WORTH:
            raise ValueError(f"{where} is no vote: expected {', '.join(COLUMNS)}, choice one of {', '.join(WORTH)}")
        if {row["left"], row["right"]} != set(signs):
            raise ValueError(f"{where} is about other models: expected the two reports that the page was made of")
        key = row["suite"], row["id"], row["round"]
        if key in seen:
            raise ValueError(f"{where}: {row['id']}, round {row['round']}, has a vote already; count each page alone")
        seen.add(key)
        worth = WORTH[row["choice"]] if row["left"] == signs[0] else 1 - WORTH[row["choice"]]
        votes[row["suite"], row["id"]].append(worth)
        tally["tie" if worth == 0.5 else "first" if worth else "second"] += 1
    means = [float(np.mean(values)) for values in votes.values()]
    if len(means) == len(rows) and set(means) <= {0.0, 1.0}:
        (low, high), how = Share(round(sum(means)), len(means)).interval, "Wilson"
    else:
        found = mean_interval(means, seed)
        low, high, how = found.low, found.high, "bootstrap"
    value = float(np.mean(means))
    names = [each.name for each in evaluations]
    figures = {"value": value, "low": low, "high": high, "interval": how, "prompts": len(means), "votes": len(rows)}
    return {"first": names[0], "second": names[1], "tally": tally, **figures}


def _pairs(evaluations: Sequence[Evaluation], config: BlindConfig) -> list[dict[str, Any]]:
    """What the page shows; which model stands where is told by signs alone."""
    found: list[tuple[str, Result, Result]] = []
    for suite in shared_suites(evaluations):
        first, second = shared_results(suite, evaluations)
        found += [(suite, one, other) for one, other in zip(first, second, strict=True)]
    rng = np.random.default_rng(config.seed)
    pairs = []
    for index in rng.permutation(len(found))[: config.count]:
        suite, *results = found[index]
        order = (1, 0) if rng.random() < 0.5 else (0, 1)
        each = {"suite": suite, "id": results[0].id, "round": results[0].round, "prompt": results[0].text}
        for side, model in zip(("left", "right"), order, strict=True):
            folder = evaluations[model].folder / evaluations[model].part(suite)["folder"]
            each[side] = _sign(evaluations[model])
            each[f"{side}_picture"] = picture_uri(folder / results[model].picture, _SIZE)
        pairs.append(each)
    return pairs


def _sign(evaluation: Evaluation) -> str:
    """Stands for a model without naming it."""
    source = evaluation.report["source"]
    return fingerprint([source["name"], source["settings"], evaluation.report["created"]])[:8]


def _said(preference: dict[str, Any]) -> str:
    tally = preference["tally"]
    return (
        f"{preference['first']} preferred to {preference['second']}: {100 * preference['value']:.1f} % "
        f"({100 * preference['low']:.1f} to {100 * preference['high']:.1f}, {preference['interval']}); "
        f"{tally['first']} : {tally['second']}, {tally['tie']} ties, of {preference['votes']} votes"
    )


_BODY = """<main class="blind"><div id="progress"><i></i></div>
<header><div><div class="over">Which picture is better?</div><h1 id="prompt"></h1></div>
<button id="theme" title="change between dark and light">◐</button></header>
<div class="two"><button id="left"><img alt="left picture"></button>
<button id="right"><img alt="right picture"></button></div>
<div class="tools"><span id="count"></span><button id="tie">equally good <kbd>↓</kbd></button>
<button id="undo">undo <kbd>Backspace</kbd></button><a id="save" class="button">save votes</a></div>
<p class="soft">Keys: <kbd>←</kbd> left, <kbd>→</kbd> right, <kbd>↓</kbd> equal, <kbd>Backspace</kbd> undo.
Votes are kept in this page alone: save them before you close it.</p></main>"""
