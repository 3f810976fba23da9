"""TiTok's encode and decode against the original's modules in eager float32, and pictures a second from the prompt on.

Both have the same random weights, pixels and threads. In float32 they must agree, so that this is a proof of parity
too; what is timed is the arithmetic that this machine is given by `Encoder` and by the pipeline. The operations are
counted in what runs (convolutions by minimal filtering need fewer), and set against a large matrix product's rate.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from ar_t2i.bundles import Bundle
from ar_t2i.data.encode import Encoder
from ar_t2i.device import has_fast_bf16
from ar_t2i.likeness import psnr
from ar_t2i.model.build import ModelConfig, build_model
from ar_t2i.painting import decode_in, painting_dtype
from ar_t2i.pipeline import TextToImagePipeline
from ar_t2i.sampling.logits import SamplingConfig
from ar_t2i.sampling.network import network_of
from ar_t2i.sampling.qwen3 import Qwen3
from ar_t2i.titok import TiTok
from ar_t2i.titok.config import ViTSize, VQGANConfig, published_config
from ar_t2i.vocabulary import Vocabulary
from benchmarks.machine import Options, bandwidth, compare, matrix_rate
from benchmarks.original_titok import OriginalTiTok

CAPTION = "a red bird on the branch of a tree beside a blue house"


def run(options: Options) -> None:
    """Print both tables."""
    fast = has_fast_bf16(torch.device(options.device))
    dtypes = (torch.float32, torch.bfloat16) if fast else (torch.float32,)
    rates = {dtype: matrix_rate(dtype, options.device) for dtype in dtypes}
    print(", ".join(f"{str(dtype)[6:]} {rate / 1e12:.3g} TFLOP/s" for dtype, rate in rates.items()), "by a product\n")
    print("| TiTok | pictures | way | original, a picture | ar_t2i, a picture | in | ratio | like float32 "
          "| GFLOP, original | ar_t2i | of the product's rate, original | ar_t2i |\n" + "|---" * 12 + "|")  # fmt: skip
    batches = {"s128": (1, 64), "b64": (1, 64), "l32": (1, 64)}
    if options.device == "cpu":
        batches = {"s128": (1, 4), "b64": (1,), "l32": (1,)}
    for name, sizes in {"tiny": (1, 2)}.items() if options.small else batches.items():
        titok = make(name, options.device)
        for batch in sizes:
            side_by_side(name, titok, batch, rates, options)
    print()
    end_to_end(titok, rates, options)


def make(name: str, device: str) -> TiTok:
    """A second stage with random weights, of a published size or, to see that all runs, a tiny one."""
    if name == "tiny":
        size = ViTSize(width=64, num_layers=2, num_heads=4)
        vqgan = VQGANConfig(hidden_channels=32, channel_mult=(1, 1, 1, 1, 1), num_res_blocks=1, z_channels=32)
        config = replace(published_config("l32"), crop_size=64, vit_enc_size=size, vit_dec_size=size, vqgan=vqgan)
    else:
        config = published_config(name)
    generator = torch.Generator(device).manual_seed(0)
    titok = TiTok.from_scratch(config, generator).eval().requires_grad_(False)
    # As training makes them: fresh logits are all but even, and the norms would blow up the rounding of what is left.
    titok.get_parameter("decoder.ffn.2.weight").mul_(30)
    titok.pixel_quantize.embedding.weight.normal_(generator=generator)
    return titok


def original_of(titok: TiTok) -> OriginalTiTok:
    """The original's modules around the same tensors."""
    with torch.device("meta"):
        original = OriginalTiTok(titok.config)
    original.load_state_dict(titok.state_dict(), assign=True)
    return original.eval().requires_grad_(False)


@torch.inference_mode()
def side_by_side(name: str, titok: TiTok, batch: int, rates: dict[torch.dtype, float], options: Options) -> None:
    """Two lines of the first table."""
    device, original = options.device, original_of(titok)
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(batch, 3, 16, 16, generator=generator)
    pictures = torch.nn.functional.interpolate(coarse, size=titok.image_size, mode="bicubic").clamp(0, 1)
    pictures = (pictures * 255).byte().to(device)
    pixels = pictures / 255.0
    codes = torch.randint(titok.codebook_size, (batch, titok.num_codes), generator=generator).to(device)
    arrays = list(pictures.permute(0, 2, 3, 1).cpu().numpy())

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact_codes, exact_pixels = original.encode(pixels).flatten(1), original.decode_tokens(codes).clamp(0, 1)
        same = (titok.encode(pixels) == exact_codes).float().mean().item()
        error = (titok.decode(codes) - exact_pixels).abs().max().item()
    assert same >= 0.99, f"{same:.2%} of the codes are the original's"
    assert error < 1e-3, f"a pixel differs by {error:g} from the original's"

    encoder = Encoder(titok, device, say=lambda text: None)
    same = (torch.from_numpy(encoder(arrays)).to(device) == exact_codes).float().mean().item()
    dtype = getattr(torch, encoder.dtype)
    line(f"{name} | {batch} | encode", batch, rates, options, lambda: original.encode(pixels),
         lambda: encoder(arrays), dtype, f"{same:.1%} of the codes")  # fmt: skip

    dtype = painting_dtype(titok, torch.device(device))
    ours = partial(decode_in, dtype, titok, codes)
    quality = psnr(ours(), exact_pixels).min().item()
    line(f"{name} | {batch} | decode", batch, rates, options, lambda: original.decode_tokens(codes).clamp(0, 1),
         ours, dtype, f"{quality:.0f} dB")  # fmt: skip


