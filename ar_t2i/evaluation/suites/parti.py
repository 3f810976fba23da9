"""PartiPrompts (arXiv 2206.10789, section 4.2): 1,632 prompts in 12 categories, scored by the likeness to the text."""

import csv
import functools
from collections import defaultdict
from pathlib import Path

import numpy as np

from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.suites import Suite

COLUMNS = ("Prompt", "Category")


def parti_suite(source: str | Path) -> Suite:
    """PartiPrompts from where they are; the prompts do not come with the package.

    Args:
        source: the published PartiPrompts.tsv, or a folder or Hub id of a dataset with the columns "Prompt" and
            "Category", for example nateraw/parti-prompts.
    """
    return Suite(
        name="photos/parti",
        about="likeness of picture and prompt, by category (PartiPrompts, arXiv 2206.10789)",
        domain="photos",
        scored_by="clip",
        headline="clip",
        prompts=functools.partial(prompts, str(source)),
    )


def prompts(source: str, number: int, seed: int) -> list[Prompt]:
    """Up to so many prompts of each category, chosen by the seed.

    Raises:
        ValueError: nothing to be read at `source`, or not the columns of PartiPrompts.
    """
    by_category: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for line, (text, category) in enumerate(_rows(source)):
        by_category[category].append((line, text))
    chosen = []
    for place, (category, texts) in enumerate(sorted(by_category.items())):
        order = np.random.default_rng((seed, place)).permutation(len(texts))[:number]
        name = category.lower().replace(" & ", "_and_").replace(" ", "_")
        chosen += [
            Prompt(id=f"{name}-{texts[index][0]:04d}", text=texts[index][1], category=category) for index in order
        ]
    return chosen


@functools.lru_cache(maxsize=4)
def _rows(source: str) -> list[tuple[str, str]]:
    """Prompt and category of each row."""
    try:
        if source.endswith(".tsv"):
            with open(source, encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        else:
            from datasets import load_dataset

            rows = list(load_dataset(source, split="train"))
        found = [(str(row["Prompt"]).strip(), str(row["Category"]).strip()) for row in rows]  # type: ignore[call-overload]
    except Exception as error:  # datasets raises anything on what it cannot load
        raise ValueError(
            f"cannot read PartiPrompts from {source!r}: {' '.join(str(error).split())[:200] or type(error).__name__}; "
            f"expected PartiPrompts.tsv, or a dataset with the columns {' and '.join(COLUMNS)}"
        ) from error
    if not found:
        raise ValueError(f"no prompt in {source!r}: expected the rows of PartiPrompts")
    return found
