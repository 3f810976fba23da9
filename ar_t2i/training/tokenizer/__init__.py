"""Training of image tokenizers by the published recipes: MaskGIT-VQGAN, TiTok in two stages, TiTok in one."""
