"""Figures of papers, to stand beside ours where the protocol is the same."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """A model's row in a table of a paper."""

    model: str
    parameters: str
    fid: float
    clip: float


CC3M_SOURCE = "Muse, arXiv 2301.00704, table 1: trained on CC3M, scored on its validation captions"
CC3M_ROWS = (
    PublishedRow("VQGAN AR", "600M", 28.86, 0.20),
    PublishedRow("ImageBART", "2.8B", 22.61, 0.23),
    PublishedRow("LDM-4", "645M", 17.01, 0.24),
    PublishedRow("RQ-Transformer", "654M", 12.33, 0.26),
    PublishedRow("Draft-and-Revise", "654M", 9.65, 0.26),
    PublishedRow("Muse, base", "632M", 6.8, 0.25),
    PublishedRow("Muse, base and super-resolution", "632M + 268M", 6.06, 0.26),
)
"""FID against the validation pictures at 256 pixels, one picture a caption; cosine of CLIP ViT-B/32."""
