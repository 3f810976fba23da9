"""Cross-entropy over modality-masked logits.

A position whose target is an image code chooses among the image ids only, one whose target is text among the text ids
only. That equals the full softmax with -inf on the other ids, and is computed exactly and cheaply: just those
positions times just those rows of the output matrix. Special tokens are no targets (`ar_t2i.sequence`).

Shapes: B batch, T sequence, D width, V vocabulary, N targets of one modality, K ids of one modality.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ar_t2i.data.batching import IGNORED
from ar_t2i.model.build import as_rows, head_logits
from ar_t2i.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_IMAGE, _TEXT = 1, 2


class DecoderWithLoss(nn.Module):
    """The decoder and its loss in one forward, so that DDP and torch.compile wrap a whole step."""

    row_of_id: Tensor
    kind_of_id: Tensor

    def __init__(self, model: "PreTrainedModel", vocabulary: Vocabulary):
        super().__init__()
        self.model = model
        image_ids, text_ids = torch.from_numpy(vocabulary.image_ids), torch.from_numpy(vocabulary.text_ids)
        row_of_id = torch.full((vocabulary.size,), -1)
        row_of_id[image_ids] = torch.arange(len(image_ids))
        row_of_id[text_ids] = torch.arange(len(text_ids))
        kind_of_id = torch.zeros(vocabulary.size, dtype=torch.uint8)
        kind_of_id[image_ids], kind_of_id[text_ids] = _IMAGE, _TEXT
        self.image_rows, self.text_rows = as_rows(vocabulary.image_ids), as_rows(vocabulary.text_ids)
        self.register_buffer("row_of_id", row_of_id, persistent=False)
        self.register_buffer("kind_of_id", kind_of_id, persistent=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Sums over targets, not means, so that they add up over micro-batches and processes.

        Padding stands behind every real token and attention is causal, so no real position ever sees it and no
        attention mask is needed.

        Args:
            input_ids: (B, T) int64.
            labels: (B, T) int64, the input ids themselves, `IGNORED` where there is padding; the shift is done here.

        Returns:
            `image` and `text`, the sums of the cross-entropies in nats; `z`, the sum over image targets of the squared
            logarithm of the softmax's denominator (z-loss).
        """
        hidden_BTD = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        image_BT, text_BT = self._targets(labels)
        image, z = self._sums(hidden_BTD, labels[:, 1:], image_BT, self.image_rows)
        text, _ = self._sums(hidden_BTD, labels[:, 1:], text_BT, self.text_rows)
        return {"image": image, "text": text, "z": z}

    def count_targets(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """How many image and text targets a batch has."""
        image_BT, text_BT = self._targets(labels)
        return image_BT.sum(), text_BT.sum()

    def _targets(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Where the next id is an image code and where it is text, (B, T - 1) each."""
        kind_BT = self.kind_of_id[labels[:, 1:].clamp_min(0)].masked_fill(labels[:, 1:] == IGNORED, 0)
        return kind_BT == _IMAGE, kind_BT == _TEXT

    def _sums(
        self, hidden_BTD: Tensor, next_BT: Tensor, chosen_BT: Tensor, rows_K: slice | Tensor
    ) -> tuple[Tensor, Tensor]:
        logits_NK = head_logits(hidden_BTD[chosen_BT], self.model, rows_K)
        logits_NK = logits_NK if logits_NK.dtype == torch.float64 else logits_NK.float()
        loss = nn.functional.cross_entropy(logits_NK, self.row_of_id[next_BT[chosen_BT]], reduction="sum")
        return loss, logits_NK.logsumexp(-1).square().sum()
