"""One optimizer step over eight fixed rows, spread as told; run by test_loop.py: one_step.py ACCUMULATION OUT."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from ar_t2i.data.batching import collate
from ar_t2i.model.build import ModelConfig, build_model
from ar_t2i.model.loss import DecoderWithLoss
from ar_t2i.sequence import sequence_ids
from ar_t2i.training.decoder import DataConfig, DecoderTask, TrainConfig
from ar_t2i.training.loop import leave, train_step
from ar_t2i.training.parallel import Parallel
from ar_t2i.training.watch import Guard
from ar_t2i.vocabulary import Vocabulary


def main(accumulation: int, out: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    vocabulary = Vocabulary.train(["a red bird on a tree by the sea"] * 2)
    rng = np.random.default_rng(0)
    rows = [
        sequence_ids(
            vocabulary, vocabulary.encode_captions(["a red bird on a tree " * length])[0], rng.integers(0, 4096, 32)
        )
        for length in (0, 1, 9, 0, 2, 0, 7, 1)
    ]
    size = 8 // (accumulation * accelerator.num_processes)
    parts = [rows[start : start + size] for start in range(0, 8, size)]
    mine = parts[accelerator.process_index :: accelerator.num_processes]

    task = object.__new__(DecoderTask)  # without its dataset: the rows are given here
    task.config = TrainConfig(
        output="", image_tokenizer="", data=DataConfig(dataset=""), text_weight=0.5, z_weight=1e-3
    )
    model = build_model(ModelConfig(hidden_size=32, num_layers=1, intermediate_size=32, head_dim=16), vocabulary, 0)
    task.module, task.trained, task.lines = DecoderWithLoss(model, vocabulary), model, {}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    module, optimizer = accelerator.prepare(task.module, optimizer)
    parallel = object.__new__(Parallel)  # with an optimizer whose steps show the gradient
    parallel.task, parallel.module, parallel.optimizer, parallel.accelerator = task, module, optimizer, accelerator
    batches = [collate(part, vocabulary.pad_id) for part in mine]
    values = train_step(parallel, batches, lr=1.0, clip_norm=0.0, guard=Guard(0))
    if accelerator.is_main_process:
        values = {name: value for name, value in values.items() if "per_second" not in name}
        weights = model.model.layers[0].self_attn.q_proj.weight.flatten().tolist()
        out.write_text(json.dumps({"values": values, "weights": weights}))
    leave(accelerator)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
