"""The sampling loop: prefill the captions once, then one step a code with a key-value cache.

Captions of any length stand in one batch, padded on the left; with guidance, the unconditional rows stand below the
conditional ones, so that one forward serves both:

    keys        pad  pad  a    bird SOI | code 0  code 1 ...
    picture 0   .    .    x    x    x   | x       x
    picture 1   x    x    x    x    x   | x       x
    uncond. 0   .    .    .    .    x   | x       x          . = masked, positions count from the first x
    uncond. 1   .    .    .    .    x   | x       x

Shapes: B pictures, R rows (B, or 2 B with guidance), P prompt length, D width, K codes, T codes of a picture.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ar_t2i.model.build import as_rows
from ar_t2i.sampling.logits import SamplingConfig, draw, guide
from ar_t2i.sampling.network import Network, network_of
from ar_t2i.sequence import prompt_ids, sequence_length
from ar_t2i.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OnStep = Callable[[int, Tensor], None]
"""Called after each step with the step's number and the codes so far, (B, step + 1)."""


@torch.inference_mode()
def generate(
    model: "PreTrainedModel | Network",
    vocabulary: Vocabulary,
    captions: Sequence[Sequence[int]],
    num_codes: int,
    config: SamplingConfig,
    uniform_BT: Tensor,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw the codes of one picture for each caption, (B, T) int64.

    Only rows of image codes are ever computed, so no other id can be drawn.

    Args:
        model: any causal LM over `vocabulary`, of transformers or as `network_of` gives it.
        vocabulary: the joint vocabulary.
        captions: B captions as ids, of any lengths; an empty one draws without caption.
        num_codes: T.
        config: guidance, temperature and filters.
        uniform_BT: (B, T) random numbers in [0, 1), on any device; picture b reads row b alone.
        on_step: called after each step.

    Raises:
        ValueError: a caption that does not fit the model's context.
    """
    network = network_of(model)
    check_length(network.context, captions, num_codes)
    guided = config.guidance_scale != 1
    prompts = [prompt_ids(vocabulary, caption) for caption in captions]
    if guided:
        prompts += [prompt_ids(vocabulary, ())] * len(captions)
    ids_RP, mask_RP = _pad_left(prompts, vocabulary.pad_id)
    device = network.device
    image_rows, image_ids = as_rows(vocabulary.image_ids), torch.from_numpy(vocabulary.image_ids).to(device)
    uniform_BT, input_RP, mask_RP = uniform_BT.to(device), ids_RP.to(device), mask_RP.to(device)
    run, codes = network.start(len(prompts), ids_RP.shape[1] + num_codes), []
    for step in range(num_codes):
        hidden_RD = run.forward(input_RP, mask_RP)
        logits_BK = network.logits(hidden_RD, image_rows).float()
        if guided:
            logits_BK = guide(*logits_BK.chunk(2), config.guidance_scale)
        code_B = draw(logits_BK, uniform_BT[:, step], config)
        codes.append(code_B)
        if on_step is not None:
            on_step(step, torch.stack(codes, 1))
        input_RP = image_ids[code_B].repeat(2 if guided else 1)[:, None]
        mask_RP = torch.nn.functional.pad(mask_RP, (0, 1), value=1)
    return torch.stack(codes, 1)


def check_length(context: int, captions: Sequence[Sequence[int]], num_codes: int) -> None:
    """Refuse a caption that does not fit.

    Raises:
        ValueError: caption and picture are longer than `context` positions.
    """
    longest = max(len(caption) for caption in captions)
    if sequence_length(longest, num_codes) > context:
        room = context - sequence_length(0, num_codes)
        raise ValueError(
            f"the prompt has {longest} ids, expected at most {room}: shorten it "
            f"(context {context}, picture {num_codes})"
        )


def _pad_left(prompts: Sequence[np.ndarray], pad_id: int) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = np.full((len(prompts), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)
