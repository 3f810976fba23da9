"""Training the decoder: pictures a second and peak memory, against transformers' own Trainer.

Both train one model (stock Qwen3, 30,000 ids) on the same rows with the same batch, precision and AdamW, each time
in a process of its own, in turns. Trainer: captions padded to the longest of their batch, logits of all ids, the
faster of random batches and batches of like length (`group_by_length`), compiled on a GPU. ar_t2i: its whole loop,
the moving average of the weights included, compiled on a GPU too. Captions have 13 ± 6 ids, as those of CC3M have.

A window is one pass over all rows after the first steps. FLOPs are those of the mathematics, forward and back: layers
at real ids, causal attention, output rows of a modality at its targets; no padding, no recomputation.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import Options, matrix_rate

ROOT = Path(__file__).parents[1]
SIZES: dict[str, dict[str, Any]] = {
    "10 M": {"size": "scenes", "num_layers": 6},
    "100 M": {"size": "small"},
    "330 M": {"size": "base"},
    "1 B": {"size": "large"},
}
"""Of `ar_t2i.model.build.ModelConfig`."""
LAPTOP = {"10 M": (64, 8), "100 M": (64, 4)}
"""Rows of a batch and batches of a window, on a CPU."""
CARD = {"10 M": (512, 32), "100 M": (512, 32), "330 M": (512, 32), "1 B": (256, 32)}
"""On a GPU."""
ALONE = ("1 B",)
"""Sizes that are measured without the opponent."""
WAYS = ("ar_t2i", "Trainer, sdpa", "Trainer by length, sdpa")
MEAN, DEVIATION, LONGEST = 13.0, 6.0, 96
"""Ids of a caption, log-normal."""


@dataclass(frozen=True)
class Case:
    """What one process is told."""

    way: str
    folder: str
    model: dict[str, Any]
    batch: int
    batches: int
    device: str

    @property
    def gpu(self) -> bool:
        """Whether they train on one."""
        return self.device.startswith("cuda")

    @property
    def warm(self) -> int:
        """Steps before the window."""
        return 8 if self.gpu else 1  # compiled, memory found

    @property
    def bf16(self) -> bool:
        """Whether both train in bfloat16."""
        from ar_t2i.device import has_fast_bf16

        return has_fast_bf16(torch.device(self.device))


@dataclass(frozen=True)
class Window:
    """What one process found."""

    seconds: float
    waited: float
    """Seconds in which the loop waited for its batches."""
    peak: int
    """Bytes, of the process or of the device."""
    imported: int
    """Bytes before a model was made."""


class Done(BaseException):
    """The window is over: the rest of the run is not waited for."""


def run(options: Options) -> None:
    """Print the table."""
    gpu = options.device.startswith("cuda")
    names = {"10 M": (8, 2)} if options.small else CARD if gpu else LAPTOP
    dtype = torch.bfloat16 if Case("", "", {}, 0, 0, options.device).bf16 else torch.float32
    rate = matrix_rate(dtype, options.device)
    print(f"{str(dtype)[6:]} for both; matrix products reach {rate / 1e12:.3g} TFLOP/s\n")
    print(
        "| parameters | batch | way | pictures/s | ratio | peak memory, MB | share | above the imports, MB | share |"
    )
    print("|---" * 9 + "|")
    below = []
    for name, (batch, batches) in names.items():
        shape = {**SIZES[name], **({"num_layers": 1} if options.small else {})}
        with tempfile.TemporaryDirectory() as folder:
            flops = prepare(Path(folder), batch * batches, shape)
            case = Case("", folder, shape, batch, batches, options.device)
            found = measure(case, WAYS[: 1 if name in ALONE else None], 2 if options.small else options.times)
        speeds = {way: sorted(batch * batches / window.seconds for window in some) for way, some in found.items()}
        theirs = max(speeds.keys() - {"ar_t2i"}, key=lambda way: statistics.median(speeds[way]), default="ar_t2i")
        for way in dict.fromkeys((theirs, "ar_t2i")):
            peak, extra, their_peak, their_extra = (
                statistics.median(window.peak - window.imported * above for window in found[one])
                for one in (way, theirs)
                for above in (0, 1)
            )
            speed, their_speed = statistics.median(speeds[way]), statistics.median(speeds[theirs])
            print(
                f"| {name} | {batch} | {way} | {speed:.4g} ± {(speeds[way][-1] - speeds[way][0]) / 2:.2g} "
                f"| {speed / their_speed:.2f} | {peak / 1e6:,.0f} | {peak / their_peak:.0%} "
                f"| {extra / 1e6:,.0f} | {extra / their_extra:.0%} |", flush=True,
            )  # fmt: skip
        ours = found["ar_t2i"]
        waited = statistics.median(window.waited / window.seconds for window in ours)
        used = flops * statistics.median(speeds["ar_t2i"])
        below.append(f"| {name} | {flops * batch / 1e12:.3g} | {used / 1e12:.3g} | {used / rate:.0%} | {waited:.2%} |")
    print("\n| ar_t2i | TFLOP a step | TFLOP/s | of the matrix rate | of a step waited for input |")
    print("|---" * 5 + "|")
    print("\n".join(below))


def measure(case: Case, ways: tuple[str, ...], times: int) -> dict[str, list[Window]]:
    """Windows of each way, in turns; of the opponent's two batchings the slower one is measured once."""
    found: dict[str, list[Window]] = {way: [] for way in ways}
    for _ in range(times):
        for way in ways:
            found[way].append(in_a_process(replace(case, way=way)))
        if len(ways) > 2:
            ways = (ways[0], min(ways[1:], key=lambda way: found[way][0].seconds))
    return found


