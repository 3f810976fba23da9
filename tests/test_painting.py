"""bfloat16 is taken where it is fast and hardly shows, whatever is drawn."""

import pytest
import torch

from ar_t2i import painting
from ar_t2i.painting import decode_in, painting_dtype


class Rounding:
    """Decodes to grey, or to a little less under bfloat16."""

    num_codes, codebook_size = 4, 8

    def __init__(self, loss):
        self.loss, self.seen = loss, []

    def decode(self, codes):
        self.seen.append(codes)
        return torch.full((len(codes), 3, 8, 8), 0.5 - self.loss * torch.is_autocast_enabled("cpu"))


@pytest.mark.parametrize(("loss", "expected"), [(0.003, torch.bfloat16), (0.0033, torch.float32)])
def test_bfloat16_within_50_db(monkeypatch, loss, expected):
    monkeypatch.setattr(painting, "has_fast_bf16", lambda device: True)
    tokenizer = Rounding(loss)
    assert painting_dtype(tokenizer, torch.device("cpu")) == expected
    assert torch.equal(*tokenizer.seen), "the two paint other codes"
    assert painting_dtype(tokenizer, torch.device("cpu")) == expected
    assert torch.equal(tokenizer.seen[0], tokenizer.seen[2]), "the choice depends on chance"


def test_nothing_is_compared_where_bfloat16_is_slow(monkeypatch):
    monkeypatch.setattr(painting, "has_fast_bf16", lambda device: False)
    tokenizer = Rounding(0)
    assert painting_dtype(tokenizer, torch.device("cpu")) == torch.float32 and not tokenizer.seen


def test_pixels_come_in_float32(image_tokenizer):
    codes = torch.zeros(1, image_tokenizer.num_codes, dtype=torch.long)
    exact, fast = (decode_in(dtype, image_tokenizer, codes) for dtype in (torch.float32, torch.bfloat16))
    assert exact.dtype == fast.dtype == torch.float32
    assert torch.equal(exact, image_tokenizer.decode(codes)) and (fast - exact).abs().mean() < 0.02
