"""PartiPrompts are read as they are published."""

import os
from pathlib import Path

import pytest

from ar_t2i.evaluation.suites.parti import parti_suite

ROWS = [("a cat", "Animals"), ('a "dog"', "Animals"), ("tea & cake", "Food & Beverage"), ("a cow", "Animals")]
PUBLISHED = Path(os.environ.get("AR_T2I_PARTI_PROMPTS", "PartiPrompts.tsv"))
"""The published file, where there is one."""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "prompts.tsv"
    lines = ["Prompt\tCategory\tChallenge\tNote", *(f"{text}\t{category}\tBasic\t" for text, category in ROWS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_prompts_of_a_table(table):
    suite = parti_suite(table)
    assert (suite.scored_by, suite.headline, suite.score) == ("clip", "clip", None)
    prompts = suite.prompts(2, 0)
    assert [prompt.category for prompt in prompts] == ["Animals", "Animals", "Food & Beverage"]
    every = suite.prompts(9, 0)
    assert {(prompt.text, prompt.category) for prompt in every} == set(ROWS)
    assert every[:2] == prompts[:2] and len({prompt.id for prompt in every}) == 4
    assert prompts[2].id == "food_and_beverage-0002" and prompts[2].asked is None
    assert len({tuple(prompt.id for prompt in suite.prompts(3, seed)) for seed in range(6)}) > 1


def test_a_data_set_gives_the_same(table, tmp_path):
    from datasets import Dataset

    folder = tmp_path / "parti"
    rows = [{"Prompt": text, "Category": category} for text, category in ROWS]
    folder.mkdir()
    Dataset.from_list(rows).to_parquet(str(folder / "train.parquet"))
    assert parti_suite(folder).prompts(9, 3) == parti_suite(table).prompts(9, 3)


def test_what_is_no_table_is_told(tmp_path):
    (tmp_path / "other.tsv").write_text("Text\na cat\n")
    (tmp_path / "empty.tsv").write_text("Prompt\tCategory\n")
    for name, words in (("none.tsv", "none.tsv"), ("other.tsv", "Category"), ("empty.tsv", "no prompt")):
        with pytest.raises(ValueError, match=words):
            parti_suite(tmp_path / name).prompts(1, 0)


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="AR_T2I_PARTI_PROMPTS names no file")
def test_the_published_prompts():
    prompts = parti_suite(PUBLISHED).prompts(10_000, 0)
    assert len(prompts) == 1632 and len({prompt.category for prompt in prompts}) == 12
