"""From a caption of 12 ids to 32 codes, with guidance: this sampler against transformers' own `generate`.

Both have the same random weights, prompts, guidance, threads and dtype. The faster of float32 and bfloat16 counts, and
for `generate` the faster of its dynamic and its static cache (which it compiles itself, on a GPU). With greedy choice
in float32 the codes must be equal. The floor is the time in which the machine reads the weights that a step needs, and
multiplies by them, once a step.
"""

import gc
import tempfile
from functools import partial
from pathlib import Path

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.utils import logging

from ar_t2i.device import has_fast_bf16
from ar_t2i.model.build import ModelConfig, as_rows, build_model
from ar_t2i.sampling.decoder import generate
from ar_t2i.sampling.logits import SamplingConfig
from ar_t2i.sampling.qwen3 import Qwen3
from ar_t2i.sequence import prompt_ids
from ar_t2i.vocabulary import Vocabulary
from benchmarks.machine import Options, Timing, bandwidth, compare, matrix_rate

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


def run(options: Options) -> None:
    """Print the table."""
    logging.disable_progress_bar()
    reads = bandwidth(options.device)
    dtypes = (torch.float32, torch.bfloat16) if has_fast_bf16(torch.device(options.device)) else (torch.float32,)
    rates = {dtype: matrix_rate(dtype, options.device) for dtype in dtypes}
    multiplies = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s in {str(dtype)[6:]}" for dtype, rate in rates.items())
    print(f"reads {reads / 1e9:.1f} GB/s, multiplies {multiplies}\n")
    print("| parameters | batch | generate | ar_t2i | ratio | floor | over it |\n" + "|---" * 7 + "|")
    for size in (10,) if options.small else SIZES:
        large = size == 330 and options.device == "cpu"  # a batch of 16 would take generate a minute there
        for batch in (1, 2) if options.small else (1,) if large else (1, 16):
            measure(size, batch, reads, rates, options)


def measure(size: int, batch: int, reads: float, rates: dict[torch.dtype, float], options: Options) -> None:
    """One line."""
    vocabulary = Vocabulary.from_pretrained(Path(__file__).parent.parent / "tokenizer")
    model = build_model(SIZES[size], vocabulary, seed=0).eval()
    model.resize_token_embeddings(30_000, mean_resizing=False)  # ids of the published dataset
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        network = Qwen3.from_folder(Path(folder)).to(options.device)
    model.to(options.device)
    captions = [[int(text_id) for text_id in vocabulary.text_ids[row : row + CAPTION]] for row in range(batch)]
    prompts = torch.stack([torch.from_numpy(prompt_ids(vocabulary, each)) for each in captions]).to(options.device)
    config = SamplingConfig(temperature=0.0, guidance_scale=GUIDANCE)
    best: dict[str, tuple[Timing, str, torch.dtype]] = {}
    for dtype in rates:
        model.to(dtype)
        network.to(dtype)
        ways = {"ar_t2i": partial(generate, network, vocabulary, captions, CODES, config, torch.zeros(batch, CODES))}
        for cache in ("dynamic", "static"):
            ways[cache] = partial(by_transformers, model, vocabulary, prompts, cache)
        if dtype == torch.float32:
            assert (ways["ar_t2i"]().cpu().numpy() == ways["dynamic"]()).all(), "the codes differ"
        for way, timing in compare(ways, options.device, options.times).items():
            side = "ours" if way == "ar_t2i" else "theirs"
            if side not in best or timing.median < best[side][0].median:
                best[side] = timing, way, dtype
    (their, way, their_dtype), (our, _, our_dtype) = best["theirs"], best["ours"]
    network.to(our_dtype)
    matrices = sum(weight.numel() for name, weight in network.weights.items() if "layers" in name)
    numbers = matrices + network.head_KD[as_rows(vocabulary.image_ids)].numel()
    reading = numbers * network.head_KD.element_size() / reads
    floor = CODES * max(reading, 2 * numbers * 2 * batch / rates[our_dtype])
    print(
        f"| {sum(weight.numel() for weight in model.parameters()) / 1e6:.0f} M | {batch} "
        f"| {their} ({str(their_dtype)[6:]}, {way}) | {our} ({str(our_dtype)[6:]}) | {their.median / our.median:.1f} "
        f"| {floor:.3f} s | {our.median / floor:.2f} |", flush=True,
    )  # fmt: skip
    del model, network
    gc.collect()
