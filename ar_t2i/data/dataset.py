"""A tokenized dataset as training examples: validated once, memory-mapped, any row at any time.

The ids of the text come from the `text` column and this run's vocabulary, never from `text_tokens`, whose ids mean
nothing in another vocabulary.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ar_t2i.data.permutation import permuted, uniform
from ar_t2i.hub.cards import read_card
from ar_t2i.hub.names import link_to, resolve
from ar_t2i.hub.remote import patiently
from ar_t2i.sequence import sequence_ids, sequence_length
from ar_t2i.untrusted import leads_out, printable, read_text
from ar_t2i.vocabulary import Vocabulary
from ar_t2i.words import words_of

if TYPE_CHECKING:
    import datasets

CODES, TEXT = "image_tokens", "text"
DATA_FILES = ("README.md", "*.parquet", "*/*.parquet", "*/*/*.parquet")
"""Of a dataset on the Hub, what is read."""


class TokenizedDataset:
    """Rows of a tokenized dataset as sequences of ids.

    Row i in epoch e is the same whoever asks and whenever: its caption dropout and BPE-dropout are drawn from (seed,
    e, i).

    Attributes:
        num_codes: codes of a picture, T.
        lengths: (N,) int32, ids of each whole sequence without BPE-dropout.
        truncated: captions that were longer than `max_caption_length`.
    """

    def __init__(
        self,
        rows: "datasets.Dataset",
        vocabulary: Vocabulary,
        *,
        max_caption_length: int,
        num_codes: int = 0,
        caption_dropout: float = 0.0,
        bpe_dropout: float = 0.0,
        seed: int = 0,
    ):
        """Check every row and encode every caption; the result is cached on disk by the datasets library.

        Args:
            rows: a table with columns `image_tokens` and `text`.
            vocabulary: the joint vocabulary.
            max_caption_length: ids of a caption that are kept; the rest is cut and counted.
            num_codes: codes a picture; 0 takes what the first row has.
            caption_dropout: chance that an example has no caption.
            bpe_dropout: chance that a merge is skipped.
            seed: of both dropouts.

        Raises:
            ValueError: no rows, missing columns, a row with too few or too many codes, a code out of range; the row
                is named.
        """
        missing = {CODES, TEXT} - set(rows.column_names)
        if missing:
            raise ValueError(f"the dataset lacks the columns {sorted(missing)}; it has {rows.column_names}")
        if len(rows) == 0:
            raise ValueError("the dataset has no rows")
        self.num_codes = num_codes or len(rows[0][CODES])
        self.vocabulary, self.max_caption_length, self.seed = vocabulary, max_caption_length, seed
        self.caption_dropout, self.bpe_dropout = caption_dropout, bpe_dropout
        if bpe_dropout:
            vocabulary.encode_caption_with_dropout("", 0.0, np.random.default_rng(0))  # fails now if it ever would
        self.texts = rows.select_columns([TEXT])
        self.rows = _encode(rows, vocabulary, self.num_codes)
        caption_lengths = _numpy_column(self.rows, "caption_length")
        self.truncated = int((caption_lengths > max_caption_length).sum())
        lengths: Any = sequence_length(np.minimum(caption_lengths, max_caption_length), self.num_codes)  # type: ignore[arg-type]
        self.lengths = lengths.astype(np.uint16 if lengths.max(initial=0) < 2**16 else np.int64)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def window(self) -> int:
        """Rows that are shuffled together: all."""
        return len(self)

    def sequence(self, index: int, epoch: int = 0) -> np.ndarray:
        """The ids of row `index` in epoch `epoch`, int64."""
        return self.sequences(np.array([index]), np.array([epoch]))[0]

    def sequences(self, indices: np.ndarray, epochs: np.ndarray) -> list[np.ndarray]:
        """The ids of rows, each in an epoch, int64; many at once cost less."""
        rows = self.rows[indices.tolist()]
        captions: list[Sequence[int]] = rows["caption"]
        bare = self.has_no_caption(indices, epochs)
        if self.bpe_dropout:
            texts = self.texts[indices.tolist()][TEXT]
            rngs = (np.random.default_rng((self.seed, *pair)) for pair in zip(epochs, indices, strict=True))
            captions = [
                () if dropped else self.vocabulary.encode_caption_with_dropout(text or "", self.bpe_dropout, rng)
                for text, rng, dropped in zip(texts, rngs, bare, strict=True)
            ]
        return [
            sequence_ids(self.vocabulary, () if dropped else caption[: self.max_caption_length], codes)
            for caption, codes, dropped in zip(captions, rows["codes"], bare, strict=True)
        ]

    def words(self) -> frozenset[str]:
        """The words of all captions, as `ar_t2i.words` has them; cached on disk by the datasets library."""
        import datasets

        fingerprint = datasets.fingerprint.Hasher.hash((self.texts._fingerprint, "words-1"))
        found = self.texts.map(
            lambda batch: {"word": sorted(words_of(text or "" for text in batch[TEXT]))},
            batched=True,
            batch_size=10_000,
            remove_columns=[TEXT],
            features=datasets.Features(word=datasets.Value("string")),
            new_fingerprint=fingerprint,
            desc="collecting words",
        )
        words: set[str] = set()
        for start in range(0, len(found), 100_000):
            words.update(found[start : start + 100_000]["word"])
        return frozenset(words)

    def shuffled(self, positions: np.ndarray, key: Sequence[int]) -> np.ndarray:
        """The rows that stand at some positions of an epoch's order, (n,) int64."""
        return permuted(positions, len(self), key)

    def has_no_caption(self, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Whether rows go without their caption in an epoch, (n,) bool."""
        return uniform(indices, epochs, self.seed) < self.caption_dropout

    def lengths_of(self, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Lengths of the sequences of rows in an epoch, (n,) integers; dropped merges make them longer."""
        without = sequence_length(0, self.num_codes)
        return np.where(self.has_no_caption(indices, epochs), without, self.lengths[indices])

    def digest(self) -> str:
        """sha256 hex over the lengths of all rows and the codes of the first thousand: tells datasets apart."""
        first = self.rows.select(range(min(1000, len(self)))).with_format("numpy")["codes"][:]
        return hashlib.sha256(self.lengths.tobytes() + np.concatenate(first).tobytes()).hexdigest()

    def code_entropy(self, most_rows: int = 10_000) -> float:
        """Entropy in nats of the codes' frequencies: the image loss of a model that knows only these."""
        sample = self.rows.select(range(min(most_rows, len(self))))
        counts = np.bincount(
            np.concatenate(sample.with_format("numpy")["codes"][:]), minlength=self.vocabulary.codebook_size
        )
        chances = counts[counts > 0] / counts.sum()
        return float(-(chances * np.log(chances)).sum())


def load_rows(source: str | Path, split: str, limit: int = 0) -> "datasets.Dataset":
    """One split of a tokenized dataset, as the datasets library loads it.

    Args:
        source: a folder, a parquet file, or an id of the Hub, with `@revision` where it is not main, whose parquet
            files are compared with their checksums.
        split: name of the split.
        limit: rows to keep; 0 keeps all.

    Raises:
        ValueError: nothing there, no such split, or damaged files.
    """
    import datasets

    folder = resolve(source, DATA_FILES, "dataset") if link_to(str(source)) else source
    check_card(Path(folder))

    def load() -> Any:
        if str(source).endswith(".parquet"):
            return datasets.load_dataset("parquet", data_files={split: str(source)}, split=split)
        return datasets.load_dataset(str(folder), split=split)

    rows = patiently(load, f"load the split {split!r} of the dataset {str(source)!r}")
    assert isinstance(rows, datasets.Dataset)
    return rows.select(range(min(limit, len(rows)))) if limit else rows


def check_card(folder: Path) -> None:
    """Refuse a folder whose card names data elsewhere: the datasets library would open any path and any address.

    Raises:
        ValueError: the card names such data, or cannot be read.
    """
    card = folder / "README.md"
    if not card.is_file():
        return

    def look(value: Any) -> None:
        if isinstance(value, (dict, list)):
            for part in value.values() if isinstance(value, dict) else value:
                look(part)
        elif leads_out(str(value)):
            raise ValueError(f"{card} names {printable(str(value))[:200]!r} as data, expected files of its folder")

    try:
        header, _ = read_card(read_text(card), str(card))
    except OSError as error:
        raise ValueError(f"{card} cannot be read: {error}") from error
    for config in header.get("configs") or []:
        if isinstance(config, dict):
            look([config.get("data_files"), config.get("data_dir")])


def _encode(rows: "datasets.Dataset", vocabulary: Vocabulary, num_codes: int) -> "datasets.Dataset":
    import datasets

    def encode(batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        for index, codes in zip(indices, batch[CODES], strict=True):
            check_codes(codes, index, num_codes, vocabulary.codebook_size)
        captions = vocabulary.encode_captions([text or "" for text in batch[TEXT]])
        return {"caption": captions, "codes": batch[CODES], "caption_length": [len(caption) for caption in captions]}

    features = datasets.Features(
        caption=datasets.List(datasets.Value("int32")),
        codes=datasets.List(datasets.Value("uint16"), length=num_codes),
        caption_length=datasets.Value("int32"),
    )
    fingerprint = datasets.fingerprint.Hasher.hash((rows._fingerprint, vocabulary.fingerprint, num_codes, "encode-1"))
    return rows.map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=rows.column_names,
        features=features,
        new_fingerprint=fingerprint,
        desc="encoding captions",
    )


def check_codes(codes: Sequence[int], index: int, num_codes: int, codebook_size: int) -> None:
    """Raise ValueError for a row with too few or too many codes, or with one that is out of range."""
    if codes is not None and not all(type(code) is int for code in codes):
        raise ValueError(f"row {index} has codes that are no whole numbers; preprocess this shard again")
    count = 0 if codes is None else len(codes)
    if count != num_codes:
        raise ValueError(f"row {index} has {count} codes, expected {num_codes}; preprocess this shard again")
    if min(codes) < 0 or max(codes) >= codebook_size:
        wrong = min(codes) if min(codes) < 0 else max(codes)
        raise ValueError(
            f"row {index} has the code {wrong}, expected 0..{codebook_size - 1}: another image tokenizer's data?"
        )


def _numpy_column(rows: "datasets.Dataset", name: str) -> np.ndarray:
    return rows.select_columns([name]).with_format("numpy")[:][name]
