"""The model card of a run: what it was trained on, how it went, what it draws, how to use it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ar_t2i.hub.cards import LIBRARY, plain, write_card_text
from ar_t2i.hub.names import link_to
from ar_t2i.training.trackers import read_metrics

_CARD = """
# {name}

An autoregressive text-to-image model over 1D image tokens, trained on {rows:,} captioned pictures of `{dataset}`.
It needs `pip install ar_t2i`.

```bash
ar-t2i infer "bird on a tree" --bundle path/to/this/folder
```

```python
from ar_t2i import TextToImagePipeline

pipe = TextToImagePipeline.from_pretrained("path/to/this/folder")
pipe("bird on a tree").images[0].save("bird.png")
```

`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load it as well.
{samples}{scores}
The configuration of the run:

```yaml
{yaml}```
"""


SCORES = {
    "validation_image_loss": "image loss on unseen pictures, nats a code",
    "validation_text_loss": "text loss on their captions, nats an id",
    "validation_scene_score": "share of drawn pictures that show what unseen captions ask for",
    "validation_frechet_scenes": "Frechet distance of their features (scene verifier's) to those of real scenes",
    "validation_clip_score": "likeness of drawn pictures to unseen captions, CLIP's cosine",
    "validation_frechet_clip": "Frechet distance of their features (CLIP's) to those of unseen pictures",
    "image_loss_unigram": "image loss of a model that knows only how frequent each code is",
    "image_loss_chance": "image loss of a model that guesses",
}
"""What the card tells of a run's metrics."""


def run_card(
    output: Path, rows: int, dataset: str, base_model: str, prompts: Sequence[str], yaml: str
) -> tuple[str, dict[str, Image.Image]]:
    """The text of README.md and the pictures that belong to it, by file name.

    Args:
        output: folder of the run.
        rows: trained on.
        dataset: its folder or id.
        base_model: folder or id of the model that training started from, "" for none.
        prompts: of the samples.
        yaml: the configuration.
    """
    header: dict[str, Any] = dict(LIBRARY["bundle"])
    if link_to(dataset):
        header["datasets"] = [link_to(dataset)]
    if link_to(base_model):
        header["base_model"] = link_to(base_model)
    records, pictures = read_metrics(output / "metrics.jsonl"), {}
    samples = scores = ""
    strips = _newest_samples(output)
    if strips:
        pictures["samples.png"] = _stacked(strips)
        samples = f"\n![samples](samples.png)\n\nFrom top to bottom: {'; '.join(map(plain, prompts))}.\n"
    measured = [record for record in records if any(name.startswith("validation_") for name in record)]
    if measured:
        pictures["curves.png"] = draw_curves(records)
        last = {name: value for record in records for name, value in record.items()}
        table = "\n".join(f"| {label} | {last[name]:.3f} |" for name, label in SCORES.items() if name in last)
        scores = f"\n| after {measured[-1]['step']:,} steps | |\n|---|---|\n{table}\n\n![curves](curves.png)\n"
        header["model-index"] = [_results(output.name, dataset, last)]
    text = _CARD.format(name=output.name, rows=rows, dataset=dataset, yaml=yaml, samples=samples, scores=scores)
    return write_card_text(header, text), pictures


def _results(name: str, dataset: str, measured: Mapping[str, Any]) -> dict[str, Any]:
    """Scores in the form that the Hub shows and compares."""
    known = {name: label for name, label in SCORES.items() if name.startswith("validation_") and name in measured}
    metrics = [{"type": name, "name": label, "value": round(measured[name], 4)} for name, label in known.items()]
    data = {"name": dataset, "type": link_to(dataset) or Path(dataset).name}
    return {"name": name, "results": [{"task": {"type": "text-to-image"}, "dataset": data, "metrics": metrics}]}


def draw_curves(records: Sequence[dict[str, Any]]) -> Image.Image:
    """Image loss in training and on unseen pictures against steps, with the line of chance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, label, style in (("image_loss", "training", "-"), ("validation_image_loss", "unseen pictures", "o-")):
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), style, markersize=3, label=label)
    chance = next((record["image_loss_chance"] for record in records if "image_loss_chance" in record), None)
    if chance is not None:
        axes.axhline(chance, color="grey", linestyle=":", label="chance")
    axes.set_xlabel("steps")
    axes.set_ylabel("image loss, nats a code")
    axes.legend()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombuffer("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB")


def _newest_samples(output: Path) -> list[Image.Image]:
    folders = sorted((output / "samples").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    strips = []
    for path in sorted(folders[-1].glob("*.png"), key=lambda path: int(path.stem)) if folders else []:
        with Image.open(path) as image:
            strips.append(image.convert("RGB"))
    return strips


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    gap = 4
    height = sum(strip.height for strip in strips) + gap * (len(strips) - 1)
    whole, top = Image.new("RGB", (max(strip.width for strip in strips), height), "white"), 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height + gap
    return whole
