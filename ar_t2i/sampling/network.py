"""The decoder as the sampler runs it: hidden states step by step over a cache that is allocated once.

`Qwen3` computes what transformers' `Qwen3ForCausalLM` computes, in plain torch: several times faster at small sizes,
where the calls between the matrices take the time, and without the seconds that importing a model of transformers
takes. Any other causal LM, or one that has been altered (adapters, hooks, attention of its own), runs as `Stock`.

Shape suffixes: R rows of the batch, P new positions, S positions so far and new ones, D width, H heads, G heads of
keys and values, E numbers in a head, K ids.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ar_t2i.model.build import MOST_LAYERS, check_plain, head_logits
from ar_t2i.untrusted import read_json, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_FEW_ROWS = 4
_FEW_POSITIONS = 4096


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
    """The tensors of one layer; matrices that read the same numbers stand together, and may be one."""

    attention_norm_D: Tensor
    queries_keys_values: tuple[Tensor, ...]
    head_norms_NE: Tensor
    """Of the H heads of queries, then of the G of keys."""
    mixed: Tensor
    mlp_norm_D: Tensor
    gate_up: tuple[Tensor, ...]
    down: Tensor


_READ_THE_SAME = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)


class Qwen3:
    """A `Qwen3ForCausalLM` for inference alone: full attention, no biases, plain rotary positions."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a checkpoint, by their names in transformers, without a copy.

        Raises:
            ValueError: a config that `knows` refuses, or tensors that are missing, too many or of another shape.
        """
        if not self.knows(config):
            raise ValueError("the config is of no plain Qwen3 decoder")
        _check_numbers(config)
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
        self.key_heads: int = config["num_key_value_heads"]
        self.head_dim: int = config["head_dim"]
        self.eps: float = config["rms_norm_eps"]
        self._arrange()

    @staticmethod
    def knows(config: Mapping[str, Any]) -> bool:
        """Whether a config.json describes a decoder that this class computes."""
        rope = config.get("rope_parameters") or {}
        return (
            isinstance(rope, Mapping)
            and config.get("model_type") == "qwen3"
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
            config = read_json(folder / "config.json")
            stored = read_tensors(folder / "model.safetensors")
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder}: no causal LM with safetensors weights could be loaded: {error}") from error
        try:
            check_plain(config)  # `stock` hands it to transformers
            network = cls(config, {name: tensor.float() for name, tensor in stored.items()})
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        network._join()
        return network

    def to(self, target: torch.device | torch.dtype | str) -> Self:
        """Move to a device or dtype."""
        self.weights = {name: tensor.to(target) for name, tensor in self.weights.items()}
        self._join()
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
        if length > len(self.cos_SE):
            self._turn(length)
        return _Qwen3Run(self, rows, length)

    def logits(self, hidden_RD: Tensor, ids_K: slice | Tensor) -> Tensor:
        """See `Network`."""
        return _linear(hidden_RD, self.head_KD[ids_K])

    def _join(self) -> None:
        """Put matrices that read the same numbers into one; their names then mean parts of it."""
        for number in range(self.config["num_hidden_layers"]):
            for group in _READ_THE_SAME:
                names = [f"model.layers.{number}.{name}.weight" for name in group]
                rows = [len(self.weights[name]) for name in names]
                joined = torch.cat([self.weights[name] for name in names])
                self.weights |= zip(names, joined.split(rows), strict=True)
        self._arrange()

    def _arrange(self) -> None:
        self.table_KD = self.weights["model.embed_tokens.weight"]
        self.head_KD = self.weights.get("lm_head.weight", self.table_KD)
        self.norm_D = self.weights["model.norm.weight"]
        self.layers = [self._layer(number) for number in range(self.config["num_hidden_layers"])]
        self._turn(min(self.context, _FEW_POSITIONS))

    def _turn(self, positions: int) -> None:
        """Make the rotary tables for so many positions: a context may be far longer than what is drawn."""
        steps_E = torch.arange(0, self.head_dim, 2, device=self.device).float() / self.head_dim
        angles_SE = torch.arange(positions, device=self.device).float()[:, None] / (
            self.config["rope_parameters"]["rope_theta"] ** steps_E
        )
        dtype = self.table_KD.dtype
        self.cos_SE = torch.cat((angles_SE.cos(), angles_SE.cos()), -1).to(dtype)
        self.sin_SE = torch.cat((-angles_SE.sin(), angles_SE.sin()), -1).to(dtype)

    def _layer(self, number: int) -> _Layer:
        def of(name: str) -> Tensor:
            return self.weights[f"model.layers.{number}.{name}.weight"]

        attention, mlp = (_as_one(tuple(map(of, group))) for group in _READ_THE_SAME)
        norms = of("self_attn.q_norm").expand(self.heads, -1), of("self_attn.k_norm").expand(self.key_heads, -1)
        return _Layer(
            attention_norm_D=of("input_layernorm"),
            queries_keys_values=attention,
            head_norms_NE=torch.cat(norms),
            mixed=of("self_attn.o_proj"),
            mlp_norm_D=of("post_attention_layernorm"),
            gate_up=mlp,
            down=of("mlp.down_proj"),
        )


class _Qwen3Run:
    def __init__(self, network: Qwen3, rows: int, length: int) -> None:
        self.network, self.used = network, 0
        shape = rows, network.config["num_key_value_heads"], length, network.head_dim
        table = network.table_KD
        self.caches = [(table.new_empty(shape), table.new_empty(shape)) for _ in network.layers]

    def forward(self, ids_RP: Tensor, mask_RS: Tensor) -> Tensor:
        net, new = self.network, ids_RP.shape[1]
        positions_RP = _positions(mask_RS, new)
        turn = net.cos_SE[positions_RP][:, :, None], net.sin_SE[positions_RP][:, :, None]
        seen_R1PS = mask_RS.bool()[:, None, None]
        if new > 1:  # causal; an id sees itself even where it is padding, or its softmax would be over nothing
            past_PS = mask_RS.new_ones(new, self.used + new, dtype=torch.bool).tril(self.used)
            own_PS = mask_RS.new_ones(new, self.used + new, dtype=torch.bool).triu(self.used) & past_PS
            seen_R1PS = (seen_R1PS & past_PS) | own_PS
        x_RPD = net.table_KD[ids_RP]
        for layer, cache in zip(net.layers, self.caches, strict=True):
            y_RPD = F.rms_norm(x_RPD, net.norm_D.shape, layer.attention_norm_D, net.eps)
            x_RPD = x_RPD + self._attend(layer, cache, y_RPD, turn, seen_R1PS)
            y_RPD = F.rms_norm(x_RPD, net.norm_D.shape, layer.mlp_norm_D, net.eps)
            gate_RPI, up_RPI = _linears(y_RPD, layer.gate_up).chunk(2, -1)
            x_RPD = x_RPD + _linear(F.silu(gate_RPI) * up_RPI, layer.down)
        self.used += new
        return F.rms_norm(x_RPD[:, -1], net.norm_D.shape, net.norm_D, net.eps)

    def _attend(
        self,
        layer: _Layer,
        cache: tuple[Tensor, Tensor],
        y_RPD: Tensor,
        turn: tuple[Tensor, Tensor],
        seen_R1PS: Tensor,
    ) -> Tensor:
        net, stop = self.network, self.used + y_RPD.shape[1]
        all_RPNE = _linears(y_RPD, layer.queries_keys_values).unflatten(-1, (-1, net.head_dim))
        turned_RPNE, value_RPGE = all_RPNE.split((net.heads + net.key_heads, net.key_heads), 2)
        turned_RPNE = F.rms_norm(turned_RPNE, (net.head_dim,), None, net.eps) * layer.head_norms_NE
        turned_RPNE = turned_RPNE * turn[0] + turned_RPNE.roll(net.head_dim // 2, -1) * turn[1]
        query_RPHE, key_RPGE = turned_RPNE.split((net.heads, net.key_heads), 2)
        keys_RGSE, values_RGSE = cache
        keys_RGSE[:, :, self.used : stop] = key_RPGE.transpose(1, 2)
        values_RGSE[:, :, self.used : stop] = value_RPGE.transpose(1, 2)
        mixed_RHPE = F.scaled_dot_product_attention(
            query_RPHE.transpose(1, 2),
            keys_RGSE[:, :, :stop],
            values_RGSE[:, :, :stop],
            attn_mask=seen_R1PS,
            enable_gqa=net.heads != net.key_heads,
        )
        return _linear(mixed_RHPE.transpose(1, 2).flatten(2), layer.mixed)


def _as_one(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Matrices that are parts of one, behind each other, as that one."""
    first, rows = parts[0], sum(len(part) for part in parts)
    storage, end = first.untyped_storage().data_ptr(), first.data_ptr()
    for part in parts:
        if part.untyped_storage().data_ptr() != storage or part.data_ptr() != end or not part.is_contiguous():
            return parts
        end += part.nbytes
    return (first.as_strided((rows, first.shape[1]), first.stride()),)


