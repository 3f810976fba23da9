"""One suite from prompts to figures: made, drawn, read, scored, kept."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ar_t2i import __version__
from ar_t2i.evaluation.alignment import ClipScorer
from ar_t2i.evaluation.judge import Reading
from ar_t2i.evaluation.pictures import check_ids, draw_missing, fingerprint, picture_name
from ar_t2i.evaluation.prompts import Prompt, write_prompts
from ar_t2i.evaluation.provenance import digest_of
from ar_t2i.evaluation.results import (
    RESULTS,
    Result,
    by_category,
    figures_of,
    read_results,
    reading_facts,
    write_results,
)
from ar_t2i.evaluation.sources import CROP, Source
from ar_t2i.evaluation.suites import Detector, Scores, Suite

PROMPTS = "prompts.jsonl"
MOST_EXAMPLES = 12
"""Pictures that are right, and so many that are wrong, in a report."""


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """What scores the pictures of a suite."""

    facts: dict[str, Any]
    """Name, weights and settings, for reports; pictures are scored again where they differ."""
    score: Callable[[Sequence[Prompt], Sequence[Image.Image]], list[tuple[Scores, Reading | None]]]
    """Scores of each picture, and what was read in it, if anything is read."""


def by_detector(suite: Suite, detector: Detector, facts: dict[str, Any]) -> Scorer:
    """The suite's own scores of what a detector reads."""
    rate = suite.score
    assert rate is not None, "a suite that is scored by a detector has a score"

    def score(prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[tuple[Scores, Reading | None]]:
        readings = detector.read(images)
        return [(rate(prompt, reading), reading) for prompt, reading in zip(prompts, readings, strict=True)]

    return Scorer(facts=facts, score=score)


def by_clip(clip: ClipScorer) -> Scorer:
    """The cosine of picture and prompt."""

    def score(prompts: Sequence[Prompt], images: Sequence[Image.Image]) -> list[tuple[Scores, Reading | None]]:
        cosines = clip.score(images, [prompt.text for prompt in prompts])
        return [({"clip": cosine}, None) for cosine in cosines]

    return Scorer(facts={"name": "CLIP", "weights": weights_fingerprint(clip.name)}, score=score)


def run_suite(
    suite: Suite,
    prompts: Sequence[Prompt],
    source: Source,
    scorer: Scorer,
    out: Path,
    *,
    rounds: int = 1,
    seed: int = 0,
    batch_size: int = 32,
) -> dict[str, Any]:
    """Draw, score and sum up one suite; what is in its folder already and fits is not made again.

    Args:
        suite: gives names.
        prompts: of it.
        source: draws.
        scorer: scores.
        out: folder of the run; the suite's own folder in it takes prompts.jsonl, results.jsonl and pictures.
        rounds: pictures of each prompt.
        seed: of the run, and of the bootstrap.
        batch_size: pictures scored at a time.

    Returns:
        The suite's part of a report.

    Raises:
        ValueError: ids that cannot name pictures, prompts that cannot be drawn, or results that are damaged.
    """
    check_ids(prompts)
    folder = out / suite_folder(suite.name)
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder / PROMPTS, prompts)
    drawn = draw_all(suite.name, source, prompts, rounds, folder)
    drawing = time.perf_counter() - started
    results = _scored(suite, prompts, scorer, folder, rounds, seed, batch_size)
    return {
        "suite": suite.name,
        "folder": suite_folder(suite.name),
        "about": suite.about,
        "domain": suite.domain,
        "headline": suite.headline,
        "protocol": {
            "suite": suite.name,
            "prompts": fingerprint([asdict(prompt) for prompt in prompts]),
            "rounds": rounds,
            "scored_by": scorer.facts,
            "crop": CROP,
        },
        "prompts": len(prompts),
        "pictures": len(results),
        "figures": figures_of(results, seed),
        "categories": by_category(results, seed),
        "examples": examples(results, suite.headline),
        "drawn_now": drawn,
        "seconds_drawing": round_to(drawing),
        "seconds_scoring": round_to(time.perf_counter() - started - drawing),
    }


