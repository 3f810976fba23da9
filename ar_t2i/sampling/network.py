"""The decoder as the sampler runs it: hidden states step by step over a cache that is allocated once.

`Qwen3` computes what transformers' `Qwen3ForCausalLM` computes, in plain torch: several times faster at small sizes,
where the calls between the matrices take the time, and without the seconds that importing a model of transformers
takes. Any other causal LM, or one that has been altered (adapters, hooks, attention of its own), runs as `Stock`.

Shape suffixes: R rows of the batch, P new positions, S positions so far and new ones, D width, H heads, G heads of
keys and values, E numbers in a head, K ids.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ar_t2i.model.build import head_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Run(Protocol):
    """One batch on its way: the keys and values so far."""

    def forward(self, ids_RP: Tensor, mask_RS: Tensor) -> Tensor:
        """Hidden states (R, D) of the last position, after P more.

        Args:
            ids_RP: the new ids.
            mask_RS: 1 for an id, 0 for padding, of all positions so far and the new ones; positions count ids alone.
        """
        ...


class Network(Protocol):
    """What the sampler needs of a decoder."""

    context: int
    """Positions that it knows."""
    num_ids: int
    """Ids that it embeds."""

    @property
    def device(self) -> torch.device:
        """Where its weights lie."""
        ...

    def start(self, rows: int, length: int) -> Run:
        """A batch of `rows` rows and at most `length` positions."""
        ...

    def logits(self, hidden_RD: Tensor, ids_K: slice | Tensor) -> Tensor:
        """Logits (R, K) of some ids."""
        ...


def network_of(model: "PreTrainedModel | Network") -> Network:
    """A model of transformers as the sampler runs it; it shares the model's weights."""
    if isinstance(model, (Qwen3, Stock)):
        return model
    stock: Any = model
    plain = type(stock).__module__ == "transformers.models.qwen3.modeling_qwen3" and not stock.training
    if not plain or stock.config._attn_implementation not in ("sdpa", "eager") or _is_altered(stock):
        return Stock(stock)
    config = stock.config.to_dict()
    return Qwen3(config, dict(stock.named_parameters())) if Qwen3.knows(config) else Stock(stock)


class Stock:
    """Any causal LM of transformers."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self.model, self.device = model, model.device
        self.context: int = model.config.max_position_embeddings
        table: Any = model.get_input_embeddings()
        self.num_ids: int = table.weight.shape[0]

    def start(self, rows: int, length: int) -> "_StockRun":
        """See `Network`."""
        return _StockRun(self.model)

    def logits(self, hidden_RD: Tensor, ids_K: slice | Tensor) -> Tensor:
        """See `Network`."""
        return head_logits(hidden_RD, self.model, ids_K)


class _StockRun:
    def __init__(self, model: "PreTrainedModel") -> None:
        from transformers import DynamicCache

        self.model, self.cache = model, DynamicCache(config=model.config)

    def forward(self, ids_RP: Tensor, mask_RS: Tensor) -> Tensor:
        positions_RP = _positions(mask_RS, ids_RP.shape[1])
        output = self.model.base_model(
            input_ids=ids_RP,
            attention_mask=mask_RS,
            position_ids=positions_RP,
            past_key_values=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, -1]


class _Layer(NamedTuple):
    """The tensors of one layer, by what they make."""

    attention_norm_D: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    query_norm_E: Tensor
    key_norm_E: Tensor
    mixed: Tensor
    mlp_norm_D: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


_NAMES = {
    "attention_norm_D": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm_E": "self_attn.q_norm",
    "key_norm_E": "self_attn.k_norm",
    "mixed": "self_attn.o_proj",
    "mlp_norm_D": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""What transformers calls them."""


