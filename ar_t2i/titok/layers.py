"""TiTok's encoder and decoder: two vision transformers joined by a few latent tokens (arXiv 2406.07550, section 3.2).

Shape suffixes: B batch, P patches of a picture, T latent tokens, S = 1 + P + T sequence, D width, N heads, E head
width, C numbers in a codebook entry, h and w patch grid, H and W pixels.

Sequence of both transformers; the first 1 + P positions share one positional table, the latents have their own:

    encoder  [class] [patch 1 .. patch P] [latent 1 .. latent T]   keeps the latents
    decoder  [class] [mask  1 .. mask  P] [token  1 .. token  T]   keeps positions 1..P
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ar_t2i.titok.config import TiTokConfig, ViTSize


class TiTokEncoder(nn.Module):
    """Pixels (B, 3, H, W) and latent tokens (T, D) to latents (B, C, 1, T)."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width, patch = config.vit_enc_size.width, config.vit_enc_patch_size
        num_patches = (config.crop_size // patch) ** 2
        self.is_legacy = config.is_legacy
        self.patch_embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + num_patches, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(config.num_latent_tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _transformer(config.vit_enc_size)
        self.ln_post = nn.LayerNorm(width)
        self.conv_out = nn.Conv2d(width, config.token_size, 1)

    def forward(self, pixels_B3HW: Tensor, latent_tokens_TD: Tensor) -> Tensor:
        """Attend over patches and latents together, and keep the latents."""
        patches_BPD = self.patch_embed(pixels_B3HW).flatten(2).transpose(1, 2)
        latents_TD = latent_tokens_TD + self.latent_token_positional_embedding
        x_BSD = _sequence(self.class_embedding, patches_BPD, self.positional_embedding, latents_TD)
        x_BSD = self.ln_pre(x_BSD)
        latents_BTD = self.ln_post(_run(self.transformer, x_BSD, slice(-len(latents_TD), None)))
        if self.is_legacy:
            # Read (T, D) memory as (D, T), no transpose: the published weights were trained with latents mixed so.
            latents_BD1T = latents_BTD.reshape(len(x_BSD), latents_BTD.shape[2], 1, latents_BTD.shape[1])
        else:
            latents_BD1T = latents_BTD.transpose(1, 2).unsqueeze(2)
        return self.conv_out(latents_BD1T)


class TiTokDecoder(nn.Module):
    """Latents (B, C, 1, T) to logits over the proxy codes (B, K, h, w) if legacy, to pixels (B, 3, H, W) if not."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        width, patch = config.vit_dec_size.width, config.vit_dec_patch_size
        self.grid = config.crop_size // patch
        self.decoder_embed = nn.Linear(config.token_size, width)
        self.class_embedding = nn.Parameter(torch.zeros(1, width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + self.grid**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.zeros(config.num_latent_tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = _transformer(config.vit_dec_size)
        self.ln_post = nn.LayerNorm(width)
        if config.is_legacy:
            hidden, proxy_codes = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, config.vqgan.codebook_size, 1)
            self.ffn = nn.Sequential(hidden, nn.Tanh(), proxy_codes)
            self.conv_out = nn.Identity()
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * patch * patch, 1), _PatchesToPixels(patch))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, z_BC1T: Tensor) -> Tensor:
        """Attend over mask tokens and latents together, and keep the mask tokens."""
        tokens_BTD = self.decoder_embed(z_BC1T.squeeze(2).transpose(1, 2)) + self.latent_token_positional_embedding
        masks_BPD = self.mask_token.expand(len(z_BC1T), self.grid**2, -1)
        x_BSD = self.ln_pre(_sequence(self.class_embedding, masks_BPD, self.positional_embedding, tokens_BTD))
        return self.head(self.ln_post(_run(self.transformer, x_BSD, slice(1, 1 + self.grid**2))))

    def head(self, x_BPD: Tensor) -> Tensor:
        """The normed patches to logits or pixels."""
        return self.conv_out(self.ffn(x_BPD.transpose(1, 2).unflatten(2, (self.grid, self.grid))))


class Attention(nn.Module):
    """Self-attention in the tensor layout of `torch.nn.MultiheadAttention`: rows q, k, v; heads slice the width."""

    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        self.num_heads = size.num_heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * size.width, size.width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * size.width))
        self.out_proj = nn.Linear(size.width, size.width)

    def forward(self, x_BSD: Tensor, kept: slice | None = None) -> Tensor:
        """Every position, or every one that is kept, sees all; there is no mask."""
        if kept is None:
            qkv_BS3NE = F.linear(x_BSD, self.in_proj_weight, self.in_proj_bias).unflatten(2, (3, self.num_heads, -1))
            q_BNSE, k_BNSE, v_BNSE = qkv_BS3NE.permute(2, 0, 3, 1, 4)
        else:
            width = x_BSD.shape[2]
            q_BSD = F.linear(x_BSD[:, kept], self.in_proj_weight[:width], self.in_proj_bias[:width])
            kv_BSF = F.linear(x_BSD, self.in_proj_weight[width:], self.in_proj_bias[width:])
            q_BNSE = q_BSD.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            k_BNSE, v_BNSE = kv_BSF.unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BNSE = F.scaled_dot_product_attention(q_BNSE, k_BNSE, v_BNSE)
        return self.out_proj(mixed_BNSE.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each behind a layer norm and added to its input."""

    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(size.width)
        self.attn = Attention(size)
        self.ln_2 = nn.LayerNorm(size.width)
        self.mlp = _MLP(size.width)

    def forward(self, x_BSD: Tensor, kept: slice | None = None) -> Tensor:
        """One step of the residual stream, at all positions or at those that are kept."""
        mixed = self.attn(self.ln_1(x_BSD), kept)
        x_BSD = (x_BSD if kept is None else x_BSD[:, kept]) + mixed
        return x_BSD + self.mlp(self.ln_2(x_BSD))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x_BSD)))