def in_a_process(case: Case) -> Window:
    """Run one way."""
    environment = {**os.environ, "HF_HOME": f"{case.folder}/cache", "HF_HUB_OFFLINE": "1"}
    environment["HF_DATASETS_CACHE"] = f"{case.folder}/cache/datasets"
    line = [sys.executable, "-m", "benchmarks.training", json.dumps(asdict(case))]
    done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return Window(**json.loads(done.stdout.splitlines()[-1]))


def prepare(folder: Path, rows: int, shape: dict[str, Any]) -> float:
    """Write a vocabulary of 30,000 ids and a tokenized dataset of random codes; returns FLOPs a row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ar_t2i.vocabulary import Vocabulary

    rng = np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrstuvwxyz"), (40_000, 6))
    words = np.array([f" {''.join(word)}" for word in letters])
    vocabulary = Vocabulary.train(np.repeat(words, 2).tolist())
    assert vocabulary.size == 30_000
    vocabulary.save_pretrained(folder / "vocabulary")
    whole = words[[len(ids) == 1 for ids in vocabulary.encode_captions(words.tolist())]]
    sigma = math.log(1 + (DEVIATION / MEAN) ** 2) ** 0.5
    lengths = rng.lognormal(math.log(MEAN) - sigma**2 / 2, sigma, rows).round().clip(3, LONGEST).astype(int)
    texts = ["".join(rng.choice(whole, length)) for length in lengths]
    table = pa.table({"image_tokens": rng.integers(0, vocabulary.codebook_size, (rows, 32)).tolist(), "text": texts})
    (folder / "tokens" / "data").mkdir(parents=True)
    pq.write_table(table, folder / "tokens" / "data" / "train-00000-of-00001.parquet")
    return flops_of(shape, lengths, len(vocabulary.text_ids))


def flops_of(shape: dict[str, Any], lengths: np.ndarray, text_ids: int) -> float:
    """Of a row on average, six times the multiplications of the forward pass: each is two, and done again twice."""
    from ar_t2i.model.build import ModelConfig

    made = ModelConfig(**shape).dimensions
    width, layers = made["hidden_size"], made["num_layers"]
    weights = layers * (4 * width**2 + 3 * width * made["intermediate_size"])
    whole = lengths + 34
    attention = layers * width * (whole * (whole + 1)).mean()  # half of queries with keys, half of chances with values
    output = width * (32 * 4096 + (lengths - 1).mean() * text_ids)
    return float(6 * (weights * whole.mean() + attention + output))


def used_memory(device: str) -> int:
    """The most bytes that this process had so far: on the device, or where that is the CPU, at all."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def by_us(case: Case) -> Window:
    """`train_decoder`, but for the bundle at the end; batches are timed where the loop asks for them."""
    from ar_t2i.bundles import shipped_bundle
    from ar_t2i.config import build
    from ar_t2i.training.decoder import DecoderTask, TrainConfig
    from ar_t2i.training.loop import make_accelerator, train

    config = build(TrainConfig, {
        "output": f"{case.folder}/run", "image_tokenizer": str(shipped_bundle() / "image_tokenizer"),
        "vocabulary": f"{case.folder}/vocabulary", "model": case.model,
        "data": {"dataset": f"{case.folder}/tokens", "validation_split": "", "batch_size": case.batch,
                 "max_caption_length": LONGEST, "caption_dropout": 0.0},
        "loop": {"steps": 10_000, "trackers": [], "checkpoint_every": 0, "evaluate_every": 0, "compile": case.gpu},
        "samples": {"prompts": []},
    })  # fmt: skip
    imported, marks = used_memory(case.device), list[tuple[float, float]]()
    accelerator = make_accelerator(config.loop, Path(config.output))
    task = DecoderTask(config, accelerator)
    read = task.read

    def timed(start: int, stop: int) -> Generator[dict[str, torch.Tensor]]:
        # The window begins where an epoch does.
        batches = chain(islice(read(0, stop), case.warm * task.pieces), read(0, stop))
        while True:
            asked = time.perf_counter()
            if len(marks) == (case.warm + case.batches) * task.pieces:
                marks.append((asked, asked))
                raise Done
            batch = next(batches)
            marks.append((asked, time.perf_counter()))
            yield batch

    task.read = timed  # type: ignore[method-assign]
    Path(config.output).mkdir(exist_ok=True)
    try:
        train(task, config.loop, config.optim, accelerator, Path(config.output), None, config.seed)
    except Done:
        pass
    window = marks[case.warm * task.pieces :]
    waited = sum(got - asked for asked, got in window)
    return Window(window[-1][0] - window[0][0], waited, used_memory(case.device), imported)


