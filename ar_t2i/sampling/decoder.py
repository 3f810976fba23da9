"""The sampling loop: read the captions once, then one step a code with a key-value cache.

Captions of any length stand in one batch, padded on the left; each distinct one is read once, however many pictures it
is for. With guidance, the unconditional rows stand below the conditional ones, so that one step serves both:

    keys        pad  pad  a    bird SOI | code 0  code 1 ...
    picture 0   .    .    x    x    x   | x       x
    picture 1   x    x    x    x    x   | x       x
    uncond. 0   .    .    .    .    x   | x       x          . = masked, positions count from the first x
    uncond. 1   .    .    .    .    x   | x       x

Shapes: B pictures, R rows (B, or 2 B with guidance), U distinct captions, P their length as prompts, D width, K codes,
T codes of a picture.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ar_t2i.model.build import as_rows
from ar_t2i.sampling.logits import SamplingConfig, draw, guidance_scales, guide
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
    scales = guidance_scales(config, num_codes)
    guided = any(scale != 1 for scale in scales)
    wanted = [tuple(caption) for caption in captions] + [()] * (len(captions) if guided else 0)
    place_of = {caption: place for place, caption in enumerate(dict.fromkeys(wanted))}
    ids_UP, mask_UP = _pad_left([prompt_ids(vocabulary, caption) for caption in place_of], vocabulary.pad_id)
    device = network.device
    rows_R = torch.tensor([place_of[caption] for caption in wanted], device=device)
    head, image_ids = network.head(as_rows(vocabulary.image_ids)), torch.from_numpy(vocabulary.image_ids).to(device)
    uniform_BT, codes_BT = uniform_BT.to(device), rows_R.new_empty(len(captions), num_codes)
    with network.run(len(wanted), ids_UP.shape[1] + num_codes) as run:
        hidden_RD = run.prefill(ids_UP.to(device), mask_UP.to(device), rows_R)
        for step in range(num_codes):
            logits_BK = head(hidden_RD).float()
            if guided:
                conditional_BK, unconditional_BK = logits_BK.chunk(2)
                off = scales[step] == 1
                logits_BK = conditional_BK if off else guide(conditional_BK, unconditional_BK, scales[step])
            code_B = codes_BT[:, step] = draw(logits_BK, uniform_BT[:, step], config)
            if on_step is not None:
                on_step(step, codes_BT[:, : step + 1].clone())
            if step + 1 < num_codes:
                hidden_RD = run.step(image_ids[code_B].repeat(2 if guided else 1))
    return codes_BT


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