def line(
    what: str,
    batch: int,
    rates: dict[torch.dtype, float],
    options: Options,
    theirs: Callable[[], object],
    ours: Callable[[], object],
    dtype: torch.dtype,
    likeness: str,
) -> None:
    """One line of the first table."""
    counts = [operations(work) for work in (theirs, ours)]
    taken = compare({"theirs": theirs, "ours": ours}, options.device, options.times)
    their, our = taken["theirs"], taken["ours"]
    shares = counts[0] / their.median / rates[torch.float32], counts[1] / our.median / rates[dtype]
    each = [f"{time.median / batch * 1e3:.4g} ± {time.spread / batch * 5e2:.2g} ms" for time in (their, our)]
    print(f"| {what} | {each[0]} | {each[1]} | {str(dtype)[6:]} | {their.median / our.median:.2f} | {likeness} "
          f"| {counts[0] / batch / 1e9:.4g} | {counts[1] / batch / 1e9:.4g} | {shares[0]:.0%} | {shares[1]:.0%} |",
          flush=True)  # fmt: skip


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products, convolutions and attention that run, two a multiplication."""
    kernels = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    counted = {getattr(torch.ops.aten, f"_scaled_dot_product_{name}"): _attention for name in kernels}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        work()
    return counter.get_total_flops()


def _attention(query: tuple, key: tuple, *_: object, **__: object) -> int:
    """Torch's own count knows no CPU, and no heads that share keys."""
    return 4 * math.prod(query) * key[-2]


def end_to_end(titok: TiTok, rates: dict[torch.dtype, float], options: Options) -> None:
    """Prompts to uint8 pictures by the pipeline, with guidance, and the parts that this consists of."""
    on_gpu = options.device.startswith("cuda")
    batch = 256 if on_gpu and not options.small else 2
    vocabulary = Vocabulary.train([CAPTION], size=8192, codebook_size=titok.codebook_size, min_frequency=1)
    size = ModelConfig(hidden_size=1024, num_layers=24, intermediate_size=2816, head_dim=64)
    if options.small:
        size = ModelConfig(hidden_size=128, num_layers=2, intermediate_size=256, head_dim=32)
    dtype = torch.bfloat16 if torch.bfloat16 in rates else torch.float32
    network = network_of(build_model(size, vocabulary, seed=0).eval())
    assert isinstance(network, Qwen3)
    network.to(options.device).to(dtype)
    pipe = TextToImagePipeline(Bundle(network, vocabulary, titok, SamplingConfig(guidance_scale=3.0)))
    prompts, captions = [CAPTION] * batch, pipe.encode_prompts([CAPTION] * batch)
    uniform_BT = torch.rand(batch, titok.num_codes, generator=torch.Generator().manual_seed(0))
    sample = partial(pipe.draw_codes, captions, pipe.sampling, uniform_BT)
    codes_BT = sample()
    paint_in = painting_dtype(titok, torch.device(options.device))
    decode = partial(decode_in, paint_in, titok, codes_BT)

    def whole() -> list:
        return pipe(prompts, batch_size=batch).images

    taken = compare({"whole": whole, "sampling": sample, "decode": decode}, options.device, options.times)
    seconds = {name: time.median for name, time in taken.items()}
    rest = max(seconds["whole"] - seconds["sampling"] - seconds["decode"], 0.0)
    weights = sum(weight.nbytes for weight in network.weights.values())
    floors = {
        "sampling": max(
            operations(sample) / rates[dtype], titok.num_codes * weights / bandwidth(options.device)
        ),
        "decode": operations(decode) / rates[paint_in],
    }  # fmt: skip
    parameters = sum(weight.numel() for weight in network.weights.values()) / 1e6
    print(f"{batch} prompts, a decoder of {parameters:.0f} M parameters in {str(dtype)[6:]}, TiTok with "
          f"{sum(weight.numel() for weight in titok.parameters()) / 1e6:.0f} M in {str(paint_in)[6:]}: "
          f"{batch / seconds['whole']:.3g} pictures/s\n")  # fmt: skip
    print("| part | time | share | least time by this machine's rates | over it |\n" + "|---" * 5 + "|")
    for name in ("sampling", "decode"):
        print(f"| {name} | {taken[name]} | {seconds[name] / seconds['whole']:.0%} | {floors[name] * 1e3:.4g} ms "
              f"| {seconds[name] / floors[name]:.2f} |")  # fmt: skip
    print(f"| the rest: ids, copies, uint8, PIL | {rest * 1e3:.3g} ms | {rest / seconds['whole']:.0%} | | |")
    print(f"| whole | {taken['whole']} | 100% | {sum(floors.values()) * 1e3:.4g} ms "
          f"| {seconds['whole'] / sum(floors.values()):.2f} |")  # fmt: skip
    print(f"\nMost of the time goes to {max(floors, key=lambda name: seconds[name])}.", flush=True)
