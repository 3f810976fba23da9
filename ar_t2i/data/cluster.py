"""Preprocessing on the nodes of a Ray cluster, with Ray Data as the engine.

driver: numbers of shards --> [decode, CPU tasks] --> blocks of pictures --> [encode, GPU actors] --> blocks of codes
driver: chunks of a shard, until it is whole --> [write, a task a part] --> part and record

A chunk is what the local engine encodes at once: `batch_size` good samples of one shard, with what was dropped on the
way. A shard is decoded by one task, in order, a few chunks ahead of who takes them; its chunks are encoded wherever an
actor is free. They come back in any order and, after a node was lost, maybe twice: each is known by shard and number,
and a part is written when all are there, by the code that writes it on one machine. Only pixels are large, and they
never come near the driver.
"""

import logging
import os
import pickle
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ar_t2i.data.decode import Decoder, batches
from ar_t2i.data.images import CropRule, ImageLimits, Pixels
from ar_t2i.data.parts import PartRecord, new_part
from ar_t2i.data.sample import Reason, UnreadableShard
from ar_t2i.data.shards import Shard, iterate_samples
from ar_t2i.device import keep_freed_memory

if TYPE_CHECKING:  # the workers that write import this file, and need no torch
    from ar_t2i.data.encode import Arithmetic
    from ar_t2i.data.manifest import TokenizedFolder
    from ar_t2i.data.preprocess import PreprocessConfig
    from ar_t2i.data.progress import Progress
    from ar_t2i.image_tokenizer import ImageTokenizer
    from ar_t2i.vocabulary import Vocabulary

BLOCK_BYTES = 128 * 2**20
"""A block of pictures that travels to an actor: 680 of 256x256. A decoding task holds about three; smaller ones would
be more than the driver can hand on."""
WRITES_AT_ONCE = 16
"""Parts that are written at the same time; the driver takes no more chunks while so many are at work."""
RETRIES = 10
"""Times that a shard or a part is begun again after the loss of its worker: a picture may kill every one."""

_SCHEMA = pa.schema(
    [
        ("shard", pa.int64()),
        ("number", pa.int64()),  # of the chunk in its shard
        ("samples", pa.int64()),  # good and dropped
        ("done", pa.float64()),  # part of the shard that lies behind
        ("ends", pa.bool_()),  # the last one of its shard
        ("error", pa.string()),  # the shard could not be read; another run may do better
        ("failure", pa.string()),  # no run will do better
        ("rows", pa.large_binary()),  # a pickled Rows
        ("pixels", pa.large_binary()),  # (B, S, S, 3) uint8 before the actors,
        ("codes", pa.large_binary()),  # (B, T) int64 after them
        ("arithmetic", pa.string()),  # that they were computed in
    ]
)


@dataclass(frozen=True, slots=True)
class Rows:
    """What a chunk holds beside pictures and codes."""

    keys: list[str]
    captions: list[str]
    ids: list[list[int]]
    dropped: list[tuple[str, Reason]]
    checksum: str | None
    """Of the shard, in its last chunk; computed where it was just read."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk as the driver sees it: what it needs to know, and bytes for the task that writes."""

    shard: int
    number: int
    samples: int
    done: float
    ends: bool
    error: str | None
    failure: str | None
    rows: bytes
    codes: bytes
    arithmetic: str


@dataclass
class Gathering:
    """Chunks in the order they come, until their shard is whole; one that comes again changes nothing."""

    whole: set[int] = field(default_factory=set)
    _chunks: dict[int, dict[int, Chunk]] = field(default_factory=dict)
    _ends: dict[int, int] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> bool:
        """Whether the chunk is new."""
        chunks = self._chunks.setdefault(chunk.shard, {}) if chunk.shard not in self.whole else {}
        if chunk.shard in self.whole or chunk.number in chunks:
            return False
        chunks[chunk.number] = chunk
        if chunk.ends:
            self._ends[chunk.shard] = chunk.number
        return True

    def take(self, shard: int) -> list[Chunk] | None:
        """All chunks of a shard in order, once, when they are all there; else None."""
        chunks = self._chunks.get(shard, {})
        if len(chunks) != self._ends.get(shard, -2) + 1:
            return None
        self.whole.add(shard)
        del self._chunks[shard], self._ends[shard]
        return [chunks[number] for number in range(len(chunks))]

    @property
    def begun(self) -> float:
        """Parts of the shards that are not whole yet, added up."""
        return sum(max(chunk.done for chunk in chunks.values()) for chunks in self._chunks.values())


