"""TiTok, the published 1D image tokenizer, and the 2D MaskGIT-VQGAN that its first stage learns from."""

from ar_t2i.titok.config import TiTokConfig, ViTSize, VQGANConfig, published_config
from ar_t2i.titok.model import TiTok
from ar_t2i.titok.vqgan import MaskGITVQGAN

__all__ = ["MaskGITVQGAN", "TiTok", "TiTokConfig", "VQGANConfig", "ViTSize", "published_config"]
