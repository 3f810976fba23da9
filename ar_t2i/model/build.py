"""From a config to a decoder: a stock transformers model, from scratch or from any causal LM.

From scratch it is a `Qwen3ForCausalLM`: rotary positions, QK-norm, SwiGLU, tied embeddings. Nothing of ours is in the
model, so the checkpoint loads wherever transformers checkpoints load.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ar_t2i.hub.names import resolve
from ar_t2i.untrusted import printable, read_json, stored_shapes
from ar_t2i.vocabulary import CODEBOOK_SIZE, Vocabulary, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZES: dict[str, dict[str, int]] = {
    "scenes": {"hidden_size": 256, "num_layers": 8, "intermediate_size": 768, "head_dim": 64},
    "small": {"hidden_size": 768, "num_layers": 12, "intermediate_size": 2048, "head_dim": 64},
    "base": {"hidden_size": 1024, "num_layers": 24, "intermediate_size": 2816, "head_dim": 64},
    "large": {"hidden_size": 2048, "num_layers": 18, "intermediate_size": 5632, "head_dim": 128},
}
"""About 10 M, 100 M, 330 M and 1 B parameters with their vocabulary."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The decoder: a size, or a checkpoint to start from."""

    size: Literal["scenes", "small", "base", "large"] = "scenes"
    """Size of a decoder made from scratch: about 10 M, 100 M, 330 M or 1 B parameters."""
    init_from: str = ""
    """Folder of any causal LM (or Hub id) to start from; its embedding is extended by what the vocabulary adds."""
    hidden_size: int | None = None
    """Width; None takes the size's own."""
    num_layers: int | None = None
    """Number of layers; None takes the size's own."""
    intermediate_size: int | None = None
    """Width of the feed-forward part; None takes the size's own."""
    head_dim: int | None = None
    """Width of an attention head; None takes the size's own, 64 or 128."""
    code_embeddings: Literal["random", "codebook"] = "random"
    """How embeddings of codes start: at random, or alike for codes that look alike, which learns faster."""
    max_positions: int = 256
    """Longest sequence, caption and picture together, in ids."""
    dropout: float = 0.0
    """Chance to drop a number on each residual branch in training."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout={self.dropout}: expected 0 <= dropout < 1")
        for name in ("hidden_size", "num_layers", "intermediate_size", "head_dim", "max_positions"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"model.{name}={value}: expected at least 1")
        if self.dimensions["head_dim"] % 2:
            raise ValueError(f"model.head_dim={self.head_dim}: expected an even number, for rotary positions")
        if self.dimensions["hidden_size"] % self.dimensions["head_dim"]:
            raise ValueError(
                f"model.hidden_size={self.dimensions['hidden_size']}: "
                f"expected a multiple of head_dim={self.dimensions['head_dim']}"
            )

    @property
    def dimensions(self) -> dict[str, int]:
        """The size's numbers with those given one by one in their place."""
        return {name: getattr(self, name) or default for name, default in SIZES[self.size].items()}