def tokenize_on_cluster(
    folder: "TokenizedFolder", todo: Sequence[int], image_tokenizer: "ImageTokenizer", vocabulary: "Vocabulary",
    config: "PreprocessConfig", progress: "Progress",
) -> dict[int, UnreadableShard]:  # fmt: skip
    """Write the parts `todo` with all nodes of the cluster that this process finds, or with a cluster of its own.

    Args:
        folder: claimed; all nodes see it under the same path.
        todo: numbers of the shards.
        image_tokenizer: travels to the nodes through Ray's object store, as the vocabulary does.
        vocabulary: of the captions.
        config: of the run.
        progress: counts what comes back from all nodes.

    Returns:
        the shards that could not be read.

    Raises:
        ValueError: Ray is not installed, no GPU where one is wanted, codes or parts that cannot be written, a shard
            whose workers die again and again.
    """
    ray = _import_ray()
    unreadable: dict[int, UnreadableShard] = {}
    if not todo:
        return unreadable
    gathering = Gathering()
    with _cluster(ray), _told(ray):
        gpus, encoders = _encoders(config, ray.cluster_resources())
        models = ray.put(image_tokenizer), ray.put(vocabulary)
        settings = _Settings(
            image_tokenizer.image_size, config.crop, config.limits, config.max_caption_chars, config.batch_size,
            config.pixels,
        )  # fmt: skip
        dtype = _choose(ray, folder, todo, models[0], settings, config, gpus, progress)
        chunks = _chunks(ray, folder, todo, models, settings, config, gpus, encoders, dtype)
        with closing(chunks), _Writers(ray, folder, progress) as writers:  # closing stops the engine when we fail
            for chunk in chunks:
                if chunk.failure is not None:
                    raise ValueError(chunk.failure)
                if gathering.add(chunk):
                    progress.advance(chunk.samples, gathering.begun)
                finished = gathering.take(chunk.shard)
                if finished is None:
                    continue
                if (error := finished[-1].error) is not None:
                    unreadable[chunk.shard] = UnreadableShard(error)
                else:
                    writers.write(chunk.shard, finished)
    missing = set(todo) - gathering.whole
    if missing:
        raise ValueError(f"{len(missing)} shards came back in part; finished parts are kept: run the command again")
    return unreadable


@dataclass(frozen=True, slots=True)
class _Settings:
    """What decoding needs to know."""

    size: int
    crop: CropRule
    limits: ImageLimits
    max_caption_chars: int
    batch_size: int
    pixels: Pixels = "exact"

    def batches(self, shard: Shard, drop: Callable[[str, Reason], None]) -> Iterator[list]:
        """Batches of decoded samples, as the local engine encodes them."""
        with Decoder(0, self.size, self.crop, self.limits, self.max_caption_chars, self.pixels) as decode:
            for _, samples in decode([(0, iterate_samples(shard))]):
                yield from batches(samples, drop, self.batch_size)


def _chunks(
    ray: Any, folder: "TokenizedFolder", todo: Sequence[int], models: tuple, settings: _Settings,
    config: "PreprocessConfig", gpus: float, encoders: int, dtype: "Arithmetic",
) -> Generator[Chunk, None, None]:  # fmt: skip
    """The encoded chunks of all shards as they come."""
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy, from_items  # pyright: ignore

    context = DataContext.get_current().copy()
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = context.print_on_execution_start = context.enable_auto_log_stats = False
    context.execution_options.preserve_order = False  # a slow shard holds up no other
    device = "cuda" if gpus else config.device
    with DataContext.current(context), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the number of retries is given in a way that goes with Ray 2.64
        items = [{"shard": number, "source": pickle.dumps(folder.shards[number])} for number in todo]
        encoded = (
            from_items(items, override_num_blocks=len(items))
            .map_batches(
                _decode,  # type: ignore[arg-type]  # its other arguments are given here
                fn_kwargs={"vocabulary": [models[1]], "settings": settings}, batch_size=1, batch_format="pyarrow",
                compute=TaskPoolStrategy(config.workers), num_cpus=1,
                ray_remote_args_fn=lambda: {"max_retries": RETRIES},  # Ray Data's own are endless
            )
            .map_batches(
                _Encode, fn_constructor_kwargs={"image_tokenizer": [models[0]], "device": device, "dtype": dtype},
                batch_size=None, batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=1, max_size=encoders, initial_size=encoders),
                num_gpus=gpus, num_cpus=0,  # actors that hold all cores of a shrunk cluster would starve decoding
            )
        )  # fmt: skip
        for block in encoded.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.drop_columns(["pixels"]).to_pylist():  # type: ignore[union-attr]  # an Arrow table
                yield Chunk(**row)


