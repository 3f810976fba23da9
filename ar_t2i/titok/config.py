"""The shape of a TiTok tokenizer and of the 2D MaskGIT-VQGAN, read from and written to the published config schema."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ar_t2i.config import build


def _at_least_one(config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)}: expected at least 1")


def _at_most(config: object, most: int, *names: str) -> None:
    for name in names:
        if getattr(config, name) > most:
            raise ValueError(f"{name}={getattr(config, name)}: expected at most {most}")


@dataclass(frozen=True, kw_only=True)
class ViTSize:
    """Size of one of TiTok's two vision transformers."""

    width: int
    """Features of a token."""
    num_layers: int
    """Transformer blocks."""
    num_heads: int
    """Attention heads; they divide the width."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a size that no transformer can have.
        """
        _at_least_one(self, "width", "num_layers", "num_heads")
        _at_most(self, 256, "num_layers")
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width} is not a multiple of num_heads={self.num_heads}; change one of them")


PUBLISHED_SIZES = {
    "small": ViTSize(width=512, num_layers=8, num_heads=8),
    "base": ViTSize(width=768, num_layers=12, num_heads=12),
    "large": ViTSize(width=1024, num_layers=24, num_heads=16),
}

_RENAMED = {"vit_enc_size": "vit_enc_model_size", "vit_dec_size": "vit_dec_model_size"}


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Shape of the 2D MaskGIT-VQGAN; the defaults are the published one (256x256 pixels to 16x16 proxy codes)."""

    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels at each resolution, highest first, in units of hidden_channels; each step halves the resolution."""
    hidden_channels: int = 128
    """Channels at the full resolution; a multiple of 32, the groups of the group norms."""
    num_res_blocks: int = 2
    """Residual blocks at each resolution, and in the middle."""
    z_channels: int = 256
    """Numbers in a codebook entry."""
    codebook_size: int = 1024
    """Entries of the codebook; the proxy codes of TiTok's first stage."""
    commitment_cost: float = 0.25
    """Weight of the loss that pulls the encoder to the codebook."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a shape that no VQGAN can have.
        """
        _at_least_one(self, "hidden_channels", "num_res_blocks", "z_channels", "codebook_size")
        _at_most(self, 64, "num_res_blocks")
        if not 0 < len(self.channel_mult) <= 12 or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult={list(self.channel_mult[:12])}: expected 1 to 12 whole numbers above 0")
        if self.hidden_channels % 32:
            raise ValueError(
                f"hidden_channels={self.hidden_channels}: expected a multiple of 32, for the 32-group norms"
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of the square that one code stands for."""
        return 2 ** (len(self.channel_mult) - 1)

    @classmethod
    def from_dict(cls, blocks: Mapping[str, Any], where: str = "") -> "VQGANConfig":
        """Read the blocks `pixel_decoder` and `pixel_quantize`; what is absent has the published value.

        Raises:
            ValueError: a value of the wrong type, or codebook entries of another width than the decoder takes.
        """
        decoder, quantize = _block(blocks, "pixel_decoder", where), _block(blocks, "pixel_quantize", where)
        names = ("channel_mult", "hidden_channels", "num_res_blocks", "z_channels")
        values = {name: decoder[name] for name in names if name in decoder}
        if "num_embeddings" in quantize:
            values["codebook_size"] = quantize["num_embeddings"]
        if "commitment_cost" in quantize:
            values["commitment_cost"] = quantize["commitment_cost"]
        config = build(cls, values, f"{where}pixel_decoder.")
        if quantize.get("embedding_dim", config.z_channels) != config.z_channels:
            raise ValueError(
                f"{where}pixel_quantize.embedding_dim={quantize['embedding_dim']!r}: expected the "
                f"pixel_decoder.z_channels {config.z_channels}"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """The blocks that `from_dict` reads."""
        return {
            "pixel_decoder": {
                "channel_mult": list(self.channel_mult),
                "hidden_channels": self.hidden_channels,
                "num_res_blocks": self.num_res_blocks,
                "z_channels": self.z_channels,
            },
            "pixel_quantize": {
                "num_embeddings": self.codebook_size,
                "embedding_dim": self.z_channels,
                "commitment_cost": self.commitment_cost,
            },
        }


@dataclass(frozen=True, kw_only=True)
class TiTokConfig:
    """Everything that fixes the tensors of a TiTok and what is computed from them (arXiv 2406.07550)."""

    codebook_size: int
    """Entries of the 1D codebook."""
    token_size: int
    """Numbers in a codebook entry."""
    num_latent_tokens: int
    """Codes of one picture, T."""
    vit_enc_size: ViTSize
    """Size of the encoder."""
    vit_dec_size: ViTSize
    """Size of the decoder."""
    use_l2_norm: bool
    """Search the nearest entry among unit vectors, and decode unit vectors."""
    commitment_cost: float = 0.25
    """Weight of the loss that pulls the encoder to the codebook."""
    vit_enc_patch_size: int = 16
    """Pixels along the side of an encoder patch."""
    vit_dec_patch_size: int = 16
    """Pixels along the side of a decoder patch."""
    crop_size: int = 256
    """Height and width of a picture in pixels."""
    finetune_decoder: bool = True
    """Second stage: only the decoders learn, and a convolutional pixel decoder turns proxy logits into pixels."""
    is_legacy: bool = True
    """The published L-32, B-64 and S-128: latents mixed before the codebook, a decoder that ends in proxy logits."""
    vqgan: VQGANConfig = field(default_factory=VQGANConfig)
    """Shape of the proxy codebook and of the pixel decoder; without meaning where is_legacy is false."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a shape that no TiTok can have.
        """
        _at_least_one(self, "codebook_size", "token_size", "num_latent_tokens", "crop_size")
        _at_most(self, 4096, "crop_size")
        for name in ("vit_enc_patch_size", "vit_dec_patch_size"):
            patch = getattr(self, name)
            if patch < 1 or self.crop_size % patch:
                raise ValueError(f"{name}={patch}: expected a divisor of crop_size={self.crop_size}")
        if self.finetune_decoder and not self.is_legacy:
            raise ValueError(
                "finetune_decoder=true with is_legacy=false: this decoder gives pixels, there is no pixel decoder to "
                "finetune; set finetune_decoder to false"
            )
        if self.is_legacy and self.vit_dec_patch_size != self.vqgan.factor:
            raise ValueError(
                f"vit_dec_patch_size={self.vit_dec_patch_size}: expected {self.vqgan.factor}, the pixels along a "
                "proxy code; change it or the pixel decoder's channel_mult"
            )

    @property
    def gives_pixels(self) -> bool:
        """False for the first stage alone, whose decoder gives logits over the proxy codes."""
        return self.finetune_decoder or not self.is_legacy

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "TiTokConfig":
        """Read the published schema: `model.vq_model` and `dataset.preprocessing.crop_size`.

        Everything else is left unread, so an interpolation such as ``"${model.x}"`` elsewhere does no harm. Absent
        finetune_decoder and is_legacy mean true. Sizes that were never published stand in a block `shapes` (also read
        under the name `_fixture`): `sizes` by name, `pixel_decoder`, `pixel_quantize`.

        Raises:
            ValueError: not a TiTok config, a missing or wrongly typed value, or a tokenizer that is not VQ.
        """
        model = config.get("model")
        vq_model = model.get("vq_model") if isinstance(model, Mapping) else None
        if not isinstance(vq_model, Mapping):
            keys = ", ".join(sorted(map(str, config))) or "none"
            raise ValueError(f"not a TiTok config: it has no model.vq_model block (its keys: {keys})")
        mode = vq_model.get("quantize_mode", "vq")
        if mode != "vq":
            raise ValueError(
                f"model.vq_model.quantize_mode={mode!r}: only VQ is supported; choose a tokenizer with codes"
            )
        shapes = _block(config, "shapes" if "shapes" in config else "_fixture")
        sizes = {**PUBLISHED_SIZES, **_block(shapes, "sizes", "shapes.")}
        preprocessing = _block(_block(config, "dataset"), "preprocessing", "dataset.")
        values = {
            "crop_size": _required(preprocessing, "crop_size", "dataset.preprocessing."),
            "vqgan": VQGANConfig.from_dict(shapes, "shapes."),
        }
        for name in (f.name for f in fields(cls) if f.name not in values):
            if name in _RENAMED:
                values[name] = _size(sizes, _required(vq_model, _RENAMED[name], "model.vq_model."), _RENAMED[name])
            elif name not in ("finetune_decoder", "is_legacy"):
                values[name] = _required(vq_model, name, "model.vq_model.")
            elif name in vq_model:
                values[name] = vq_model[name]
        return build(cls, values, "model.vq_model.")

    def to_dict(self) -> dict[str, Any]:
        """The published schema, with the block `shapes` only where a size is not a published one."""
        vq_model: dict[str, Any] = {"quantize_mode": "vq"}
        sizes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, ViTSize):
                name = _size_name(value)
                vq_model[_RENAMED[f.name]] = name
                if name not in PUBLISHED_SIZES:
                    sizes[name] = asdict(value)
            elif f.name not in ("crop_size", "vqgan"):
                vq_model[f.name] = value
        config = {"model": {"vq_model": vq_model}, "dataset": {"preprocessing": {"crop_size": self.crop_size}}}
        shapes = {"sizes": sizes} if sizes else {}
        if self.vqgan != VQGANConfig():
            shapes |= self.vqgan.to_dict()
        return config | ({"shapes": shapes} if shapes else {})


_PUBLISHED = {
    "l32": ("large", "large", 32),
    "b64": ("base", "base", 64),
    "s128": ("small", "small", 128),
    "bl64_vq8k": ("base", "large", 64),
    "bl128_vq8k": ("base", "large", 128),
    "sl256_vq8k": ("small", "large", 256),
}


def published_config(name: str) -> TiTokConfig:
    """The config of a published tokenizer: l32, b64, s128, bl64_vq8k, bl128_vq8k or sl256_vq8k.

    Raises:
        ValueError: another name.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"no published TiTok is called {name!r}; expected one of {', '.join(_PUBLISHED)}")
    encoder, decoder, num_latent_tokens = _PUBLISHED[name]
    single_stage = name.endswith("_vq8k")
    return TiTokConfig(
        codebook_size=8192 if single_stage else 4096,
        token_size=64 if single_stage else 12,
        num_latent_tokens=num_latent_tokens,
        vit_enc_size=PUBLISHED_SIZES[encoder],
        vit_dec_size=PUBLISHED_SIZES[decoder],
        use_l2_norm=not single_stage,
        finetune_decoder=not single_stage,
        is_legacy=not single_stage,
    )


def _block(config: Mapping[str, Any], name: str, where: str = "") -> Mapping[str, Any]:
    block = config.get(name, {})
    if not isinstance(block, Mapping):
        raise ValueError(f"{where}{name}={block!r}: expected a group of options")
    return block


def _required(block: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in block:
        raise ValueError(f"{where}{name} is missing; every TiTok config has it")
    return block[name]


def _size(sizes: Mapping[str, Any], name: object, where: str) -> Any:
    if not isinstance(name, str) or name not in sizes:
        raise ValueError(
            f"model.vq_model.{where}={name!r}: expected one of {', '.join(sizes)}; add another size to shapes.sizes"
        )
    return sizes[name]


def _size_name(size: ViTSize) -> str:
    names = [name for name, published in PUBLISHED_SIZES.items() if published == size]
    return names[0] if names else f"w{size.width}-l{size.num_layers}-h{size.num_heads}"