def build_model(config: ModelConfig, vocabulary: Vocabulary, seed: int) -> "PreTrainedModel":
    """A decoder over `vocabulary` in float32, with random weights drawn from `seed`.

    Raises:
        ValueError: `init_from` cannot be loaded.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    if config.init_from:
        return _extend(config.init_from, vocabulary, seed)
    dimensions = config.dimensions
    heads = dimensions["hidden_size"] // dimensions["head_dim"]
    settings = Qwen3Config(
        vocab_size=vocabulary.size,
        hidden_size=dimensions["hidden_size"],
        intermediate_size=dimensions["intermediate_size"],
        num_hidden_layers=dimensions["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=dimensions["head_dim"],
        max_position_embeddings=config.max_positions,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        pad_token_id=vocabulary.pad_id,
        bos_token_id=None,
        eos_token_id=vocabulary.end_of_image_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(settings)
    return model.float()


@torch.no_grad()
def embed_codes_by_likeness(
    model: "PreTrainedModel", vocabulary: Vocabulary, code_vectors_KD: Tensor, seed: int
) -> None:
    """Start the embeddings of codes so that codes which look alike have alike embeddings.

    Rows become random Fourier features of the image tokenizer's codebook (Rahimi and Recht 2007): their products
    approximate Gaussian kernels of many widths, from the distance between neighbours to the distance between any two
    codes. With tied embeddings the decoder then predicts a region of the codebook before it knows each code by itself.

    Args:
        model: a decoder with random weights.
        vocabulary: its vocabulary.
        code_vectors_KD: a vector for each code.
        seed: of the features.
    """
    table_VW = embedding(model)
    generator = torch.Generator().manual_seed(seed)
    vectors_KD = code_vectors_KD.float().cpu()
    distances_SK = torch.cdist(vectors_KD[torch.randperm(len(vectors_KD), generator=generator)[:256]], vectors_KD)
    near, far = distances_SK.kthvalue(2, dim=1).values.median().clamp_min(1e-3), distances_SK.median()
    width = table_VW.shape[1]
    scales_W = near * (far / near) ** torch.rand(width, generator=generator)
    frequencies_DW = torch.randn(vectors_KD.shape[1], width, generator=generator) / scales_W
    phases_W = 2 * torch.pi * torch.rand(width, generator=generator)
    features_KW = (vectors_KD @ frequencies_DW + phases_W).cos() * 2**0.5  # of variance 1, as a normal draw
    rows_K = torch.from_numpy(vocabulary.image_ids[: len(vectors_KD)])
    table_VW[rows_K] = features_KW * model.config.initializer_range


def load_vocabulary_for(config: ModelConfig, vocabulary: str) -> Vocabulary:
    """The vocabulary of a run: the one named, or the starting checkpoint's own, extended where it lacks tokens.

    Raises:
        ValueError: neither is given.
    """
    if vocabulary:
        return Vocabulary.from_pretrained(resolve(vocabulary))
    if not config.init_from:
        raise ValueError("vocabulary is not set: give a folder with tokenizer.json, for example tokenizer/")
    return Vocabulary.extend(load_tokenizer(config.init_from), CODEBOOK_SIZE)


def check_head(model: "PreTrainedModel") -> None:
    """Make sure that the logits are just hidden states times the output matrix, which loss and sampler rely on.

    Raises:
        ValueError: the architecture changes its logits afterwards (soft-capping, scaling).
    """
    ids = torch.arange(4, device=model.device)[None] + 1
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0, -1].float()
        hidden = model.base_model(input_ids=ids).last_hidden_state[0, -1]
        found = head_logits(hidden[None], model, slice(None))[0].float()
    if not torch.allclose(found, expected, atol=1e-2, rtol=1e-2):
        raise ValueError(
            f"{type(model).__name__} changes its logits after the output matrix (soft-capping or scaling), "
            "which this project does not support; Llama, Qwen, Mistral and GPT-2 layouts work"
        )


def head_logits(hidden_ND: Tensor, model: "PreTrainedModel", rows_K: slice | Tensor) -> Tensor:
    """Logits (N, K) of just some ids: hidden states times those rows of the output matrix."""
    head = output_layer(model)
    return nn.functional.linear(hidden_ND, head.weight[rows_K], None if head.bias is None else head.bias[rows_K])


def output_layer(model: "PreTrainedModel") -> nn.Linear:
    """The layer that turns hidden states into logits, with weight (V, D)."""
    layer: Any = model.get_output_embeddings()
    return layer


def embedding(model: "PreTrainedModel") -> nn.Parameter:
    """The table of input embeddings, (V, D)."""
    layer: Any = model.get_input_embeddings()
    return layer.weight


def as_rows(ids_K: np.ndarray) -> slice | Tensor:
    """Ids as an index into a table's rows: a slice where they are one block, so that indexing copies nothing."""
    if (np.diff(ids_K) == 1).all():
        return slice(int(ids_K[0]), int(ids_K[-1]) + 1)
    return torch.from_numpy(ids_K)