def _decode(task: pa.Table, vocabulary: list, settings: _Settings) -> Iterator[pa.Table]:
    """The chunks of one shard; a generator, so that pictures wait in blocks of bounded size."""
    import ray  # pyright: ignore

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core
    (row,) = task.to_pylist()
    shard: Shard = pickle.loads(row["source"])
    ids_of = ray.get(vocabulary)[0].encode_captions
    dropped: list[tuple[str, Reason]] = []
    number, done, error, failure = 0, 0.0, None, None

    def drop(key: str, reason: Reason) -> None:
        dropped.append((key, reason))

    def table(batch: list, ends: bool = False, checksum: str | None = None) -> pa.Table:
        captions = [item.caption for item in batch]
        rows = Rows([item.key for item in batch], captions, ids_of(captions) if batch else [], dropped, checksum)
        pixels = np.stack([item.picture for item in batch]).data.cast("B") if batch else b""
        chunk = {
            "shard": row["shard"], "number": number, "samples": len(batch) + len(dropped), "done": done, "ends": ends,
            "error": error, "failure": failure, "rows": pickle.dumps(rows), "pixels": pixels,
            "codes": b"", "arithmetic": "",
        }  # fmt: skip
        return pa.table({name: [value] for name, value in chunk.items()}, schema=_SCHEMA)

    try:
        for batch in settings.batches(shard, drop):
            done = batch[-1].done
            yield table(batch)
            number, dropped = number + 1, []
    except UnreadableShard as unreadable:
        error = str(unreadable)
    except ValueError as wrong:
        failure = str(wrong)
    done = 1.0
    yield table([], ends=True, checksum=None if error or failure else shard.checksum())


class _Encode:
    """An actor: an image tokenizer on its device, codes in place of pixels."""

    def __init__(self, image_tokenizer: list, device: str, dtype: "Arithmetic"):
        import ray  # pyright: ignore

        from ar_t2i.data.encode import Encoder

        keep_freed_memory()
        self.encode = Encoder(ray.get(image_tokenizer)[0], device, dtype)

    def __call__(self, block: pa.Table) -> pa.Table:
        edge = self.encode.image_tokenizer.image_size
        codes, failures = [], block["failure"].to_pylist()
        for number, pixels in enumerate(block["pixels"]):
            pictures = np.frombuffer(pixels.as_buffer(), np.uint8).reshape(-1, edge, edge, 3)
            try:
                codes.append(self.encode(list(pictures)).tobytes() if len(pictures) else b"")
            except ValueError as error:
                codes.append(b"")
                failures[number] = str(error)
        arithmetic = [self.encode.arithmetic if code else "" for code in codes]
        new = {"pixels": [b""] * len(codes), "codes": codes, "arithmetic": arithmetic, "failure": failures}
        return pa.table({name: new.get(name, block[name]) for name in _SCHEMA.names}, schema=_SCHEMA)


class _Writers:
    """Tasks that write a part each, on any node; a context manager that waits for the last of them."""

    def __init__(self, ray: Any, folder: "TokenizedFolder", progress: "Progress"):
        """Start nothing yet."""
        self.ray, self.folder, self.progress = ray, folder, progress
        options = {"num_cpus": 0, "max_retries": RETRIES, "scheduling_strategy": "SPREAD"}  # 0: no wait for a decoder
        self.task = ray.remote(**options)(_write)
        self.working: dict[Any, int] = {}

    def __enter__(self) -> "_Writers":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        while self.working and kind is not KeyboardInterrupt:
            self._finish_one()

    def write(self, number: int, chunks: Iterable[Chunk]) -> None:
        """Begin to write a part; waits while too many are at work."""
        while len(self.working) >= WRITES_AT_ONCE:
            self._finish_one()
        folder, shard = self.folder, self.folder.shards[number]
        parts = [(chunk.rows, chunk.codes, chunk.arithmetic) for chunk in chunks]
        places = folder.path(number).absolute(), folder.record_path(number).absolute()
        self.working[self.task.remote(*places, shard.name, shard.fingerprint, parts)] = number
        for done in self.ray.wait(list(self.working), num_returns=len(self.working), timeout=0)[0]:
            self._finish(done)

    def _finish_one(self) -> None:
        (done,), _ = self.ray.wait(list(self.working), num_returns=1)
        self._finish(done)

    def _finish(self, done: Any) -> None:
        number = self.working.pop(done)
        self.folder.records[number] = self.ray.get(done)
        self.progress.finish(self.folder.path(number).stem, self.folder.records[number])


