"""Seconds from a caption of 12 ids to 32 codes, with guidance: this sampler against transformers' own `generate`.

    python benchmarks/sampling.py [--sizes 10 100 330] [--batches 1 16] [--device cuda]

Both have the same random weights, prompts, guidance, threads and dtype; the faster of float32 and bfloat16 counts, and
for `generate` the faster of its dynamic and its static cache. With greedy choice in float32 the codes must be equal.
The floor is the time in which the machine reads all weights that a step needs, once a step.
"""

import argparse
from functools import partial

import torch
from machine import bandwidth, describe, seconds
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ar_t2i.bundles import shipped_bundle
from ar_t2i.model.build import ModelConfig, build_model
from ar_t2i.sampling.decoder import generate
from ar_t2i.sampling.logits import SamplingConfig
from ar_t2i.sampling.network import network_of
from ar_t2i.sequence import prompt_ids
from ar_t2i.vocabulary import Vocabulary

SIZES = {
    10: ModelConfig(hidden_size=256, num_layers=6, intermediate_size=768, head_dim=64),
    100: ModelConfig(hidden_size=768, num_layers=12, intermediate_size=2048, head_dim=64),
    330: ModelConfig(hidden_size=1024, num_layers=24, intermediate_size=2816, head_dim=64),
}
"""By millions of parameters, about."""
CODES, CAPTION, GUIDANCE = 32, 12, 3.0


class ImageIdsAlone(LogitsProcessor):
    """Leaves nothing but image ids to choose from."""

    def __init__(self, vocabulary: Vocabulary, num_ids: int, device: torch.device) -> None:
        self.bias_K = torch.full((num_ids,), float("-inf"), device=device)
        self.bias_K[torch.from_numpy(vocabulary.image_ids).to(device)] = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Add it."""
        return scores + self.bias_K  # type: ignore[return-value]


def by_transformers(model: PreTrainedModel, vocabulary: Vocabulary, prompts: torch.Tensor, cache: str) -> torch.Tensor:
    """Codes (B, T) by greedy `generate` with classifier-free guidance."""
    bare = torch.from_numpy(prompt_ids(vocabulary, ())).to(prompts.device).repeat(len(prompts), 1)
    only = ImageIdsAlone(vocabulary, model.config.vocab_size, prompts.device)
    found = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=CODES, min_new_tokens=CODES, do_sample=False,
        guidance_scale=GUIDANCE, negative_prompt_ids=bare, negative_prompt_attention_mask=torch.ones_like(bare),
        logits_processor=LogitsProcessorList([only]),
        cache_implementation=cache, pad_token_id=vocabulary.pad_id, use_cache=True,
    )  # fmt: skip
    return vocabulary.ids_to_codes(found[:, prompts.shape[1] :].cpu().numpy())


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    rate = bandwidth(options.device)
    print(f"{describe(options.device)}; reads {rate / 1e9:.1f} GB/s\n")
    print("| parameters | batch | generate, s | ar_t2i, s | ratio | floor, s | over the floor |\n" + "|---" * 7 + "|")
    for size in options.sizes:
        for batch in options.batches:
            measure(size, batch, rate, options.device, options.times)


def measure(size: int, batch: int, rate: float, device: str, times: int) -> None:
    """One line."""
    vocabulary = Vocabulary.from_pretrained(shipped_bundle())
    model = build_model(SIZES[size], vocabulary, seed=0).eval().to(device)
    captions = [list(range(300 + row, 300 + row + CAPTION)) for row in range(batch)]
    prompts = torch.stack([torch.from_numpy(prompt_ids(vocabulary, caption)) for caption in captions]).to(device)
    uniform_BT, config = torch.zeros(batch, CODES), SamplingConfig(temperature=0.0, guidance_scale=GUIDANCE)
    theirs, ours = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        network = network_of(model).to(dtype)
        here = partial(generate, network, vocabulary, captions, CODES, config, uniform_BT)
        ours[dtype] = seconds(here, device, times)
        for cache in ("dynamic", "static"):
            there = partial(by_transformers, model, vocabulary, prompts, cache)
            theirs[dtype, cache] = seconds(there, device, times)
        if dtype == torch.float32:
            assert (here().cpu().numpy() == there()).all(), "the codes differ"
    (way, their), (kind, our) = (min(found.items(), key=lambda item: item[1]) for found in (theirs, ours))
    weights = sum(weight.nbytes for weight in network_of(model.to(kind)).weights.values())
    floor = CODES * weights / rate
    spread = f"{our[0]:.3f} ± {our[1] / 2:.3f} ({str(kind)[6:]})"
    print(
        f"| {sum(weight.numel() for weight in model.parameters()) / 1e6:.0f} M | {batch} "
        f"| {their[0]:.3f} ± {their[1] / 2:.3f} ({str(way[0])[6:]}, {way[1]}) | {spread} | {their[0] / our[0]:.1f} "
        f"| {floor:.3f} | {our[0] / floor:.2f} |", flush=True,
    )  # fmt: skip


if __name__ == "__main__":
    main()
