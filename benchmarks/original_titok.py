"""TiTok as github.com/bytedance/1d-tokenizer lays it out, written anew: what `benchmarks.pixels` measures against.

The same modules in the same order on the same layouts: sequence first in the transformers, `nn.MultiheadAttention`,
channels first and padding apart from the convolution in the pixel decoder, an einsum for the soft codes. Names of
tensors are the checkpoint's, so that `assign=True` shares the weights of an `ar_t2i.titok.TiTok`.
"""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ar_t2i.titok.config import TiTokConfig, ViTSize, VQGANConfig


class OriginalTiTok(nn.Module):
    """A second stage: `encode` and `decode_tokens` as the original's TiTok has them."""

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        assert config.is_legacy and config.finetune_decoder
        self.latent_tokens = nn.Parameter(torch.empty(config.num_latent_tokens, config.vit_enc_size.width))
        self.encoder, self.decoder = _Encoder(config), _Decoder(config)
        self.quantize = _Quantizer(config.codebook_size, config.token_size, config.use_l2_norm)
        self.pixel_quantize = _Quantizer(config.vqgan.codebook_size, config.vqgan.z_channels, False)
        self.pixel_decoder = _PixelDecoder(config.vqgan)

    def encode(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) to codes (B, 1, T)."""
        return self.quantize(self.encoder(x, self.latent_tokens))[1]

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Codes (B, T) to pixels, not clamped."""
        batch, length = tokens.shape
        entries = self.quantize.entries(tokens.reshape(-1)).reshape(batch, 1, length, -1)
        logits = self.decoder(entries.permute(0, 3, 1, 2).contiguous())
        mixed = torch.einsum("nchw,cd->ndhw", logits.softmax(1), self.pixel_quantize.embedding.weight)
        return self.pixel_decoder(mixed)


class _Block(nn.Module):
    def __init__(self, size: ViTSize) -> None:
        super().__init__()
        width = size.width
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, size.num_heads)
        steps: list[tuple[str, nn.Module]] = [
            ("c_fc", nn.Linear(width, 4 * width)), ("gelu", nn.GELU()), ("c_proj", nn.Linear(4 * width, width)),
        ]  # fmt: skip
        self.mlp = nn.Sequential(OrderedDict(steps))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


