"""Cross-entropy over modality-masked logits.

A position whose target is an image code chooses among the image ids only, one whose target is text among the text ids
only. That equals the full softmax with -inf on the other ids, and is computed exactly and cheaply: just those
positions times just those rows of the output matrix. Special tokens are no targets (`ar_t2i.sequence`).

Shapes: B batch, T sequence, P all positions B T, D width, V vocabulary; of one modality N targets and K ids.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ar_t2i.data.batching import IGNORED
from ar_t2i.model.build import as_rows, output_layer
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
        hidden_BTD = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        (image, z), (text, _) = self._sums(hidden_BTD.flatten(0, 1), labels).unbind()
        return {"image": image, "text": text, "z": z}

    def count_targets(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """How many image and text targets a batch has."""
        image_BT, text_BT = self._targets(labels)
        return image_BT.sum(), text_BT.sum()

    def _targets(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Where the next id is an image code and where it is text, (B, T - 1) each."""
        kind_BT = self.kind_of_id[labels[:, 1:].clamp_min(0)].masked_fill(labels[:, 1:] == IGNORED, 0)
        return kind_BT == _IMAGE, kind_BT == _TEXT

    @torch.compiler.disable()  # numbers of targets differ from batch to batch
    def _sums(self, hidden_PD: Tensor, labels: Tensor) -> Any:
        """The cross-entropies and the squared logarithms, (2, 2), of image and text."""
        head = output_layer(self.model)
        parts = []
        for chosen_BT, rows_K in zip(self._targets(labels), (self.image_rows, self.text_rows), strict=True):
            places_N = nn.functional.pad(chosen_BT, (0, 1)).flatten().nonzero().squeeze(1)  # the last one sees no next
            parts.append((places_N, self.row_of_id[labels[:, 1:][chosen_BT]], rows_K))
        return _CrossEntropy.apply(hidden_PD, head.weight, head.bias, parts)


_Part = tuple[Tensor, Tensor, slice | Tensor]
"""Targets of one modality: their places among P positions, the rows they are among the rows K, and these."""


class _CrossEntropy(torch.autograd.Function):
    """Sums of cross-entropies and of squared logarithms of the denominators, each modality among its own ids.

    Written out so that of the logits, the largest tensor of a step, there is one copy and not four: the chances less
    one at the target, p - y, replace them at once. With the logarithm l and the two sums' gradients a and b, that of
    the logits is a (p - y) + 2 b l p = (a + 2 b l) (p - y) + 2 b l y, so matrices are multiplied with p - y as it is.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, parts: Sequence[_Part]
    ) -> Tensor:
        device = hidden_PD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_PD.dtype
        sums, saved = [], []
        for places_N, targets_N, rows_K in parts:
            weight_KD = weight_VD[rows_K].to(dtype)
            chosen_ND = hidden_PD[places_N].to(dtype)
            errors_NK = chosen_ND.new_empty(len(chosen_ND), len(weight_KD))
            logs_N, losses_N = [], []
            step = max(1, (_IN_CACHE if device == "cpu" else _AT_ONCE) // len(weight_KD))
            for chosen, errors, target_N1 in zip(
                chosen_ND.split(step), errors_NK.split(step), targets_N[:, None].split(step), strict=True
            ):
                logits = torch.mm(chosen, weight_KD.T, out=errors)
                logits = logits if dtype == torch.float64 else logits.float()
                if bias_V is not None:
                    logits += bias_V[rows_K]
                target_logit_N1, largest_N1 = logits.gather(1, target_N1), logits.amax(1, keepdim=True)
                total_N1 = logits.sub_(largest_N1).exp_().sum(1, keepdim=True)
                logs_N.append(largest_N1 + total_N1.log())
                losses_N.append(logs_N[-1] - target_logit_N1)
                logits.div_(total_N1).scatter_(1, target_N1, torch.expm1(-losses_N[-1]))
                errors.copy_(logits)  # unless they are the same
            log_N1, loss_N1 = torch.cat(logs_N), torch.cat(losses_N)
            sums.append(torch.stack([loss_N1.sum(), log_N1.square().sum()]))
            saved += [places_N, targets_N, chosen_ND, errors_NK, log_N1]
        ctx.rows = [rows_K for _, _, rows_K in parts]
        ctx.shape = hidden_PD.shape
        ctx.save_for_backward(weight_VD, *saved)
        return torch.stack(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_of_sums: Tensor) -> tuple[Tensor | None, ...]:
        weight_VD, *saved = ctx.saved_tensors
        _, trained, biased, _ = ctx.needs_input_grad
        hidden_PD = weight_VD.new_zeros(ctx.shape)
        gradient_VD = torch.zeros_like(weight_VD) if trained else None
        gradient_V = weight_VD.new_zeros(len(weight_VD)) if biased else None
        for number, rows_K in enumerate(ctx.rows):
            places_N, targets_N, chosen_ND, errors_NK, log_N1 = saved[5 * number : 5 * number + 5]
            of_loss, of_z = gradient_of_sums[number]
            of_target_N1 = 2 * of_z * log_N1
            of_error_N1 = of_loss + of_target_N1
            weight_KD = weight_VD[rows_K]
            step_ND = torch.mm(errors_NK, weight_KD.to(errors_NK.dtype)) * of_error_N1
            hidden_PD[places_N] = step_ND.addcmul_(weight_KD[targets_N], of_target_N1).to(hidden_PD.dtype)
            if gradient_VD is not None:
                rows_KD = torch.mm(errors_NK.T, (of_error_N1 * chosen_ND).to(errors_NK.dtype)).to(weight_VD.dtype)
                rows_KD.index_add_(0, targets_N, (of_target_N1 * chosen_ND).to(weight_VD.dtype))
                gradient_VD[rows_K] = rows_KD
            if gradient_V is not None:
                row_K = (errors_NK.T @ of_error_N1.to(errors_NK.dtype)).squeeze(1).to(weight_VD.dtype)
                gradient_V[rows_K] = row_K.index_add_(0, targets_N, of_target_N1.squeeze(1).to(weight_VD.dtype))
        return hidden_PD, gradient_VD, gradient_V, None


_IN_CACHE, _AT_ONCE = 2**22, 2**28
"""Logits that are worked on together, on a CPU and elsewhere."""
