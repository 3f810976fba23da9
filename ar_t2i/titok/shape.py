"""A TiTok's shape as options of a training run: by the published sizes' names, or by numbers for smaller ones."""

from dataclasses import dataclass
from typing import Literal

from ar_t2i.titok.config import PUBLISHED_SIZES, TiTokConfig, ViTSize, VQGANConfig

SizeName = Literal["small", "base", "large"]


@dataclass(frozen=True, kw_only=True)
class TiTokShape:
    """Shape of a TiTok that is trained from scratch; the defaults are L-32's."""

    image_size: int = 256
    """Height and width of a picture in pixels."""
    num_latent_tokens: int = 32
    """Codes of one picture, T."""
    codebook_size: int = 4096
    """Entries of the 1D codebook."""
    token_size: int = 12
    """Numbers in a codebook entry."""
    use_l2_norm: bool = True
    """Search the nearest entry among unit vectors, and decode unit vectors."""
    commitment_cost: float = 0.25
    """Weight of the loss that pulls the encoder to the codebook, within the quantiser's loss."""
    patch_size: int = 16
    """Pixels along the side of a patch; in stage 1 it is the VQGAN's pixels along a proxy code."""
    encoder: SizeName | ViTSize = "large"
    """small (512 wide, 8 layers, 8 heads), base (768, 12, 12) or large (1024, 24, 16); any other size is a group of
    width, num_layers and num_heads."""
    decoder: SizeName | ViTSize = "large"
    """As for the encoder."""

    def __post_init__(self) -> None:
        """Check the values under the names that they have here.

        Raises:
            ValueError: patches that do not fill the picture.
        """
        if self.patch_size < 1 or self.image_size % self.patch_size:
            raise ValueError(f"patch_size={self.patch_size}: expected a divisor of image_size={self.image_size}")

    def titok(self, *, is_legacy: bool, vqgan: VQGANConfig | None = None) -> TiTokConfig:
        """The config of a first stage (`is_legacy`, on the codes of `vqgan`), or of a single stage.

        Raises:
            ValueError: a shape that no TiTok can have.
        """
        if is_legacy and vqgan is not None and self.patch_size != vqgan.factor:
            raise ValueError(
                f"patch_size={self.patch_size}: expected {vqgan.factor}, the pixels along a code of the VQGAN"
            )
        return TiTokConfig(
            codebook_size=self.codebook_size,
            token_size=self.token_size,
            num_latent_tokens=self.num_latent_tokens,
            vit_enc_size=_size(self.encoder),
            vit_dec_size=_size(self.decoder),
            use_l2_norm=self.use_l2_norm,
            commitment_cost=self.commitment_cost,
            vit_enc_patch_size=self.patch_size,
            vit_dec_patch_size=self.patch_size,
            crop_size=self.image_size,
            finetune_decoder=False,
            is_legacy=is_legacy,
            vqgan=vqgan or VQGANConfig(),
        )


def _size(size: SizeName | ViTSize) -> ViTSize:
    return size if isinstance(size, ViTSize) else PUBLISHED_SIZES[size]