def by_trainer(case: Case) -> Window:
    """Its Trainer, as its documentation has it."""
    import datasets
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

    from ar_t2i.data.dataset import TokenizedDataset, load_rows
    from ar_t2i.model.build import ModelConfig, build_model
    from ar_t2i.training.optim import OptimConfig
    from ar_t2i.vocabulary import Vocabulary

    imported = used_memory(case.device)
    vocabulary = Vocabulary.from_pretrained(f"{case.folder}/vocabulary")
    rows = TokenizedDataset(load_rows(f"{case.folder}/tokens", "train"), vocabulary, max_caption_length=LONGEST)
    sequences = rows.sequences(np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64))
    model = build_model(ModelConfig(**case.model), vocabulary, 0)
    model.set_attn_implementation(case.way.split()[-1])
    optim, marks = OptimConfig(), list[float]()

    class Marks(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            marks.append(time.perf_counter())

    settings = TrainingArguments(
        output_dir=f"{case.folder}/trainer", per_device_train_batch_size=case.batch,
        max_steps=case.warm + case.batches + 1, learning_rate=optim.lr, adam_beta1=optim.beta1,
        adam_beta2=optim.beta2, weight_decay=optim.weight_decay, max_grad_norm=optim.clip_norm,
        lr_scheduler_type="cosine", warmup_steps=optim.warmup_steps, optim="adamw_torch_fused", bf16=case.bf16,
        use_cpu=not case.gpu, dataloader_num_workers=4 if case.gpu else 0, report_to="none", save_strategy="no",
        logging_strategy="no", disable_tqdm=True, torch_compile=case.gpu,
        train_sampling_strategy="group_by_length" if "by length" in case.way else "random",
    )  # fmt: skip
    trainer = Trainer(
        model, settings, DataCollatorForLanguageModeling(vocabulary.tokenizer, mlm=False),
        datasets.Dataset.from_dict({"input_ids": sequences}), callbacks=[Marks()],
    )  # fmt: skip
    trainer.train()
    if case.gpu:
        torch.cuda.synchronize()
    return Window(marks[-1] - marks[case.warm], 0.0, used_memory(case.device), imported)


if __name__ == "__main__":
    given = Case(**json.loads(sys.argv[1]))
    print("\n" + json.dumps(asdict(by_us(given) if given.way == "ar_t2i" else by_trainer(given))))
