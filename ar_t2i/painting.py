"""Codes to pictures in the arithmetic that suits the device: bfloat16 where it is fast and nobody sees it."""

from contextlib import nullcontext

import torch
from torch import Tensor

from ar_t2i.device import has_fast_bf16
from ar_t2i.image_tokenizer import ImageTokenizer
from ar_t2i.likeness import psnr

LEAST_PSNR = 50.0
"""dB that bfloat16's pictures must have, by those of float32, to be taken."""
_COMPARED = 2


def painting_dtype(image_tokenizer: ImageTokenizer, device: torch.device) -> torch.dtype:
    """bfloat16 where it is fast and its pictures of some fixed codes are as good as float32's; float32 elsewhere.

    What is drawn has no part in it, so that a seed gives the same pictures in any company.
    """
    if not has_fast_bf16(device):
        return torch.float32
    shape = _COMPARED, image_tokenizer.num_codes
    codes_BT = torch.randint(image_tokenizer.codebook_size, shape, generator=torch.Generator().manual_seed(0))
    exact, fast = (decode_in(dtype, image_tokenizer, codes_BT.to(device)) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if psnr(fast, exact).min() >= LEAST_PSNR else torch.float32


@torch.inference_mode()
def decode_in(dtype: torch.dtype, image_tokenizer: ImageTokenizer, codes_BT: Tensor) -> Tensor:
    """Codes (B, T) to pictures (B, 3, S, S), in [0, 1], under autocast to a dtype other than float32."""
    kind = codes_BT.device.type
    with nullcontext() if dtype == torch.float32 else torch.autocast(kind, dtype):
        return image_tokenizer.decode(codes_BT).float()
