"""How often the scene verifier errs, and how often a bundle draws what it is asked for.

python benchmarks/scene_scores.py --verifier-only
python benchmarks/scene_scores.py --bundle ar_t2i/bundle --count 200 --sheet scenes.png
python benchmarks/scene_scores.py --image-tokenizer runs/tokenizer-scenes/tokenizer
"""

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import torch
from PIL import Image, ImageDraw

from ar_t2i.evaluation.scene_scores import (
    SPOILERS,
    Drawn,
    draw_and_judge,
    shares_of,
    verifier_shares,
)
from ar_t2i.evaluation.scenes import Reading, SceneVerifier, score_reconstruction
from ar_t2i.evaluation.statistics import Share
from ar_t2i.evaluation.suites.basic import CATEGORIES, prompts
from ar_t2i.image_tokenizer import ImageTokenizer, load_image_tokenizer
from ar_t2i.pipeline import TextToImagePipeline

TILE, TEXT, COLUMNS, KEPT = 160, 54, 10, 10
PARTS = ("right", "objects", "count", "relation", "place", "size")


def verifier_table(verifier: SceneVerifier, number: int, seed: int) -> None:
    """Print the share of fresh scenes that the verifier reads wholly rightly, with 95 % intervals."""
    print(f"read wholly rightly, of {number} fresh scenes each, seed {seed}:")
    print(f"| scenes | {' | '.join(SPOILERS)} |")
    print(f"|---|{'---|' * len(SPOILERS)}")
    for what in ("one object", "held-out pair", "two objects", "three objects", "free"):
        shares = verifier_shares(verifier, what, number, seed)
        print(f"| {what} | {' | '.join(map(str, shares.values()))} |", flush=True)


def reconstruction_table(image_tokenizer: ImageTokenizer, verifier: SceneVerifier, number: int, seed: int) -> None:
    """Print how many scenes are read as the original after the image tokenizer."""
    for split in ("validation", "heldout"):
        scores = score_reconstruction(image_tokenizer, verifier, number, seed, split)
        print(f"reconstruction, {number} scenes of {split}: PSNR {scores.psnr:.2f} dB, ", end="")
        print(f"{scores.distinct_codes} of {image_tokenizer.codebook_size} codes used")
        for objects, (right, total) in scores.same.items():
            print(f"  read as the original, {objects} object(s): {Share(right, total)} of {total}")


def generation_table(
    pipe: TextToImagePipeline, verifier: SceneVerifier, number: int, seed: int, batch_size: int
) -> dict[str, list[Drawn]]:
    """Print the share of pictures that are judged right, for each category of prompts; return the pictures."""
    print(f"drawn as asked, of {number} fresh prompts each, one picture a prompt, seed {seed}:")
    print(f"| prompts | {' | '.join(PARTS)} |")
    print(f"|---|{'---|' * len(PARTS)}")
    drawn = {}
    for category in CATEGORIES:
        drawn[category] = draw_and_judge(pipe, verifier, prompts(category, number, seed), seed, batch_size)
        shares = shares_of(drawn[category])
        print(f"| {category} | {' | '.join(str(shares[part]) for part in PARTS)} |", flush=True)
    return drawn


def say(reading: Reading) -> str:
    """A reading in a line."""
    objects = ", ".join(f"{seen.color or 'odd'} {seen.kind} {seen.score:.2f}" for seen in reading.objects)
    return f"{objects or 'nothing'}; {reading.place or 'nowhere known'}"


def sheet(path: Path, drawn: dict[str, list[Drawn]]) -> None:
    """Save for each category a row of pictures that are right and a row of those that are not."""
    rows: list[tuple[str, Sequence[Drawn]]] = []
    for category, pictures in drawn.items():
        for right in (True, False):
            chosen = [each for each in pictures if each.verdict.right == right][:KEPT]
            rows.append((f"{category}: {'right' if right else 'wrong'}", chosen))
    board = Image.new("RGB", (COLUMNS * TILE, len(rows) * (TILE + TEXT)), (255, 255, 255))
    pen = ImageDraw.Draw(board)
    for number, (title, pictures) in enumerate(rows):
        top = number * (TILE + TEXT)
        pen.text((2, top + 1), title, fill=(180, 0, 0))
        for column, each in enumerate(pictures):
            left = column * TILE
            board.paste(each.image.resize((TILE - 4, TILE - 4), Image.Resampling.LANCZOS), (left, top + 14))
            lines = [*wrap(each.prompt.text, 26)[:2], *wrap(f"read: {say(each.reading)}", 26)[:2]]
            pen.multiline_text((left, top + TILE + 9), "\n".join(lines), fill=(0, 0, 0), spacing=0)
    board.save(path, optimize=True)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description="How often the verifier errs, and a bundle draws what it is asked.")
    parser.add_argument("--verifier", type=Path, help="folder of a verifier; the shipped one where it is not given")
    parser.add_argument("--verifier-only", action="store_true", help="measure the verifier itself and stop")
    parser.add_argument("--bundle", help="folder or Hub id of a bundle to measure")
    parser.add_argument("--image-tokenizer", help="folder of an image tokenizer to measure, without a bundle")
    parser.add_argument("--count", type=int, default=200, help="scenes or prompts of each kind")
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--sheet", type=Path, help="save a sheet of right and wrong pictures here")
    options = parser.parse_args()
    verifier = SceneVerifier.from_pretrained(options.verifier)
    print(f"{platform.machine()}, {torch.get_num_threads()} thread(s), Python {platform.python_version()}")
    start = time.perf_counter()
    if options.verifier_only:
        verifier_table(verifier, options.count, options.seed)
    elif options.image_tokenizer:
        reconstruction_table(load_image_tokenizer(options.image_tokenizer), verifier, options.count, options.seed)
    elif options.bundle:
        pipe = TextToImagePipeline.from_pretrained(options.bundle)
        reconstruction_table(pipe.image_tokenizer, verifier, options.count, options.seed)
        drawn = generation_table(pipe, verifier, options.count, options.seed, options.batch_size)
        if options.sheet:
            sheet(options.sheet, drawn)
    else:
        parser.error("give --verifier-only, --bundle or --image-tokenizer")
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