class Qwen3:
    """A `Qwen3ForCausalLM` for inference alone: full attention, no biases, plain rotary positions."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a checkpoint, by their names in transformers, without a copy.

        Raises:
            ValueError: a config that `knows` refuses, or tensors that are missing, too many or of another shape.
        """
        if not self.knows(config):
            raise ValueError("the config is of no plain Qwen3 decoder")
        expected = _shapes(config)
        for kind, names in (("missing", expected.keys() - weights.keys()), ("unexpected", weights.keys() - expected)):
            if names:
                raise ValueError(f"{len(names)} {kind} tensors in the weights, the first {min(names)}")
        for name, shape in expected.items():
            if weights[name].shape != shape:
                raise ValueError(
                    f"mismatched tensors in the weights: {name} is {tuple(weights[name].shape)}, expected {shape}"
                )
        self.config, self.weights = dict(config), dict(weights)
        self.context: int = config["max_position_embeddings"]
        self.num_ids: int = config["vocab_size"]
        self.heads: int = config["num_attention_heads"]
        self.shared: bool = config["num_key_value_heads"] != self.heads
        self.head_dim: int = config["head_dim"]
        self.eps: float = config["rms_norm_eps"]
        self._arrange()

    @staticmethod
    def knows(config: Mapping[str, Any]) -> bool:
        """Whether a config.json describes a decoder that this class computes."""
        rope = config.get("rope_parameters") or {}
        return (
            config.get("model_type") == "qwen3"
            and config.get("architectures") in (None, ["Qwen3ForCausalLM"])
            and config.get("hidden_act") == "silu"
            and not config.get("attention_bias")
            and not config.get("use_sliding_window")
            and not config.get("quantization_config")
            and rope.get("rope_type") == "default"
            and rope.get("partial_rotary_factor", 1.0) == 1.0
        )

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read config.json and model.safetensors, as float32.

        Raises:
            ValueError: a file that is missing or unreadable, or tensors that do not fit the config.
        """
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
        except (OSError, json.JSONDecodeError, SafetensorError) as error:
            raise ValueError(f"{folder}: no causal LM with safetensors weights could be loaded: {error}") from error
        try:
            return cls(config, weights)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error

    def to(self, target: torch.device | torch.dtype | str) -> Self:
        """Move to a device or dtype."""
        self.weights = {name: tensor.to(target) for name, tensor in self.weights.items()}
        self._arrange()
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.table_KD.device

    def stock(self) -> "PreTrainedModel":
        """The same decoder as a model of transformers, which shares the weights."""
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(**{name: value for name, value in self.config.items() if name != "dtype"})
        with torch.device("meta"):
            model = Qwen3ForCausalLM(config)
        rotary = type(model.model.rotary_emb)(config)  # its frequencies are in no checkpoint
        model.load_state_dict(self.weights, strict=False, assign=True)
        model.tie_weights()
        model.model.rotary_emb = rotary.to(self.device)
        return model.eval()

    def start(self, rows: int, length: int) -> "_Qwen3Run":
        """See `Network`."""
        return _Qwen3Run(self, rows, length)

    def logits(self, hidden_RD: Tensor, ids_K: slice | Tensor) -> Tensor:
        """See `Network`."""
        return F.linear(hidden_RD, self.head_KD[ids_K])

    def _arrange(self) -> None:
        weights = self.weights
        self.table_KD = weights["model.embed_tokens.weight"]
        self.head_KD = weights.get("lm_head.weight", self.table_KD)
        self.norm_D = weights["model.norm.weight"]
        self.layers = [
            _Layer(**{own: weights[f"model.layers.{number}.{name}.weight"] for own, name in _NAMES.items()})
            for number in range(self.config["num_hidden_layers"])
        ]
        steps_E = torch.arange(0, self.head_dim, 2, device=self.device).float() / self.head_dim
        angles_SE = torch.arange(self.context, device=self.device).float()[:, None] / (
            self.config["rope_parameters"]["rope_theta"] ** steps_E
        )
        angles_SE = torch.cat((angles_SE, angles_SE), -1)
        dtype = self.table_KD.dtype
        self.cos_SE, self.sin_SE = angles_SE.cos().to(dtype), angles_SE.sin().to(dtype)


class _Qwen3Run:
    def __init__(self, network: Qwen3, rows: int, length: int) -> None:
        self.network, self.used = network, 0
        shape = rows, network.config["num_key_value_heads"], length, network.head_dim
        table = network.table_KD
        self.caches = [(table.new_empty(shape), table.new_empty(shape)) for _ in network.layers]

    def forward(self, ids_RP: Tensor, mask_RS: Tensor) -> Tensor:
        net, new = self.network, ids_RP.shape[1]
        positions_RP = _positions(mask_RS, new)
        cos_R1PE, sin_R1PE = net.cos_SE[positions_RP][:, None], net.sin_SE[positions_RP][:, None]
        seen_R1PS = mask_RS.bool()[:, None, None]
        if new > 1:  # causal; an id sees itself even where it is padding, or its softmax would be over nothing
            own_PS = torch.ones(new, self.used + new, dtype=torch.bool, device=mask_RS.device)
            seen_R1PS = (seen_R1PS & own_PS.tril(self.used)) | torch.eye(
                new, self.used + new, dtype=torch.bool, device=mask_RS.device
            ).roll(self.used, 1)
        x_RPD = net.table_KD[ids_RP]
        for layer, cache in zip(net.layers, self.caches, strict=True):
            x_RPD = x_RPD + self._attend(
                layer, cache, self._norm(x_RPD, layer.attention_norm_D), cos_R1PE, sin_R1PE, seen_R1PS
            )
            y_RPD = self._norm(x_RPD, layer.mlp_norm_D)
            x_RPD = x_RPD + F.linear(F.silu(F.linear(y_RPD, layer.gate)) * F.linear(y_RPD, layer.up), layer.down)
        self.used += new
        return self._norm(x_RPD[:, -1], net.norm_D)

    def _attend(
        self,
        layer: _Layer,
        cache: tuple[Tensor, Tensor],
        y_RPD: Tensor,
        cos_R1PE: Tensor,
        sin_R1PE: Tensor,
        seen_R1PS: Tensor,
    ) -> Tensor:
        heads = -1, self.network.head_dim
        query_RHPE = self._norm(F.linear(y_RPD, layer.query).unflatten(-1, heads), layer.query_norm_E).transpose(1, 2)
        key_RGPE = self._norm(F.linear(y_RPD, layer.key).unflatten(-1, heads), layer.key_norm_E).transpose(1, 2)
        stop = self.used + y_RPD.shape[1]
        keys, values = cache
        keys[:, :, self.used : stop] = key_RGPE * cos_R1PE + _turned(key_RGPE) * sin_R1PE
        values[:, :, self.used : stop] = F.linear(y_RPD, layer.value).unflatten(-1, heads).transpose(1, 2)
        mixed_RHPE = F.scaled_dot_product_attention(
            query_RHPE * cos_R1PE + _turned(query_RHPE) * sin_R1PE,
            keys[:, :, :stop],
            values[:, :, :stop],
            attn_mask=seen_R1PS,
            enable_gqa=self.network.shared,
        )
        return F.linear(mixed_RHPE.transpose(1, 2).flatten(2), layer.mixed)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.network.eps)


def _turned(x: Tensor) -> Tensor:
    """The second half, negated, before the first."""
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _positions(mask_RS: Tensor, new: int) -> Tensor:
    """Positions (R, P) of the new ids: padding does not count."""
    return (mask_RS.cumsum(-1) - 1).clamp_min(0)[:, -new:]


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = {
        "attention_norm_D": (width,), "query": (queries, width), "key": (keys, width), "value": (keys, width),
        "query_norm_E": (head,), "key_norm_E": (head,), "mixed": (width, queries),
        "mlp_norm_D": (width,), "gate": (inner, width), "up": (inner, width), "down": (width, inner),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{number}.{name}.weight": layer[own]
        for number in range(config["num_hidden_layers"])
        for own, name in _NAMES.items()
    }
    shapes |= {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return shapes


def _is_altered(model: Any) -> bool:
    """Whether a module is not transformers' own, or has hooks."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or not type(module).__module__.startswith(("transformers.", "torch.nn."))
        for module in model.modules()
    )
