"""Cross-entropy over modality-masked logits.

A position whose target is an image code chooses among the image ids only, one whose target is text among the text ids
only. That equals the full softmax with -inf on the other ids, and is computed exactly and cheaply: just those positions times just
those rows of the output matrix. Special tokens are no targets (`ar_t2i.sequence`).

Shapes: B batch, T sequence, D width, V vocabulary, N targets of one modality, K ids of one modality.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ar_t2i.data.batching import IGNORED
from ar_t2i.model.build import as_rows, head_logits
from ar_t2i.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LossSums:
    """Sums over targets, not means, so that they add up over micro-batches and processes."""

    image: Tensor
    """Sum of the cross-entropies of image targets, nats."""
    text: Tensor
    """Sum of the cross-entropies of text targets, nats."""
    z: Tensor
    """Sum over image targets of the squared log of the softmax's denominator."""
    image_count: Tensor
    """Number of image targets."""
    text_count: Tensor
    """Number of text targets."""


class DecoderWithLoss(nn.Module):
    """The decoder and its loss in one forward, so that DDP, FSDP and torch.compile wrap a whole step."""

    row_of_id: Tensor
    is_image: Tensor
    is_text: Tensor

    def __init__(self, model: "PreTrainedModel", vocabulary: Vocabulary):
        super().__init__()
        self.model = model
        image_ids, text_ids = torch.from_numpy(vocabulary.image_ids), torch.from_numpy(vocabulary.text_ids)
        row_of_id = torch.full((vocabulary.size,), -1)
        row_of_id[image_ids] = torch.arange(len(image_ids))
        row_of_id[text_ids] = torch.arange(len(text_ids))
        is_image, is_text = torch.zeros(2, vocabulary.size, dtype=torch.bool)
        is_image[image_ids], is_text[text_ids] = True, True
        self.image_rows, self.text_rows = as_rows(vocabulary.image_ids), as_rows(vocabulary.text_ids)
        self.register_buffer("row_of_id", row_of_id, persistent=False)
        self.register_buffer("is_image", is_image, persistent=False)
        self.register_buffer("is_text", is_text, persistent=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> LossSums:
        """Sums of the losses of a right-padded batch.

        Padding stands behind every real token and attention is causal, so no real position ever sees it and no attention
        mask is needed.

        Args:
            input_ids: (B, T) int64.
            labels: (B, T) int64, the input ids themselves, `IGNORED` where there is padding; the shift is done here.
        """
        hidden_BTD = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        targets_BT = labels[:, 1:]
        known_BT = targets_BT.clamp_min(0)
        valid_BT = targets_BT != IGNORED
        image, z, image_count = self._sums(hidden_BTD, known_BT, valid_BT & self.is_image[known_BT], self.image_rows)
        text, _, text_count = self._sums(hidden_BTD, known_BT, valid_BT & self.is_text[known_BT], self.text_rows)
        return LossSums(image=image, text=text, z=z, image_count=image_count, text_count=text_count)

    def _sums(self, hidden_BTD: Tensor, targets_BT: Tensor, chosen_BT: Tensor, rows_K: slice | Tensor) -> tuple[Tensor, ...]:
        logits_NK = head_logits(hidden_BTD[chosen_BT], self.model, rows_K)
        logits_NK = logits_NK if logits_NK.dtype == torch.float64 else logits_NK.float()
        rows_N = self.row_of_id[targets_BT[chosen_BT]]
        loss = nn.functional.cross_entropy(logits_NK, rows_N, reduction="sum")
        return loss, logits_NK.logsumexp(-1).square().sum(), chosen_BT.sum()