def _through(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    x = x.permute(1, 0, 2)
    for block in blocks:
        x = block(x)
    return x.permute(1, 0, 2)


class _Transformer(nn.Module):
    def __init__(self, size: ViTSize, positions: int, latents: int) -> None:
        super().__init__()
        self.width, self.positions = size.width, positions
        self.class_embedding = nn.Parameter(torch.empty(1, size.width))
        self.positional_embedding = nn.Parameter(torch.empty(1 + positions, size.width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(latents, size.width))
        self.ln_pre, self.ln_post = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.transformer = nn.ModuleList(_Block(size) for _ in range(size.num_layers))

    def with_class(self, x: Tensor) -> Tensor:
        x = torch.cat([self.class_embedding.unsqueeze(0).expand(len(x), -1, -1), x], dim=1)
        return x + self.positional_embedding


class _Encoder(_Transformer):
    def __init__(self, config: TiTokConfig) -> None:
        patch = config.vit_enc_patch_size
        super().__init__(config.vit_enc_size, (config.crop_size // patch) ** 2, config.num_latent_tokens)
        self.patch_embed = nn.Conv2d(3, self.width, patch, stride=patch)
        self.conv_out = nn.Conv2d(self.width, config.token_size, 1)

    def forward(self, pixels: Tensor, latent_tokens: Tensor) -> Tensor:
        x = self.patch_embed(pixels)
        x = self.with_class(x.reshape(*x.shape[:2], -1).permute(0, 2, 1))
        latents = latent_tokens.unsqueeze(0).expand(len(x), -1, -1) + self.latent_token_positional_embedding
        x = _through(self.transformer, self.ln_pre(torch.cat([x, latents], dim=1)))
        x = self.ln_post(x[:, 1 + self.positions :])
        x = self.conv_out(x.reshape(len(x), self.width, -1, 1))
        return x.reshape(len(x), x.shape[1], 1, -1)


class _Decoder(_Transformer):
    def __init__(self, config: TiTokConfig) -> None:
        self.grid = config.crop_size // config.vit_dec_patch_size
        super().__init__(config.vit_dec_size, self.grid**2, config.num_latent_tokens)
        self.decoder_embed = nn.Linear(config.token_size, self.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.width))
        hidden, logits = (
            nn.Conv2d(self.width, 2 * self.width, 1),
            nn.Conv2d(2 * self.width, config.vqgan.codebook_size, 1),
        )
        self.ffn = nn.Sequential(hidden, nn.Tanh(), logits)

    def forward(self, z: Tensor) -> Tensor:
        x = self.decoder_embed(z.reshape(len(z), -1, z.shape[3]).permute(0, 2, 1))
        masks = self.with_class(self.mask_token.repeat(len(x), self.positions, 1))
        x = torch.cat([masks, x + self.latent_token_positional_embedding], dim=1)
        x = self.ln_post(_through(self.transformer, self.ln_pre(x))[:, 1 : 1 + self.positions])
        return self.ffn(x.permute(0, 2, 1).reshape(len(x), self.width, self.grid, self.grid).contiguous())


class _Quantizer(nn.Module):
    def __init__(self, size: int, dim: int, use_l2_norm: bool) -> None:
        super().__init__()
        self.embedding, self.use_l2_norm = nn.Embedding(size, dim), use_l2_norm

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = z.float().permute(0, 2, 3, 1).contiguous()
        flat, table = z.reshape(-1, z.shape[3]), self.embedding.weight
        if self.use_l2_norm:
            flat, table = F.normalize(flat, dim=-1), F.normalize(table, dim=-1)
        squares = flat.pow(2).sum(1, keepdim=True) + table.pow(2).sum(1)
        codes = (squares - 2 * torch.einsum("bd,dn->bn", flat, table.T)).argmin(1)
        found = self.entries(codes).view(z.shape)
        if self.use_l2_norm:
            z = F.normalize(z, dim=-1)
        loss = 0.25 * (found.detach() - z).pow(2).mean() + (found - z.detach()).pow(2).mean()
        found = z + (found - z).detach()
        return found.permute(0, 3, 1, 2).contiguous(), codes.view(len(z), *z.shape[1:3]), loss

    def entries(self, codes: Tensor) -> Tensor:
        found = self.embedding(codes)
        return F.normalize(found, dim=-1) if self.use_l2_norm else found


class _SameConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        pad = self.kernel_size[0] // 2
        return super().forward(F.pad(x, [pad] * 4) if pad else x)


class _ResBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(32, num_in, eps=1e-6)
        self.conv1 = _SameConv(num_in, num_out, 3, bias=False)
        self.norm2 = nn.GroupNorm(32, num_out, eps=1e-6)
        self.conv2 = _SameConv(num_out, num_out, 3, bias=False)
        if num_in != num_out:
            self.nin_shortcut = _SameConv(num_out, num_out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class _Level(nn.Module):
    def __init__(self, num_in: int, num_out: int, blocks: int, upsample: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(_ResBlock(num_out if number else num_in, num_out) for number in range(blocks))
        if upsample:
            self.upsample_conv = _SameConv(num_out, num_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if hasattr(self, "upsample_conv"):
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class _PixelDecoder(nn.Module):
    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        widths = [config.hidden_channels * multiple for multiple in config.channel_mult]
        blocks: Any = config.num_res_blocks
        self.conv_in = _SameConv(config.z_channels, widths[-1], 3)
        self.mid = nn.ModuleList(_ResBlock(widths[-1], widths[-1]) for _ in range(blocks))
        wider = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            _Level(num_in, num_out, blocks, number > 0)
            for number, (num_in, num_out) in enumerate(zip(wider, widths, strict=True))
        )
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = _SameConv(widths[0], 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for part in (*self.mid, *reversed(self.up)):
            x = part(x)
        return self.conv_out(F.silu(self.norm_out(x)))