def add_residual_dropout(model: "PreTrainedModel", dropout: float) -> None:
    """Drop numbers on each residual branch while training, in models whose stock layout has no such dropout.

    Raises:
        ValueError: the architecture has no layers `o_proj` and `down_proj` to put it on.
    """
    if dropout == 0:
        return
    branches = [module for name, module in model.named_modules() if name.endswith((".o_proj", ".down_proj"))]
    if not branches:
        raise ValueError(
            f"model.dropout={dropout}: {type(model).__name__} has no o_proj and down_proj layers; set it to 0"
        )
    for branch in branches:
        branch.register_forward_hook(lambda module, _, output: nn.functional.dropout(output, dropout, module.training))


def load_causal_lm(source: str | Path) -> tuple["PreTrainedModel", dict[str, Any]]:
    """Any causal LM with safetensors weights, in float32, and what its loading reports; code of theirs is never run.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # of weights that are on disk already
    try:
        if Path(source).is_dir():
            check_checkpoint(Path(source))
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    except Exception as error:  # transformers raises anything on a config that is not as it expects
        reason = printable(str(error)) or type(error).__name__
        raise ValueError(f"no causal LM with safetensors weights could be loaded: {reason}") from error
    finally:
        logging.enable_progress_bar()
    return loaded


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint that would run code, read outside of its folder, or fill the memory with what it has not.

    Raises:
        ValueError: it says why.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = read_json(folder / "config.json")
    check_plain(config)
    if (folder / "adapter_config.json").exists():
        raise ValueError("adapter_config.json names another model to load: merge the adapter into its model first")
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists() and not (folder / "model.safetensors").exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index.name} has no weight_map")
        names = set(map(str, weight_map.values()))
        outside = [name for name in names if not re.fullmatch(r"[\w-]+\.safetensors", name)]
        if outside:
            raise ValueError(f"{index.name} names {printable(outside[0])!r}, expected files of this folder")
    stored = sum(math.prod(shape) for name in sorted(names) for shape in stored_shapes(folder / name).values())
    with torch.device("meta"):
        described = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(str(folder), trust_remote_code=False), trust_remote_code=False
        ).num_parameters()
    if described > MOST_PER_STORED * stored:
        raise ValueError(f"config.json describes {described:,} numbers, the weights are {stored:,}")


MOST_PER_STORED = 8
"""Numbers of a model for each that is stored: weights of 4 bits are packed into whole bytes or words."""
MOST_LAYERS = 1024


def check_plain(values: Any) -> None:
    """Refuse what makes transformers run code of others, and layers without end; looks into all groups of a config.

    Raises:
        ValueError: the option is named.
    """
    for name, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, (dict, list)):
            check_plain(value)
        where = str(name)
        if where in ("auto_map", "custom_pipelines"):
            raise ValueError(
                f"config.json has {where}, which names code to run: only architectures of transformers load"
            )
        if "implementation" in where and isinstance(value, str) and "/" in value:
            raise ValueError(f"config.json has {where}={printable(value)[:100]!r}, which is code of others")
        layers = re.search(r"layers?$|^depths?$|blocks$|experts$", where) is not None
        if layers and isinstance(value, (int, float)) and value > MOST_LAYERS:
            raise ValueError(f"config.json has {printable(where)[:100]}={value}: expected at most {MOST_LAYERS}")


def _extend(source: str, vocabulary: Vocabulary, seed: int) -> "PreTrainedModel":
    try:
        model, _ = load_causal_lm(source)
    except ValueError as error:
        kind = "folder" if Path(source).is_dir() else "folder or Hub id"
        raise ValueError(f"model.init_from={source!r}, this {kind}: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if vocabulary.size > embedding(model).shape[0]:
            model.resize_token_embeddings(vocabulary.size, mean_resizing=True)
    model.config.pad_token_id = vocabulary.pad_id
    model.config.eos_token_id = vocabulary.end_of_image_id
    return model
