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
    stage_widths: tuple[int, ...] = (48, 96, 160, 192)
    """Channels of the convolutions at 1/4, 1/8, 1/16 and 1/32 of the image size."""
    feature_channels: int = 16
    """Channels of the 1/32 feature map that the mixer turns into slots."""
    regions: tuple[int, int] = (2, 4)
    """Rows and columns of regions; the mixer makes an equal share of the slots from each. (1, 1): all from all."""
    mixer_width: int = 256
    """Hidden width of the MLP that turns the features of one region into its slots."""
    unmixer_width: int = 896
    """Hidden width of the MLP that turns all slots into all features."""
    mixer_depth: int = 2
    """Hidden layers of each of these MLPs, besides the first."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a size that no tokenizer can have.
        """
        if self.image_size < 32 or self.image_size % 32:
            raise ValueError(f"image_size={self.image_size}: expected a multiple of 32, for example 256")
        if len(self.regions) != 2:
            raise ValueError(f"regions={list(self.regions)}: expected 2 numbers, rows and columns")
        if len(self.stage_widths) != 4:
            raise ValueError(f"stage_widths={list(self.stage_widths)}: expected 4 of them")
        if min(self.stage_widths) < 1:
            raise ValueError(f"stage_widths={list(self.stage_widths)}: expected at least 1 each")
        for name in ("num_codes", "code_dim", "feature_channels", "mixer_width", "unmixer_width", "mixer_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.image_size > 4096 or self.mixer_depth * self.num_regions > 512:
            raise ValueError(
                f"image_size={self.image_size}, mixer_depth={self.mixer_depth}, regions={list(self.regions)}: "
                "expected at most 4096 pixels, and 512 layers in all"
            )
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size={self.codebook_size}: expected at least 2")
        rows, columns = self.regions
        if rows < 1 or columns < 1 or self.grid % rows or self.grid % columns:
            raise ValueError(
                f"regions={list(self.regions)}: expected two divisors of {self.grid}, the side of the feature map"
            )
        if self.num_codes % self.num_regions:
            raise ValueError(f"num_codes={self.num_codes}: expected a multiple of the {self.num_regions} regions")
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

    @property
    def num_regions(self) -> int:
        """Regions of the picture, R."""
        return self.regions[0] * self.regions[1]
