"""How figures are said, on every kind of page."""

from collections.abc import Mapping
from typing import Any


def number(figure: Mapping[str, Any], which: str = "value", sign: str = "") -> str:
    """A figure's value, low, high or deviation: of a share "97.5", of a cosine "0.262"."""
    value = figure[which]
    return f"{value:{sign}.3f}" if figure["scale"] == "cosine" else f"{100 * value:{sign}.1f}"


def unit(figure: Mapping[str, Any]) -> str:
    """What stands behind the number."""
    return "" if figure["scale"] == "cosine" else " %"


def interval(figure: Mapping[str, Any], sign: str = "") -> str:
    """The interval of a figure: "94.1 to 99.0"."""
    return f"{number(figure, 'low', sign)} to {number(figure, 'high', sign)}"


def spoken(figure: Mapping[str, Any]) -> str:
    """A figure with its interval and, over several rounds, its deviation."""
    over = f", ± {number(figure, 'deviation')} over rounds" if "deviation" in figure else ""
    return f"{number(figure)}{unit(figure)} ({interval(figure)}{over})"


def reading_words(reading: Mapping[str, Any] | None) -> str:
    """What was seen: "red bird, tree; at night"."""
    if reading is None:
        return ""
    seen = [" ".join(word for word in (each["color"], each["kind"]) if word) for each in reading["objects"]]
    return ", ".join(seen or ["nothing"]) + (f"; {reading['place']}" if reading["place"] else "")


def source_facts(report: Mapping[str, Any]) -> dict[str, str]:
    """What the figures of a report hang on, name and value."""
    source, about = report["source"], report["source"]["facts"]
    settings = source["settings"]
    sampling = settings.get("sampling", {})
    averaged = {True: "yes", False: "no", None: "the bundle does not say"}
    size = [
        f"{about[name]} {unit}" for name, unit in (("layers", "layers"), ("hidden_size", "wide")) if about.get(name)
    ]
    facts = {
        "Pictures from": f"{settings['kind']}: {about['path']}",
        "Model": ", ".join([str(about.get("model", "")), *size]),
        "Weights (sha256)": str(settings.get("weights", ""))[:16],
        "Averaged weights (EMA)": averaged[about["averaged_weights"]] if "averaged_weights" in about else "",
        "Image tokenizer": _tokenizer(settings, about),
        "Sampling": ", ".join(f"{name} {value}" for name, value in sampling.items()) or "the model's own",
        "Seed and rounds": f"{report['seed']}, {report['rounds']} a prompt",
        "Arithmetic": settings.get("dtype", ""),
        "Crop": report["crop"],
        "Device": report["device"],
        "Versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "Commit": report["commit"] or "not in a checkout",
        "Made": report["created"],
    }
    return {name: value for name, value in facts.items() if value}


def _tokenizer(settings: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    if "image_tokenizer" not in settings:
        return ""
    return f"{settings['image_tokenizer'][:16]}, {about['tokens_per_picture']} codes of {about['codebook']:,}"


def scorer(facts: Mapping[str, Any]) -> str:
    """What scores pictures, with what is known of it."""
    known = [value if name == "name" else f"{name} {value}" for name, value in facts.items() if value is not None]
    return ", ".join(map(str, known))
