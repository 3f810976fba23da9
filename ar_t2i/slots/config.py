"""The shape of a slot tokenizer."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SlotConfig:
    """Everything that fixes the tensors of a `SlotTokenizer`; written to config.json."""

    image_size: int = 256
    """Height and width of a picture in pixels, a multiple of 32."""
    num_codes: int = 32
    """Codes of one picture, T."""
    codebook_size: int = 4096
    """Entries of the codebook that all slots share."""
    code_dim: int = 6
    """Numbers in one slot; slots and codebook entries have length 1."""
    stage_widths: tuple[int, ...] = (32, 96, 160, 160)
    """Channels of the convolutions at 1/4, 1/8, 1/16 and 1/32 of the image size."""
    feature_channels: int = 16
    """Channels of the 1/32 feature map that the mixer turns into slots."""
    mixer_width: int = 512
    """Hidden width of the small MLPs beside the two linear maps of the mixer."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a size that no tokenizer can have.
        """
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"image_size={self.image_size}: expected a multiple of 32, for example 256")
        if len(self.stage_widths) != 4:
            raise ValueError(f"stage_widths={list(self.stage_widths)}: expected 4 of them")
        for name in ("num_codes", "code_dim", "feature_channels", "mixer_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size={self.codebook_size}: expected at least 2")
        if self.num_codes * self.code_dim > self.num_features:
            raise ValueError(
                f"num_codes * code_dim = {self.num_codes * self.code_dim} numbers from {self.num_features} features: "
                "raise feature_channels or lower code_dim"
            )

    @property
    def grid(self) -> int:
        """Height and width of the feature map."""
        return self.image_size // 32

    @property
    def num_features(self) -> int:
        """Numbers in the feature map."""
        return self.feature_channels * self.grid**2
