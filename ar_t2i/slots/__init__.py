"""A small convolutional 1D image tokenizer: 32 codes a picture, trained on a CPU in under an hour."""

from ar_t2i.slots.config import SlotConfig
from ar_t2i.slots.model import SlotTokenizer

__all__ = ["SlotConfig", "SlotTokenizer"]