def _linears(x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
    """What each matrix makes of x, side by side."""
    return _linear(x, weights[0]) if len(weights) == 1 else torch.cat([_linear(x, weight) for weight in weights], -1)


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """X times the weight's transpose; on a CPU, few rows are quicker as columns.

    2 x 256 by 256 x 4096 took 0.26 ms so and 0.83 ms as rows, on two cores of an AMD EPYC (Zen 3).
    """
    rows = x.numel() // x.shape[-1]
    if rows > _FEW_ROWS or x.device.type != "cpu":
        return F.linear(x, weight)
    return (weight @ x.reshape(rows, -1).T).T.reshape(*x.shape[:-1], -1)


def _positions(mask_RS: Tensor, new: int) -> Tensor:
    """Positions (R, P) of the new ids: padding does not count."""
    return (mask_RS.cumsum(-1) - 1).clamp_min(0)[:, -new:]


def _check_numbers(config: Mapping[str, Any]) -> None:
    """Raise ValueError where a number that the decoder is built from is missing, none, or absurd."""
    whole = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "head_dim", "max_position_embeddings")  # fmt: skip
    for name in whole:
        value, most = config.get(name), MOST_LAYERS if name == "num_hidden_layers" else 2**31
        if type(value) is not int or not 0 < value < most:
            raise ValueError(f"config.json has {name}={str(value)[:20]}: expected a whole number from 1 to {most - 1}")
    for name, value in (("rms_norm_eps", config.get("rms_norm_eps")),
                        ("rope_theta", config["rope_parameters"].get("rope_theta"))):  # fmt: skip
        if not isinstance(value, (int, float)) or not 0 < value < 2**63:
            raise ValueError(f"config.json has {name}={str(value)[:20]}: expected a number above 0")
    if config["head_dim"] % 2 or config["num_attention_heads"] % config["num_key_value_heads"]:
        raise ValueError("config.json has an odd head_dim, or heads that do not share keys and values evenly")


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's tensors."""
    width, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (width,), "post_attention_layernorm": (width,),
        "self_attn.q_proj": (queries, width), "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.q_norm": (head,), "self_attn.k_norm": (head,), "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{number}.{name}.weight": shape
        for number in range(config["num_hidden_layers"])
        for name, shape in layer.items()
    }
    shapes |= {"model.embed_tokens.weight": (config["vocab_size"], width), "model.norm.weight": (width,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    return shapes


def _is_altered(model: Any) -> bool:
    """Whether a module is not transformers' own, nor computes the same (`ar_t2i.model.quick`), or has hooks."""
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or not type(module).__module__.startswith(("transformers.", "torch.nn.", "ar_t2i.model."))
        for module in model.modules()
    )
