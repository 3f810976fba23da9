"""The verb `preprocess`: captioned pictures in, a tokenized dataset out.

shards --read--> samples --workers--> squares of pixels --image tokenizer--> codes --+
captions --vocabulary--> ids ------------------------------------+--> one part a shard
"""

import os
import platform
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, Literal

import pyarrow
import torch

import ar_t2i
from ar_t2i.data.captions import MAX_CAPTION_CHARS
from ar_t2i.data.decode import Decoder, batches, pictures
from ar_t2i.data.encode import Arithmetic, Encoder
from ar_t2i.data.images import CropRule, ImageLimits, Pixels
from ar_t2i.data.manifest import TokenizedFolder
from ar_t2i.data.preview import draw_preview
from ar_t2i.data.progress import Progress
from ar_t2i.data.sample import UnreadableShard
from ar_t2i.data.shards import Shard, expand_sources, iterate_samples
from ar_t2i.device import keep_freed_memory, return_freed_memory
from ar_t2i.hub.names import resolve
from ar_t2i.image_tokenizer import ImageTokenizer, load_image_tokenizer
from ar_t2i.vocabulary import Vocabulary

ROWS_PER_TRIM = 5_000
"""After so many, memory that parts left goes back to the system, which takes a tenth of a second."""


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig(ImageLimits):
    """Tokenize captioned pictures."""

    sources: tuple[str, ...]
    """Tars (braces, globs, urls, pipe:COMMAND), folders of pictures, or csv, tsv, jsonl, parquet tables."""
    out: str
    """Folder of the tokenized dataset; a second run goes on where the first stopped."""
    image_tokenizer: str
    """Folder of the image tokenizer: config.json and model.safetensors."""
    vocabulary: str | None = None
    """Folder of the joint vocabulary (default: the one that comes with the package)."""
    split: str = "train"
    """Split that these sources become; other splits of the folder stay as they are."""
    crop: CropRule = "center"
    """Shorter edge to the tokenizer's size, then the centre: as torchvision does it, or as guided diffusion (adm)."""
    pixels: Pixels = "exact"
    """Resized bit for bit as Pillow does, or 1.6 times as fast with some values off by 1 (fast): on photographs more
    than 99% of the codes stay the same, with an image tokenizer whose codes lie close together far fewer."""
    image_column: str | None = None
    """Column of the picture's path in tables (default: file_name, path, file, image and the like)."""
    caption_column: str | None = None
    """Column of the caption in tables, key of it in a tar's json (default: caption, text or prompt)."""
    max_caption_chars: int = MAX_CAPTION_CHARS
    """A longer caption is dropped, with its picture."""
    batch_size: int = 64
    """Pictures that are encoded together."""
    workers: int | None = None
    """Processes that decode pictures; 0 decodes in the main one (default: one less than there are cores for it)."""
    device: str = "auto"
    """Where the image tokenizer runs: auto, cuda, mps or cpu."""
    dtype: Arithmetic = "auto"
    """Arithmetic of the image tokenizer; auto takes bfloat16 where it is fast and gives 99% of the same codes."""
    engine: Literal["local", "ray"] = "local"
    """This machine, or the nodes of a Ray cluster (pip install 'ar_t2i[ray]'); --workers is then for all nodes."""
    encoders: int | None = None
    """With --engine ray: processes that encode (default: one a GPU, or where there is none one a core)."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        for name in ("batch_size", "max_caption_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers={self.workers}: expected 0 or more")
        if self.engine == "ray" and self.workers == 0:
            raise ValueError("workers=0: the cluster needs at least 1 with engine=ray")
        if self.encoders is not None and (self.encoders < 1 or self.engine != "ray"):
            raise ValueError(f"encoders={self.encoders}: expected at least 1, and engine=ray")
        if not re.fullmatch(r"\w+(\.\w+)*", self.split, re.ASCII):
            raise ValueError(f"split={self.split!r}: expected letters, digits and underscores, as in validation")

    @property
    def limits(self) -> ImageLimits:
        """The limits alone."""
        return ImageLimits(max_pixels=self.max_pixels, min_edge=self.min_edge, max_aspect=self.max_aspect)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What stands in the split now (this process's share of it), and what this run did."""

    out: str
    split: str
    parts: int
    """Finished parts."""
    new_parts: int
    """Of these, written by this run."""
    kept: int
    """Rows."""
    dropped: dict[str, int]
    """Samples left out, by reason, most frequent first."""
    pictures_per_second: float
    """Samples of this run, dropped ones included, by its time; 0 where there was nothing to do."""

    def __str__(self) -> str:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        dropped = f"{sum(self.dropped.values()):,} dropped" + (f" ({reasons})" if reasons else "")
        new = f"{self.new_parts} of {self.parts} parts new"
        speed = f", {self.pictures_per_second:,.1f} pictures/s" if self.new_parts else ""
        return f"{self.out}, split {self.split}: {self.kept:,} kept, {dropped}; {new}{speed}"


