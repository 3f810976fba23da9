"""The matrix products of a decoder's layer, which take nearly all of sampling's time, as a device does them fastest.

Shape suffixes: D width, A numbers of all heads of queries, keys and values, I inner width of the MLP.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

QUERY, KEY, VALUE, OUT = (f"self_attn.{name}_proj.weight" for name in "qkvo")
GATE, UP, DOWN = (f"mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
MATRICES = QUERY, KEY, VALUE, OUT, GATE, UP, DOWN
"""Names of a layer's matrices in a checkpoint."""


class Products(Protocol):
    """Those of one layer; inputs have any dimensions before the last."""

    def heads(self, y_D: Tensor) -> Tensor:
        """All queries, keys and values of y, side by side (A)."""
        ...

    def attended(self, mixed: Tensor, x_D: Tensor) -> Tensor:
        """The residual stream x after the attention's output was added."""
        ...

    def mlp(self, y_D: Tensor, x_D: Tensor) -> Tensor:
        """The residual stream x after the MLP's output for y was added."""
        ...

    @property
    def weights(self) -> dict[str, Tensor]:
        """The matrices by their names, as in a checkpoint."""
        ...


def packs(weight: Tensor) -> bool:
    """Whether `Packed` takes matrices of this device and dtype."""
    onednn = torch.ops.mkldnn
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if not hasattr(onednn, "_linear_pointwise") or not hasattr(onednn, "_reorder_linear_weight"):
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and onednn._is_mkldnn_bf16_supported())


class Plain:
    """The weights as they are, shared with whoever gave them."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = {name: weights[name] for name in MATRICES}
        self.queries_keys_values = [weights[QUERY], weights[KEY], weights[VALUE]]
        self.gate_up = [weights[GATE], weights[UP]]

    def join(self) -> None:
        """Copy matrices that read the same numbers into one each: fewer and larger products."""
        for names in ((QUERY, KEY, VALUE), (GATE, UP)):
            parts = [self.weights[name] for name in names]
            joined = torch.cat(parts)
            self.weights |= zip(names, joined.split([len(part) for part in parts]), strict=True)
            setattr(self, "gate_up" if GATE in names else "queries_keys_values", [joined])

    def heads(self, y_D: Tensor) -> Tensor:
        """See `Products`."""
        return _side_by_side(y_D, self.queries_keys_values)

    def attended(self, mixed: Tensor, x_D: Tensor) -> Tensor:
        """See `Products`."""
        return x_D + F.linear(mixed, self.weights[OUT])

    def mlp(self, y_D: Tensor, x_D: Tensor) -> Tensor:
        """See `Products`."""
        gate_I, up_I = _side_by_side(y_D, self.gate_up).chunk(2, -1)
        return x_D + F.linear(F.silu(gate_I) * up_I, self.weights[DOWN])


class Packed:
    """Copies in the block order that oneDNN reads, with what follows a product done in the same pass.

    MKL arranges a matrix anew at each product. For the two rows of a guided picture that is most of the time: 1024 x
    5632 from memory took 3.7 ms so and 1.5 ms packed, on two cores of an AMD EPYC (Zen 3).
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.rows = [len(weights[name]) for name in (QUERY, KEY, VALUE)]
        self.queries_keys_values = pack(torch.cat([weights[QUERY], weights[KEY], weights[VALUE]]))
        self.out, self.gate, self.up, self.down = (pack(weights[name]) for name in (OUT, GATE, UP, DOWN))

    def __reduce__(self) -> tuple:  # what is packed can be neither copied nor pickled
        return Packed, (self.weights,)

    @property
    def weights(self) -> dict[str, Tensor]:
        """See `Products`; bit for bit what was packed, unpacked at each call."""
        heads = self.queries_keys_values.to_dense().split(self.rows)
        return dict(zip(MATRICES, [*heads, *(each.to_dense() for each in (self.out, self.gate, self.up, self.down))],
                        strict=True))  # fmt: skip

    def heads(self, y_D: Tensor) -> Tensor:
        """See `Products`."""
        return product(y_D, self.queries_keys_values)

    def attended(self, mixed: Tensor, x_D: Tensor) -> Tensor:
        """See `Products`."""
        return torch.ops.mkldnn._linear_pointwise.binary(mixed, x_D, self.out, None, "add")

    def mlp(self, y_D: Tensor, x_D: Tensor) -> Tensor:
        """See `Products`."""
        gate_I = torch.ops.mkldnn._linear_pointwise(y_D, self.gate, None, "swish", [], "")
        inner_I = torch.ops.mkldnn._linear_pointwise.binary(y_D, gate_I, self.up, None, "mul")
        return torch.ops.mkldnn._linear_pointwise.binary(inner_I, x_D, self.down, None, "add")


def pack(weight: Tensor) -> Tensor:
    """A matrix in oneDNN's block order, an opaque tensor; `to_dense` gives it back."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), 2)


def product(x: Tensor, packed: Tensor) -> Tensor:
    """X times the transpose of a matrix that `pack` gave."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _side_by_side(x: Tensor, weights: list[Tensor]) -> Tensor:
    return F.linear(x, weights[0]) if len(weights) == 1 else torch.cat([F.linear(x, each) for each in weights], -1)
