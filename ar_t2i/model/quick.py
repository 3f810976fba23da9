"""Qwen3's layers with less work between the matrices, for training: the same numbers, and gradients written out.

Modules of a stock model change their class and nothing else: names, weights, hooks and checkpoints stay as they are.
Each function keeps the little that its way back needs, where torch keeps what every step on the way has read. A
compiler fuses the stock layers by itself, so it gets those.

Shape suffixes: B batch, T sequence, H heads of queries and of keys, E numbers in a head, I inner width.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3 import modeling_qwen3 as stock

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def quicken(model: "PreTrainedModel") -> None:
    """Let the parts of a stock Qwen3 that are alike here run as they are written here; of other models there are none.

    Call it before the model is cut up or copied; a copy is as quick.
    """
    for module in model.modules():
        if type(module) is stock.Qwen3RMSNorm:
            module.__class__ = QuickNorm
        elif type(module) is stock.Qwen3MLP and module.config.hidden_act == "silu":
            module.__class__ = QuickMLP
        elif type(module) is stock.Qwen3Attention and not module.config.attention_bias:
            module.__class__ = QuickAttention


class QuickNorm(stock.Qwen3RMSNorm):
    """Numbers divided by their root mean square (arXiv 1910.07467)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As stock."""
        if torch.compiler.is_compiling():
            return super().forward(hidden_states)
        return _Normed.apply(hidden_states, self.weight, self.variance_epsilon)


class QuickMLP(stock.Qwen3MLP):
    """SwiGLU (arXiv 2002.05202), its two matrices multiplied as one."""

    def forward(self, x: Tensor) -> Tensor:
        """As stock."""
        if torch.compiler.is_compiling() or not _are_plain(self.gate_proj, self.up_proj):
            return super().forward(x)
        return self.down_proj(_Gated.apply(_Joined.apply(x, self.gate_proj.weight, self.up_proj.weight)))


class QuickAttention(stock.Qwen3Attention):
    """Queries, keys and values from one product; queries and keys normed and turned together."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As stock."""
        layers = self.q_proj, self.k_proj, self.v_proj, self.q_norm, self.k_norm
        if torch.compiler.is_compiling() or not _are_plain(*layers):
            return super().forward(hidden_states, position_embeddings, attention_mask, past_key_values, **kwargs)
        cos_BTE, sin_BTE = position_embeddings
        queries, keys = (layer.out_features // self.head_dim for layer in (self.q_proj, self.k_proj))
        joined = _Joined.apply(hidden_states, self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        both_BTHE, values = joined.unflatten(-1, (-1, self.head_dim)).split([queries + keys, keys], -2)
        weight_HE = torch.cat([self.q_norm.weight.expand(queries, -1), self.k_norm.weight.expand(keys, -1)])
        normed = _Normed.apply(both_BTHE, weight_HE, self.q_norm.variance_epsilon)
        turned = _Turned.apply(normed, cos_BTE.unsqueeze(-2), sin_BTE.unsqueeze(-2))
        query, key = (part.transpose(1, 2) for part in turned.split([queries, keys], -2))
        value = values.transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            str(self.config._attn_implementation), stock.eager_attention_forward
        )
        mixed, chances = attend(
            self, query, key, value, attention_mask, dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling, sliding_window=self.sliding_window, **kwargs,
        )  # fmt: skip
        return self.o_proj(mixed.reshape(*hidden_states.shape[:-1], -1)), chances


def _are_plain(*layers: nn.Module) -> bool:
    """Whether nothing but their weights counts: an adapter or a hook that was put on later must not be passed by."""
    return not any(
        type(each) not in (nn.Linear, QuickNorm)
        or getattr(each, "bias", None) is not None
        or each._forward_hooks
        or each._forward_pre_hooks
        or each._backward_hooks
        or each._backward_pre_hooks
        for each in layers
    )


class _Normed(torch.autograd.Function):
    """x w / rms(x) over the last dimension, in float32 at least."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = x if x.dtype == torch.float64 else x.float()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        inverse = (length.square_() / x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (exact * inverse).mul_(weight).to(torch.promote_types(x.dtype, weight.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        normed, inner = x * inverse, gradient * weight
        of_weight = (gradient * normed).sum_to_size(weight.shape) if ctx.needs_input_grad[1] else None
        along = torch.linalg.vecdot(inner, normed).unsqueeze(-1) / x.shape[-1]
        return inner.addcmul_(normed, along, value=-1).mul_(inverse).to(x.dtype), of_weight, None


class _Turned(torch.autograd.Function):
    """Rotary positions (arXiv 2104.09864): pairs of numbers half a head apart, turned by the angles of their place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turn(gradient, cos, sin, -1), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    turned, half = x * cos, x.shape[-1] // 2
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-way)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:], value=way)
    return turned


class _Gated(torch.autograd.Function):
    """silu(gate) up, of both side by side (..., 2 I)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        of_both = torch.empty_like(gate_up)
        of_gate, of_up = of_both.chunk(2, -1)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=of_gate)
        torch.mul(F.silu(gate), gradient, out=of_up)
        return of_both


class _Joined(torch.autograd.Function):
    """x times several matrices side by side, one product for all; they are put together anew on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x = x.to(dtype)
        ctx.save_for_backward(x, *weights)
        return F.linear(x, torch.cat(weights).to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        of_x = gradient @ torch.cat(weights).to(x.dtype) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return of_x, *(None for _ in weights)
        of_weights = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).to(weights[0].dtype)
        return of_x, *of_weights.split([len(weight) for weight in weights])
