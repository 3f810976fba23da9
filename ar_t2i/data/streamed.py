"""A tokenized dataset that is never stored here: its row groups are read from where they lie as they are needed.

The order of an epoch keeps what is read together together: row groups are shuffled, then the rows of some of them at a
time, about `WINDOW_ROWS`. It is a function of seed and epoch, so a resumed run goes on exactly where it stopped.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ar_t2i.data.dataset import CODES, TEXT, check_card, check_codes
from ar_t2i.data.permutation import permuted, uniform
from ar_t2i.hub.names import link_to
from ar_t2i.hub.remote import patiently
from ar_t2i.sequence import sequence_ids
from ar_t2i.untrusted import printable
from ar_t2i.vocabulary import Vocabulary

WINDOW_ROWS = 50_000
"""Rows that are shuffled together, and about as many are held in memory."""


class _Group(NamedTuple):
    """A row group: some MB of one file."""

    url: str
    number: int
    """Within the file."""
    rows: int
    bytes: int
    """Of its pages, uncompressed."""


class StreamedDataset:
    """Rows as sequences of ids, as `TokenizedDataset` has them, without a copy on the disk.

    Attributes:
        num_codes: codes of a picture, T.
        truncated: always 0: captions that are cut are not counted ahead.
    """

    truncated = 0

    def __init__(
        self,
        source: str,
        split: str,
        vocabulary: Vocabulary,
        *,
        max_caption_length: int,
        num_codes: int,
        caption_dropout: float = 0.0,
        bpe_dropout: float = 0.0,
        seed: int = 0,
    ):
        """Read the footers of all files of the split; for the arguments see `load_rows` and `TokenizedDataset`.

        Raises:
            ValueError: nothing there, no such split, no rows, missing columns.
        """
        self.vocabulary, self.num_codes, self.seed = vocabulary, num_codes, seed
        self.max_caption_length = max_caption_length
        self.caption_dropout, self.bpe_dropout = caption_dropout, bpe_dropout
        self._files: dict[str, Any] = {}
        self._process = os.getpid()
        self._held: OrderedDict[int, tuple[np.ndarray, Sequence[str]]] = OrderedDict()
        self.groups = [group for url in _urls(source, split) for group in self._footer(url)]
        self.starts = np.concatenate([[0], np.cumsum([group.rows for group in self.groups])])
        if len(self) == 0:
            raise ValueError(f"the split {split!r} of the dataset {source!r} has no rows")

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.starts[-1])

    @property
    def window(self) -> int:
        """Rows that are shuffled together, about."""
        return min(len(self), WINDOW_ROWS)

    def shuffled(self, positions: np.ndarray, key: Sequence[int]) -> np.ndarray:
        """The rows that stand at some positions of an epoch's order, (n,) int64.

        Those that are read together stand near each other: row groups come in a random order, and the rows of some of
        them at a time, a window, are shuffled together.
        """
        groups = np.random.default_rng(tuple(key)).permutation(len(self.groups))
        ends = np.cumsum(np.diff(self.starts)[groups])  # where each group ends if all stand in this order
        rows = np.empty(len(positions), dtype=np.int64)
        first = 0
        while first < len(groups):
            begin = int(ends[first - 1]) if first else 0
            last = int(np.searchsorted(ends, begin + WINDOW_ROWS)) + 1
            end = int(ends[min(last, len(groups)) - 1])
            chosen = (positions >= begin) & (positions < end)
            if chosen.any():
                places = begin + permuted(positions[chosen] - begin, end - begin, (*key, first))
                number = np.searchsorted(ends, places, side="right")
                rows[chosen] = self.starts[groups[number] + 1] - (ends[number] - places)
            first = last
        return rows

    def has_no_caption(self, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Whether rows go without their caption in an epoch, (n,) bool."""
        return uniform(indices, epochs, self.seed) < self.caption_dropout

    def lengths_of(self, indices: np.ndarray, epochs: np.ndarray) -> np.ndarray:
        """Letters of the captions of rows in an epoch, (n,) int64: what sorting by length needs."""
        found = np.zeros(len(indices), dtype=np.int64)
        numbers = np.searchsorted(self.starts, indices, side="right") - 1
        for number in np.unique(numbers).tolist():
            _, texts = self._rows(number)
            chosen = np.flatnonzero(numbers == number)
            found[chosen] = [len(texts[row] or "") for row in indices[chosen] - int(self.starts[number])]
        return np.where(self.has_no_caption(indices, epochs), 0, found)

    def sequence(self, index: int, epoch: int = 0) -> np.ndarray:
        """The ids of row `index` in epoch `epoch`, int64; the same as those of `TokenizedDataset`."""
        return self.sequences(np.array([index]), np.array([epoch]))[0]

    def sequences(self, indices: np.ndarray, epochs: np.ndarray) -> list[np.ndarray]:
        """The ids of rows, each in an epoch, int64; many at once cost less."""
        numbers = np.searchsorted(self.starts, indices, side="right") - 1
        codes, texts = [], []
        for number, row in zip(numbers.tolist(), (indices - self.starts[numbers]).tolist(), strict=True):
            group_codes, group_texts = self._rows(number)
            codes.append(group_codes[row])
            texts.append(group_texts[row] or "")
        bare = self.has_no_caption(indices, epochs)
        if self.bpe_dropout:
            rngs = (np.random.default_rng((self.seed, *pair)) for pair in zip(epochs, indices, strict=True))
            captions: Sequence[Sequence[int]] = [
                () if dropped else self.vocabulary.encode_caption_with_dropout(text, self.bpe_dropout, rng)
                for text, rng, dropped in zip(texts, rngs, bare, strict=True)
            ]
        else:
            captions = self.vocabulary.encode_captions(texts)
        return [
            sequence_ids(self.vocabulary, () if dropped else caption[: self.max_caption_length], row)
            for caption, row, dropped in zip(captions, codes, bare, strict=True)
        ]

    def digest(self) -> str:
        """sha256 hex over the names of the files, and rows and bytes of their row groups: tells datasets apart."""
        lines = "".join(
            f"{group.url.rpartition('/')[2]} {group.number} {group.rows} {group.bytes}\n" for group in self.groups
        )
        return hashlib.sha256(lines.encode()).hexdigest()

    def code_entropy(self) -> float:
        """Entropy in nats of the codes' frequencies in the first row group."""
        counts = np.bincount(self._rows(0)[0].flatten(), minlength=self.vocabulary.codebook_size)
        chances = counts[counts > 0] / counts.sum()
        return float(-(chances * np.log(chances)).sum())

    def __getstate__(self) -> dict[str, Any]:
        """Open files and rows stay in their process."""
        return {**self.__dict__, "_files": {}, "_held": OrderedDict()}

    def _rows(self, number: int) -> tuple[np.ndarray, Sequence[str]]:
        """Codes (N, T) and captions of a row group, which is held while there is room."""
        if number not in self._held:
            group = self.groups[number]
            while self._held and sum(len(texts) for _, texts in self._held.values()) + group.rows > 2 * WINDOW_ROWS:
                self._held.popitem(last=False)
            self._held[number] = self._read(group, int(self.starts[number]))
        self._held.move_to_end(number)
        return self._held[number]

    def _read(self, group: _Group, start: int) -> tuple[np.ndarray, Sequence[str]]:
        def read() -> Any:
            try:
                return self._open(group.url).read_row_group(group.number, columns=[CODES, TEXT])
            except Exception as error:
                self._files.pop(group.url, None)  # neither a broken connection nor damaged bytes are used again
                if isinstance(error, OSError) and "CRC" in str(error):
                    raise ConnectionError(f"bytes came damaged: {error}") from error
                raise

        table = patiently(read, f"read {group.url}")
        rows = table[CODES].to_pylist()
        for number, codes in enumerate(rows):
            check_codes(codes, start + number, self.num_codes, self.vocabulary.codebook_size)
        return np.array(rows, dtype=np.int64), table[TEXT].to_pylist()

    def _footer(self, url: str) -> list[_Group]:
        footer = patiently(lambda: self._open(url), f"read {url}")
        if missing := {CODES, TEXT} - set(footer.schema_arrow.names):
            raise ValueError(f"{url} lacks the columns {sorted(missing)}; it has {footer.schema_arrow.names}")
        groups = [footer.metadata.row_group(number) for number in range(footer.num_row_groups)]
        absurd = [group for group in groups if not 0 <= group.num_rows <= max(group.total_byte_size, 0)]
        if absurd:
            raise ValueError(f"{url} claims {absurd[0].num_rows:,} rows of {absurd[0].total_byte_size:,} bytes")
        return [_Group(url, number, group.num_rows, group.total_byte_size) for number, group in enumerate(groups)]

    def _open(self, url: str) -> Any:
        import fsspec
        import pyarrow.parquet as pq

        if self._process != os.getpid():  # a worker that was forked must not share connections
            self._files, self._process = {}, os.getpid()
        if url not in self._files:
            file: Any = fsspec.open(url, "rb")
            self._files[url] = pq.ParquetFile(file.open(), pre_buffer=True, page_checksum_verification=True)
        return self._files[url]


def _urls(source: str, split: str) -> list[str]:
    """The parquet files of a split, with the commit in the names of those on the Hub."""
    import datasets

    if source.endswith(".parquet"):
        return [source]
    name, _, revision = source.partition("@") if link_to(source) else (source, "", "")
    check_card(Path(source))
    where: dict[str, Any] = {"revision": revision or None}
    builder = patiently(lambda: datasets.load_dataset_builder(name, **where), f"find the dataset {source!r}")
    files = builder.config.data_files
    if not files or split not in files:
        raise ValueError(f"the dataset {source!r} has no split {split!r}; it has {', '.join(map(str, files or {}))}")
    urls = [str(url) for url in files[split]]
    home = f"hf://datasets/{name}@" if link_to(source) else os.path.join(os.path.abspath(source), "")
    outside = [url for url in urls if not url.startswith((home, os.path.realpath(source)))]
    if outside:
        raise ValueError(
            f"the card of {source!r} names {printable(outside[0])[:200]!r} as data, expected its own files"
        )
    return urls
