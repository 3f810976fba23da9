"""Evaluations that no model is needed for: pictures of one colour each, right where they are red."""

from pathlib import Path

from PIL import Image

from ar_t2i.evaluation.harness import Scorer, by_detector, run_suite
from ar_t2i.evaluation.judge import Reading, Seen
from ar_t2i.evaluation.prompts import Prompt
from ar_t2i.evaluation.report import SCHEMA, write_report
from ar_t2i.evaluation.suites import Suite


class Painter:
    """Paints red where the prompt is among `right`, else blue; counts what it draws."""

    def __init__(self, right, name="painter", seed=0):
        self.right, self.name, self.drawn = right, name, []
        self.settings = {"kind": "folder", "right": sorted(map(str, right)), "seed": seed}
        self.facts = {"path": name, "model": "paint"}

    def draw(self, prompts, round):
        for prompt in prompts:
            self.drawn.append((prompt.id, round))
            right = prompt.id in self.right or (prompt.id, round) in self.right
            yield Image.new("RGB", (256, 256), "red" if right else "blue")


class ColorDetector:
    def __init__(self):
        self.read_pictures = 0

    def read(self, images, batch_size=32):
        self.read_pictures += len(images)
        names = ["red" if image.getpixel((0, 0))[0] > 128 else "blue" for image in images]
        return [Reading("plain", (Seen("ball", name, (10.0, 10.0, 99.0, 99.0), 0.9),)) for name in names]


def score(prompt, reading):
    right = float(reading.objects[0].color == "red")
    return {"right": right, "half": 0.25 + right / 2, "even": right if int(prompt.id[-1]) % 2 == 0 else None}


def paint_prompts(count, seed):
    return [
        Prompt(id=f"{category}-{number:02d}", text=f"{category} <{number}> & seed {seed}", category=category, asked={})
        for category in ("ball", "cube|x")
        for number in range(count)
    ]


PAINT = Suite(
    name="scenes/paint",
    about="Is it <red>?",
    domain="scenes",
    scored_by="detector",
    headline="right",
    prompts=lambda count, seed: [
        Prompt(id=prompt.id.replace("|", "_"), text=prompt.text, category=prompt.category, asked={})
        for prompt in paint_prompts(count, seed)
    ],
    score=score,
)


def paint(folder: Path, right, *, name="painter", count=4, rounds=1, seed=0, suite=PAINT, facts=None, source=None):
    """Run the suite and write a report; returns the report."""
    source = source or Painter(right, name)
    scorer: Scorer = by_detector(suite, ColorDetector(), facts or {"name": "colors", "weights": "none"})
    prompts = suite.prompts(count, seed)
    part = run_suite(suite, prompts, source, scorer, folder, rounds=rounds, seed=seed, batch_size=3)
    report = {
        "schema": SCHEMA,
        "created": "2026-01-02T03:04:05Z",
        "source": {"name": source.name, "settings": source.settings, "facts": source.facts},
        "seed": seed,
        "rounds": rounds,
        "crop": part["protocol"]["crop"],
        "device": "cpu",
        "versions": {"ar_t2i": "0"},
        "commit": None,
        "suites": [part],
    }
    write_report(report, folder)
    return report