class _PatchesToPixels(nn.Module):
    """Channels, ordered (row in patch, column in patch, rgb), laid out as pixels."""

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, x_BChw: Tensor) -> Tensor:
        x_Brc3hw = x_BChw.unflatten(1, (self.patch, self.patch, 3))
        return x_Brc3hw.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)


@torch.no_grad()
def initialize_transformer(module: nn.Module, generator: torch.Generator) -> None:
    """Fill an encoder or a decoder for training from scratch.

    Linear and convolution weights: truncated normal, std 0.02; in_proj_weight: Xavier uniform; biases 0; layer norms 1
    and 0; class, mask and positional parameters: normal with std width^-0.5.
    """
    for name, tensor in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if name.endswith("bias"):
            tensor.zero_()
        elif isinstance(owner, nn.LayerNorm):
            tensor.fill_(1)
        elif isinstance(owner, Attention):
            nn.init.xavier_uniform_(tensor, generator=generator)
        elif isinstance(owner, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(tensor, std=0.02, generator=generator)
        else:
            tensor.normal_(std=tensor.shape[-1] ** -0.5, generator=generator)


def _transformer(size: ViTSize) -> nn.ModuleList:
    return nn.ModuleList(Block(size) for _ in range(size.num_layers))


def _run(blocks: nn.ModuleList, x_BSD: Tensor, kept: slice) -> Tensor:
    """All blocks; the last one only at the positions that are read."""
    *early, last = blocks
    for block in early:
        x_BSD = block(x_BSD)
    return last(x_BSD, kept)


def _sequence(class_1D: Tensor, places_BPD: Tensor, positions_QD: Tensor, latents: Tensor) -> Tensor:
    batch = len(places_BPD)
    picture_BQD = torch.cat([class_1D.expand(batch, 1, -1), places_BPD], dim=1) + positions_QD
    return torch.cat([picture_BQD, latents.expand(batch, -1, -1)], dim=1)
