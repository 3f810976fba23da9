"""Measure how fast scenes are drawn, or draw the contact sheet of the docs.

python benchmarks/scenes.py
python benchmarks/scenes.py --sheet docs/images/scenes.png --seed 3
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ar_t2i.data.scenes import SPLITS, draw, example, scene_at, truth, write_shards

SHEET_COLUMNS, SHEET_ROWS, TILE, GAP = 6, 3, 128, 6


def rates(work: Callable[[], object], count: int) -> tuple[float, float]:
    """Run `work` twice; return pictures a second of CPU in the first (cold caches) and in the second run."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return count / seconds[0], count / seconds[1]


def processor() -> str:
    """Name the processor, as the system calls it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure(count: int, seed: int) -> None:
    """Print the table: pictures a second on one core, 256 x 256."""
    split = SPLITS[0]

    def draw_only() -> None:
        for index in range(count):
            draw(scene_at(seed, index, split)[0])

    def draw_and_truth() -> None:
        for index in range(count):
            scene, _ = scene_at(seed, index, split)
            draw(scene)
            truth(scene)

    def write(image_format: str) -> Callable[[], None]:
        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                write_shards(folder, count=count, seed=seed, split=split, image_format=image_format)

        return work

    first, again = rates(draw_only, count)
    print(f"{count} pictures of 256 x 256, one core, {processor()}, Python {platform.python_version()}")
    print("| work | pictures/s |")
    print("|---|---|")
    print(f"| draw, the first {count} (each object is drawn once and kept) | {first:.0f} |")
    print(f"| draw | {again:.0f} |")
    print(f"| draw, truth | {rates(draw_and_truth, count)[1]:.0f} |")
    print(f"| draw, truth, JPEG, tar | {rates(write('jpg'), count)[1]:.0f} |")
    print(f"| draw, truth, PNG, tar | {rates(write('png'), count)[1]:.0f} |")


def sheet(path: Path, seed: int) -> None:
    """Save a contact sheet of training pictures and print their captions."""
    step = TILE + GAP
    picture = Image.new("RGB", (SHEET_COLUMNS * step - GAP, SHEET_ROWS * step - GAP), (255, 255, 255))
    for number in range(SHEET_COLUMNS * SHEET_ROWS):
        tile, text, _ = example(seed, number)
        corner = (number % SHEET_COLUMNS * step, number // SHEET_COLUMNS * step)
        picture.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), corner)
        print(f"{number // SHEET_COLUMNS + 1}.{number % SHEET_COLUMNS + 1} {text}")
    picture.save(path, optimize=True)


def main() -> None:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description="Measure how fast scenes are drawn.")
    parser.add_argument("--count", type=int, default=2000, help="pictures to measure with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="save a contact sheet here and measure nothing")
    options = parser.parse_args()
    if options.sheet:
        sheet(options.sheet, options.seed)
    else:
        measure(options.count, options.seed)


if __name__ == "__main__":
    main()