def preprocess(config: PreprocessConfig) -> Report:
    """Tokenize what `config.sources` name into `config.out`, and print how it went.

    Started as several processes (`accelerate launch`, `torchrun`), each does its share of the shards.

    Raises:
        ValueError: sources that match nothing, tokenizers that do not load or do not fit, a folder that cannot be
            written or was made with other settings, a killed worker; or, after all else is done, unreadable shards.
    """
    shards = expand_sources(config.sources, image_column=config.image_column, caption_column=config.caption_column)
    vocabulary = Vocabulary.from_pretrained(resolve(config.vocabulary or _shipped_vocabulary()))
    return tokenize_shards(shards, load_image_tokenizer(resolve(config.image_tokenizer)), vocabulary, config)


def tokenize_shards(
    shards: Sequence[Shard], image_tokenizer: ImageTokenizer, vocabulary: Vocabulary, config: PreprocessConfig
) -> Report:
    """`preprocess` with everything loaded."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    facts = _facts(image_tokenizer, vocabulary, config)
    folder = TokenizedFolder(config.out, config.split, shards, facts, _versions())
    mine = range(rank, len(shards), world)
    with folder.claim(rank, world):
        todo = dict(folder.unfinished(mine))
        with Progress(len(todo), shown=rank == 0) as progress:
            progress.say(_plan(folder, todo, len(mine)))
            work = _tokenize_on_cluster if config.engine == "ray" else _tokenize_here
            unreadable = work(folder, list(todo), image_tokenizer, vocabulary, config, progress)
    report = _report(folder, mine, todo.keys() - unreadable.keys(), progress.per_second)
    progress.say(str(report))
    if unreadable:
        raise ValueError(
            f"{len(unreadable)} of {len(mine)} shards have no part yet: {next(iter(unreadable.values()))}; "
            "all others are finished: run the same command again"
        )
    return report


def _tokenize_here(
    folder: TokenizedFolder, todo: Sequence[int], image_tokenizer: ImageTokenizer, vocabulary: Vocabulary,
    config: PreprocessConfig, progress: Progress,
) -> dict[int, UnreadableShard]:  # fmt: skip
    """Write the parts `todo`; returns the shards that could not be read."""
    keep_freed_memory()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())  # its own is not trimmed
    unreadable: dict[int, UnreadableShard] = {}
    rows = 0
    used = folder.arithmetics()
    encode = Encoder(image_tokenizer, _device(config), config.dtype, used, progress.say, folder.settle)
    with _decoder(image_tokenizer, config) as decode:
        if progress.shown:
            _show_rows(folder, image_tokenizer, encode.device)
        for number, samples in decode((number, iterate_samples(folder.shards[number])) for number in todo):
            try:
                with folder.part(number) as part:
                    ready = batches(progress.watch(samples), part.drop, config.batch_size)
                    for batch, codes in encode.ahead((batch, pictures(batch)) for batch in ready):
                        captions = [item.caption for item in batch]
                        ids = vocabulary.encode_captions(captions)
                        part.add([item.key for item in batch], captions, codes, ids)
                        part.arithmetic = encode.arithmetic
                progress.finish(folder.path(number).stem, folder.records[number])
                rows += folder.records[number].kept
                if rows >= ROWS_PER_TRIM:
                    return_freed_memory()
                    rows = 0
                if progress.shown:
                    _show_rows(folder, image_tokenizer, encode.device)
            except UnreadableShard as error:
                unreadable[number] = error
    return unreadable


def _tokenize_on_cluster(
    folder: TokenizedFolder, todo: Sequence[int], image_tokenizer: ImageTokenizer, vocabulary: Vocabulary,
    config: PreprocessConfig, progress: Progress,
) -> dict[int, UnreadableShard]:  # fmt: skip
    """The same on the nodes of a Ray cluster."""
    from ar_t2i.data.cluster import tokenize_on_cluster

    unreadable = tokenize_on_cluster(folder, todo, image_tokenizer, vocabulary, config, progress)
    if progress.shown:
        _show_rows(folder, image_tokenizer, torch.device("cpu"))  # the cluster's GPUs are elsewhere
    return unreadable


def _show_rows(folder: TokenizedFolder, image_tokenizer: ImageTokenizer, device: torch.device) -> None:
    """Draw some rows for the card as soon as there are any."""
    full = (folder.path(number) for number, record in sorted(folder.records.items()) if record.kept)
    path = next((path for path in full if path.exists()), None)
    if path is not None and not folder.preview.exists():
        folder.show(draw_preview(path, image_tokenizer, device))


def _decoder(image_tokenizer: ImageTokenizer, config: PreprocessConfig) -> Decoder:
    cores = (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    workers = max(cores - 1, 1) if config.workers is None else config.workers
    size, captions = image_tokenizer.image_size, config.max_caption_chars
    return Decoder(workers, size, config.crop, config.limits, captions, config.pixels)


def _device(config: PreprocessConfig) -> str:
    """One GPU a process where several were started."""
    local_rank = os.environ.get("LOCAL_RANK")
    several = local_rank is not None and config.device in ("auto", "cuda") and torch.cuda.is_available()
    return f"cuda:{local_rank}" if several else config.device


def _plan(folder: TokenizedFolder, todo: dict[int, str], parts: int) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(todo.values()).items())
    return f"{folder.out}, split {folder.split}: {parts - len(todo)} of {parts} parts finished" + (
        f", to do {reasons}" if todo else ""
    )


def _report(folder: TokenizedFolder, mine: Iterable[int], new: Collection[int], per_second: float) -> Report:
    records = [folder.records[number] for number in mine if number in folder.records]
    dropped: Counter[str] = Counter()
    for record in records:
        dropped.update(record.dropped)
    return Report(
        out=str(folder.out), split=folder.split, parts=len(records), new_parts=len(new),
        kept=sum(record.kept for record in records), dropped=dict(dropped.most_common()),
        pictures_per_second=per_second if new else 0.0,
    )  # fmt: skip


def _facts(image_tokenizer: ImageTokenizer, vocabulary: Vocabulary, config: PreprocessConfig) -> dict[str, Any]:
    """What all parts of a dataset must have in common.

    Raises:
        ValueError: the vocabulary has no ids for some codes.
    """
    if image_tokenizer.codebook_size > vocabulary.codebook_size:
        raise ValueError(
            f"the image tokenizer has {image_tokenizer.codebook_size} codes, the vocabulary ids for only "
            f"{vocabulary.codebook_size}; give a vocabulary made for that codebook"
        )
    settings = ("crop", "pixels", "max_pixels", "min_edge", "max_aspect", "max_caption_chars")
    return {
        "image_tokenizer": image_tokenizer.fingerprint,
        "num_codes": image_tokenizer.num_codes,
        "codebook_size": image_tokenizer.codebook_size,
        "image_size": image_tokenizer.image_size,
        "vocabulary": vocabulary.fingerprint,
        **{name: getattr(config, name) for name in settings},
    }


def _versions() -> dict[str, str]:
    packages = ("torch", "tokenizers", "pillow", "numpy", "pyarrow", "webdataset")
    installed = {name: metadata.version(name) for name in packages}
    return {"ar_t2i": ar_t2i.__version__, "python": platform.python_version(), **installed}


def _shipped_vocabulary() -> Path:
    folder = Path(str(resources.files("ar_t2i"))) / "bundle"
    if not folder.is_dir():
        raise ValueError("the package has no vocabulary of its own here; give one with --vocabulary")
    return folder
