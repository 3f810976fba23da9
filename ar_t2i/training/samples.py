"""Pictures of fixed prompts at chosen steps, and the table "iteration x prompt" of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ar_t2i.hub.cards import plain
from ar_t2i.pipeline import TextToImagePipeline, make_grid
from ar_t2i.sampling.logits import SamplingConfig, Schedule

FIVE_PROMPTS = (
    "bird on a tree",
    "hard rock artist performing music",
    "a boat on the sea at sunset",
    "portrait of a smiling woman",
    "a house in the snow",
)


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """Pictures drawn while training."""

    every: int = 500
    """Draw after this many steps, and at the end; 0 draws at the end alone."""
    prompts: tuple[str, ...] = FIVE_PROMPTS
    """The prompts, a column of the table each."""
    num_images: int = 4
    """Pictures of each prompt, with seeds 0, 1, ..."""
    guidance_scale: float = 3.0
    """Classifier-free guidance, u + s (c - u); 1 is off. The bundle's default, as are the next seven."""
    guidance_schedule: Schedule = "constant"
    """How guidance goes over a picture's codes: the same all along, or rising from 1 towards guidance_scale."""
    guidance_power: float = 2.75
    """Of power-cosine: the higher, the later guidance sets in; 1 is cosine."""
    guidance_start: float = 0.0
    """Guide from this share of the picture's codes on, 0 to 1."""
    guidance_end: float = 1.0
    """Guide up to this share of the picture's codes, 0 to 1."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely code."""
    top_k: int = 0
    """Keep only the k most likely codes; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely codes until their chances add up to this."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.every < 0 or self.num_images < 1:
            raise ValueError(
                f"samples.every={self.every}, samples.num_images={self.num_images}: expected at least 0 and 1"
            )
        if not all(prompt.strip() for prompt in self.prompts):
            raise ValueError("samples.prompts: a prompt is empty; expected some words, or no prompts at all")
        _ = self.sampling  # checks its own ranges

    @property
    def sampling(self) -> SamplingConfig:
        """As the sampler's options."""
        return SamplingConfig(**{field.name: getattr(self, field.name) for field in fields(SamplingConfig)})


def draw_samples(pipeline: TextToImagePipeline, config: SamplesConfig, folder: Path, chosen: Sequence[int]) -> None:
    """Draw the prompts of some numbers and write one strip of pictures each, `folder/0.png`, `folder/1.png`, ..."""
    if not chosen:
        return
    count = config.num_images
    generators = [torch.Generator().manual_seed(seed) for _ in chosen for seed in range(count)]
    prompts = [config.prompts[number] for number in chosen]
    images = pipeline(prompts, num_images_per_prompt=count, generator=generators).images
    folder.mkdir(parents=True, exist_ok=True)
    for place, number in enumerate(chosen):
        make_grid(images[place * count : (place + 1) * count], columns=count).save(folder / f"{number}.png")


def write_table(output: Path, prompts: Sequence[str]) -> None:
    """Write samples.md: a row for each iteration that has pictures, a column for each prompt."""
    folders = sorted((output / "samples").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    prompts = [plain(prompt) for prompt in prompts]
    lines = ["| iteration | " + " | ".join(prompts) + " |", "|---" * (len(prompts) + 1) + "|"]
    for folder in folders:
        cells = [f"![{prompt}](samples/{folder.name}/{number}.png)" for number, prompt in enumerate(prompts)]
        lines.append(f"| {int(folder.name.removeprefix('step-')):,} | " + " | ".join(cells) + " |")
    (output / "samples.md").write_text("# Samples\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
