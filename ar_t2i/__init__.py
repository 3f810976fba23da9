"""ar_t2i: autoregressive text-to-image over discrete 1D image tokens."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ar_t2i.image_tokenizer import load_image_tokenizer
    from ar_t2i.pipeline import TextToImagePipeline
    from ar_t2i.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = ["TextToImagePipeline", "Vocabulary", "load_image_tokenizer"]

_HOMES = {
    "TextToImagePipeline": "ar_t2i.pipeline",
    "Vocabulary": "ar_t2i.vocabulary",
    "load_image_tokenizer": "ar_t2i.image_tokenizer",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for, so that `import ar_t2i` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ar_t2i' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