def _write(
    path: Path, record_path: Path, shard: str, source: str | None, chunks: list[tuple[bytes, bytes, str]]
) -> PartRecord:
    """Write one part; a second try writes the same bytes over those of the first."""
    unpacked = [(pickle.loads(rows), codes, arithmetic) for rows, codes, arithmetic in chunks]
    with new_part(path, record_path, shard, source, lambda: unpacked[-1][0].checksum) as part:
        for rows, codes, arithmetic in unpacked:
            for key, reason in rows.dropped:
                part.drop(key, reason)
            if rows.keys:
                codes_BT = np.frombuffer(codes, np.int64).reshape(len(rows.keys), -1)
                part.add(rows.keys, rows.captions, codes_BT, rows.ids)
                part.arithmetic = arithmetic
    assert part.record is not None, "a part that ends well has a record"
    return part.record


def _choose(
    ray: Any, folder: "TokenizedFolder", todo: Sequence[int], image_tokenizer: Any, settings: _Settings,
    config: "PreprocessConfig", gpus: float, progress: "Progress",
) -> "Arithmetic":  # fmt: skip
    """The arithmetic that all actors take: tried once, on the first pictures, by a worker like theirs."""
    if config.dtype != "auto":
        return config.dtype

    def try_out(holder: list, used: set[str], device: str, shards: list[Shard]) -> tuple[str, str, list[str]]:
        from ar_t2i.data.encode import Encoder

        lines: list[str] = []
        encode = Encoder(ray.get(holder)[0], device, "auto", used, lines.append)
        for shard in shards if encode.dtype == "auto" else []:
            try:
                batch = next(settings.batches(shard, lambda key, reason: None), None)
            except UnreadableShard:
                continue
            if batch is not None:
                encode([item.picture for item in batch])
                break
        return encode.device.type, encode.dtype, lines

    task = ray.remote(num_cpus=0 if gpus else 1, num_gpus=gpus, max_retries=RETRIES)(try_out)
    shards = [folder.shards[number] for number in todo[:100]]
    device = "cuda" if gpus else config.device
    kind, dtype, lines = ray.get(task.remote([image_tokenizer], folder.arithmetics(), device, shards))
    for line in lines:
        progress.say(line)
    if dtype == "auto":  # not one picture in so many shards
        return "float32"
    return "bfloat16" if folder.settle(f"{kind} {dtype}").endswith("bfloat16") else "float32"


def _encoders(config: "PreprocessConfig", resources: dict[str, float]) -> tuple[float, int]:
    """GPUs of an actor, and the most actors there may be."""
    gpus, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    if config.device.startswith("cuda") and not gpus and config.encoders is None:
        raise ValueError(f"device={config.device!r}: no node of the cluster has a GPU; try auto or cpu")
    if config.device.startswith("cuda") or (gpus and config.device == "auto"):
        return 1.0, config.encoders or gpus
    return 0.0, config.encoders or max(cores, 1)  # encoding is the slower step there; the system shares the cores


def _import_ray() -> Any:
    """Ray.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import ray  # pyright: ignore
        import ray.data  # noqa: F401  # pyright: ignore
    except ImportError as error:
        raise ValueError(f"engine=ray needs Ray ({error}): pip install 'ar_t2i[ray]'") from error
    return ray


@contextmanager
def _cluster(ray: Any) -> Iterator[None]:
    """The cluster that this process is connected to, or that RAY_ADDRESS or this machine has, or a new one here."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it tells that its bars are off
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError) as error:
        raise ValueError(f"no Ray cluster could be reached or started: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _told(ray: Any) -> Iterator[None]:
    """What went wrong on a node as one line: our own errors as they are, Ray's as theirs."""
    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(cause, ValueError) and not isinstance(cause, ray.exceptions.RayError):
                raise ValueError(str(cause)) from error
            cause = inner
        last = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise ValueError(f"the cluster gave up: {last.strip()}; finished parts are kept: run it again") from error
