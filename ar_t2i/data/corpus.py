"""The verb `vocabulary`: captions from anywhere, read once, become a joint vocabulary."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ar_t2i.data.captions import clean_caption, iterate_captions
from ar_t2i.data.sample import Reason
from ar_t2i.data.shards import expand_sources
from ar_t2i.vocabulary import VOCABULARY_SIZE, Vocabulary


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    """Train the joint vocabulary: 9 special, 4096 image and up to 25,895 text ids."""

    sources: tuple[str, ...] = ()
    """Tars (braces, globs, urls), folders, csv, tsv, jsonl or parquet files, or Hub datasets as owner/name."""
    out: str
    """Folder for the tokenizer files."""
    size: int = VOCABULARY_SIZE
    """Ids in all; a small corpus yields fewer."""
    min_frequency: int = 2
    """A merge must occur this often in the corpus."""
    column: str | None = None
    """Column of the caption in tables and Hub datasets (default: caption, text or prompt)."""
    split: str = "train"
    """Split of a Hub dataset."""
    scenes: int = 0
    """Read the captions of this many drawn scenes too."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.sources and not self.scenes:
            raise ValueError("no captions: name a source, or give --scenes COUNT")
        if self.scenes < 0 or self.min_frequency < 1:
            raise ValueError(f"scenes={self.scenes}, min_frequency={self.min_frequency}: expected at least 0 and 1")


def train_vocabulary(config: VocabularyConfig) -> Vocabulary:
    """Train a vocabulary and write it to `config.out`.

    Raises:
        ValueError: a source that matches nothing, no caption, or a folder that cannot be written.
    """
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write out={config.out!r}: {error.strerror}; give another folder") from error
    vocabulary = Vocabulary.train(iterate_corpus(config), config.size, min_frequency=config.min_frequency)
    vocabulary.save_pretrained(out)
    count = f"{vocabulary.size:,} ids: {len(vocabulary.text_ids):,} text, {vocabulary.codebook_size:,} image"
    few = "" if vocabulary.size == config.size else f"; the corpus has too few merges for {config.size:,}"
    print(f"{out}: {count}{few}")
    return vocabulary


def iterate_corpus(config: VocabularyConfig) -> Iterator[str]:
    """All captions of a config, in constant memory."""
    hub = [
        source for source in config.sources if re.fullmatch(r"[\w-]+/[\w.-]+", source) and not Path(source).exists()
    ]
    local = [source for source in config.sources if source not in hub]
    files = iterate_captions(expand_sources(local, caption_column=config.column)) if local else iter(())
    return chain(files, *(_hub_captions(name, config) for name in hub), _scene_captions(config.scenes))


def _hub_captions(name: str, config: VocabularyConfig) -> Iterator[str]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        rows = datasets.load_dataset(name, split=config.split, streaming=True)
        names = [config.column] if config.column else ["caption", "text", "prompt"]
        first = next(iter(rows.take(1)))
    except (OSError, ValueError, StopIteration, DatasetNotFoundError) as error:
        raise ValueError(f"cannot read the Hub dataset {name!r}, split {config.split!r}: {error}") from error
    column = next((known for known in names if known in first), None)
    if column is None:
        raise ValueError(
            f"the Hub dataset {name!r} has no column {' or '.join(names)}; it has {sorted(first)}: give --column"
        )
    for row in rows.select_columns([column]):
        caption = clean_caption(row[column] or "")
        if not isinstance(caption, Reason):
            yield caption


def _scene_captions(count: int) -> Iterator[str]:
    from ar_t2i.data.scenes import scene_at

    return (scene_at(0, index, "train")[1].text for index in range(count))
