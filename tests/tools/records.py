"""A part's record and a manifest's facts, as preprocessing writes them."""

from ar_t2i.data.parts import PartRecord

RECORD = PartRecord(
    shard="in/a.tar", source="1-2", checksum="c", sha256="s", bytes=10, kept=3, dropped={"no-image": 1},
    examples={"no-image": ["a"]}, arithmetic="cpu float32", arrow_bytes=7,
)  # fmt: skip
FACTS = {
    "format_version": 1, "image_tokenizer": "a1", "num_codes": 16, "codebook_size": 256, "image_size": 16,
    "vocabulary": "b2", "crop": "center", "max_pixels": 100, "min_edge": 8, "max_aspect": 20.0,
    "max_caption_chars": 100, "versions": {"python": "3.11"},
}  # fmt: skip
