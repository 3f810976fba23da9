"""Measure a slot tokenizer on unseen scenes: python benchmarks/slots.py FOLDER [--pictures 1000] [--threads 1].

Prints PSNR, codes used, PSNR when only the first slots are kept, agreement of codes in bfloat16, and times an image.
"""

import argparse
import time

import torch

from ar_t2i.data import scenes
from ar_t2i.likeness import psnr
from ar_t2i.slots import SlotTokenizer
from ar_t2i.slots.codebook import CodeUsage


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure a slot tokenizer on unseen scenes.")
    parser.add_argument("folder")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = SlotTokenizer.from_pretrained(options.folder).eval()
    pictures = torch.from_numpy(scenes.batch(0, 0, options.pictures, "validation")[0]).permute(0, 3, 1, 2)
    batches = [part.float() / 255 for part in pictures.split(50)]

    codes = [tokenizer.encode(pixels) for pixels in batches]
    usage = CodeUsage(tokenizer.codebook_size)
    usage.add(torch.cat(codes))
    print(f"{options.pictures} unseen scenes, {options.threads} threads, torch {torch.__version__}")
    found = [float(psnr(tokenizer.decode(c), pixels).mean()) for c, pixels in zip(codes, batches, strict=True)]
    print(f"PSNR {sum(found) / len(found):.2f} dB")
    print(", ".join(f"{name} {value:.0f}" for name, value in usage.read().items()))

    for kept in (1, 2, 4, 8, 16):
        first = (torch.arange(tokenizer.num_codes) < kept)[:, None]
        painted = [tokenizer.paint(tokenizer.unmix(tokenizer.code_vectors[c] * first)).clamp(0, 1) for c in codes]
        found = [float(psnr(part, pixels).mean()) for part, pixels in zip(painted, batches, strict=True)]
        print(f"PSNR of the first {kept} codes alone: {sum(found) / len(found):.2f} dB")

    with torch.autocast("cpu", torch.bfloat16):
        fast = [tokenizer.encode(pixels) for pixels in batches]
    same = torch.cat(fast) == torch.cat(codes)
    print(f"codes of bfloat16 equal to those of float32: {same.float().mean():.1%}")
    found = [float(psnr(tokenizer.decode(c), pixels).mean()) for c, pixels in zip(fast, batches, strict=True)]
    print(f"PSNR of the codes of bfloat16: {sum(found) / len(found):.2f} dB")

    for name, call in (
        ("encode", lambda: tokenizer.encode(batches[0][:1])),
        ("decode", lambda: tokenizer.decode(codes[0][:1])),
    ):
        call()
        times = []
        for _ in range(20):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
        print(f"{name}: {sorted(times)[10] * 1000:.0f} ms an image (median of 20)")


if __name__ == "__main__":
    main()
