"""Two optimizer steps of a single stage over 8 scenes a step, spread as told: one_step.py ACCUMULATION OUT.

Run by test_spread.py. The discriminator learns, LeCam compares, and dead codes are pulled.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from ar_t2i.config import build
from ar_t2i.training.loop import leave, train_step
from ar_t2i.training.parallel import Parallel
from ar_t2i.training.tokenizer.pixels import SingleStageTrainConfig, _single_stage
from ar_t2i.training.watch import Guard


def main(accumulation: int, out: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    size = {"width": 32, "num_layers": 1, "num_heads": 2}
    config = build(
        SingleStageTrainConfig,
        {
            "output": "", "batch_size": 8 // (accumulation * accelerator.num_processes), "workers": 0,
            "validation_pictures": 1, "random_flip": False,
            "loop": {"steps": 2, "gradient_accumulation_steps": accumulation},
            "gan": {"start": 0, "weight": 0.1, "hidden_channels": 32, "stages": 2, "lecam_weight": 0.5},
            "model": {
                "image_size": 64, "patch_size": 16, "num_latent_tokens": 4, "codebook_size": 16, "token_size": 4,
                "use_l2_norm": False, "encoder": size, "decoder": size,
            },
        },
    )  # fmt: skip
    task = _single_stage(config, accelerator)
    codes, gan = task.companions
    gan.averages.copy_(torch.tensor([0.6, -0.7]))
    gan.optimizer.optimizer = torch.optim.SGD(gan.network.parameters(), lr=1.0)
    optimizer = torch.optim.SGD(task.trained.parameters(), lr=1.0)
    module, optimizer = accelerator.prepare(task.module, optimizer)
    parallel = object.__new__(Parallel)  # with an optimizer whose steps show the gradient
    parallel.task, parallel.module, parallel.optimizer, parallel.accelerator = task, module, optimizer, accelerator
    batches = task.read(0, 2 * accumulation)
    told = []
    for _ in range(2):
        micro_batches = [next(batches) for _ in range(accumulation)]
        told.append(train_step(parallel, micro_batches, 1.0, 1.0, Guard(0)))
    state = {
        "codebook": task.trained.quantize.embedding.weight,
        "decoder": task.trained.decoder.conv_out.weight,
        "discriminator": gan.network.last.weight,
        "averages": gan.averages,
        "usage": codes.usage_K,
    }
    flat = torch.cat([tensor.detach().flatten() for tensor in state.values()])
    everywhere = accelerator.gather(flat).view(accelerator.num_processes, -1)
    assert all(torch.equal(row, flat) for row in everywhere), "the processes differ"
    if accelerator.is_main_process:
        weights = {name: tensor.detach().flatten().tolist() for name, tensor in state.items()}
        out.write_text(json.dumps({"values": told, "weights": weights}))
    leave(accelerator)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