def draw_all(name: str, source: Source, prompts: Sequence[Prompt], rounds: int, folder: Path) -> int:
    """Draw what is missing of all rounds; returns how many pictures that were."""
    drawn = 0
    with tqdm(total=len(prompts) * rounds, desc=f"{name}: draw", unit="picture", disable=None) as bar:
        for round in range(rounds):
            new = 0
            for _ in draw_missing(source, prompts, round, folder):
                new += 1
                bar.update()
            bar.update(len(prompts) - new)
            drawn += new
    return drawn


def suite_folder(name: str) -> str:
    """Where a suite's files lie in the folder of a run."""
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", part) for part in name.split("/")]
    return "/".join(part.strip("-") or "suite" for part in parts if part)


def round_to(seconds: float) -> float:
    """To a hundredth."""
    return float(f"{seconds:.2f}")


def _scored(
    suite: Suite,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    folder: Path,
    rounds: int,
    seed: int,
    batch_size: int,
) -> list[Result]:
    """Results in the order of rounds and prompts; each batch is on disk before the next is read."""
    path = folder / RESULTS
    known = {(result.id, result.round): result for result in read_results(path)}
    wanted: list[tuple[Prompt, int, str, str]] = []
    found: dict[tuple[str, int], Result] = {}
    for round in range(rounds):
        for prompt in prompts:
            digest = hashlib.sha256((folder / picture_name(prompt, round)).read_bytes()).hexdigest()
            by = fingerprint([scorer.facts, suite.name, asdict(prompt), seed, __version__])
            old = known.get((prompt.id, round))
            if old is not None and (old.sha256, old.scorer) == (digest, by):
                found[prompt.id, round] = old
            else:
                wanted.append((prompt, round, digest, by))
    write_results(path, found.values())
    with tqdm(total=len(wanted), desc=f"{suite.name}: score", unit="picture", disable=None) as bar:
        for start in range(0, len(wanted), batch_size):
            part = wanted[start : start + batch_size]
            images = [opened(folder / picture_name(prompt, round)) for prompt, round, _, _ in part]
            scored = scorer.score([prompt for prompt, *_ in part], images)
            new = [
                Result(
                    id=prompt.id,
                    round=round,
                    seed=seed,
                    category=prompt.category,
                    text=prompt.text,
                    picture=picture_name(prompt, round),
                    sha256=digest,
                    scorer=by,
                    scores=dict(scores),
                    reading=reading_facts(reading) if reading is not None else None,
                )
                for (prompt, round, digest, by), (scores, reading) in zip(part, scored, strict=True)
            ]
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(asdict(result), ensure_ascii=False) + "\n" for result in new)
            found.update({(result.id, result.round): result for result in new})
            bar.update(len(part))
    results = [found[prompt.id, round] for round in range(rounds) for prompt in prompts]
    write_results(path, results)
    return results


def opened(path: Path) -> Image.Image:
    """A picture of a run, RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def examples(results: Sequence[Result], headline: str) -> dict[str, list[dict[str, Any]]]:
    """Pictures to show, the categories by turns: those with the best headline score, and those with the worst."""
    asked = [result for result in results if result.scores.get(headline) is not None]
    scores = [result.scores[headline] or 0.0 for result in asked]
    middle = 0.5 if set(scores) <= {0.0, 1.0} else sorted(scores)[len(scores) // 2]
    right = [result for result, score in zip(asked, scores, strict=True) if score > middle]
    wrong = [result for result, score in zip(asked, scores, strict=True) if score <= middle]
    return {
        name: [asdict(result) for _, result in zip(range(MOST_EXAMPLES), _by_turns(group), strict=False)]
        for name, group in (("right", right), ("wrong", wrong))
    }


def _by_turns(results: Sequence[Result]) -> Iterator[Result]:
    """One of each category, then the next of each."""
    categories: dict[str, list[Result]] = {}
    for result in results:
        categories.setdefault(result.category, []).append(result)
    for number in range(max((len(group) for group in categories.values()), default=0)):
        yield from (group[number] for group in categories.values() if number < len(group))


def weights_fingerprint(place: str | Path) -> str:
    """Of a file of weights, or of all in a folder, 16 digits; an id of the Hub as it is."""
    path = Path(place)
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return "-".join(digest_of(each)[:16] for each in files) or str(place)
