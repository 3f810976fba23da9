"""Several reports of one protocol as one page, and as text."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ar_t2i.evaluation.report.html import figure_cell, head, read_line, shot
from ar_t2i.evaluation.report.page import cell, facts_table, page, table
from ar_t2i.evaluation.report.plots import interval_plot
from ar_t2i.evaluation.report.sets import sets_lines, sets_table
from ar_t2i.evaluation.report.words import interval, number, spoken
from ar_t2i.evaluation.suites import FAULTS

_SHOWN = 208

ENOUGH = 20
"""Prompts from which on a bootstrap interval is taken at its word."""


def side_by_side(comparison: Mapping[str, Any]) -> str:
    """The page of a comparison, as `ar_t2i.evaluation.compare` makes it."""
    names = [model["name"] for model in comparison["models"]]
    body = [
        head("Comparison", " · ".join(names), [f"{len(names)} models", f"differences to {names[0]}"]),
        *(_section(part, names) for part in comparison["suites"]),
        "<h2>Models</h2>",
        *(_model(model) for model in comparison["models"]),
        "<footer>Differences are paired: the same prompts, drawn with replacement together (bootstrap), 95 % "
        f"intervals. One whose interval does not hold zero is coloured, from {ENOUGH} prompts on.</footer>",
    ]
    return page("Comparison of " + ", ".join(names), "<main>" + "\n".join(body) + "</main>")


def side_by_side_text(comparison: Mapping[str, Any]) -> str:
    """The tables of a comparison in Markdown."""
    names = [model["name"] for model in comparison["models"]]
    lines = [f"# {' / '.join(names)}", ""]
    for part in comparison["suites"]:
        lines += [f"## {part['suite']}", "", f"{_shared(part, names)}.", ""]
        lines.append("| metric | " + " | ".join([*names, *(f"{name} - {names[0]}" for name in names[1:])]) + " |")
        lines.append("|---" * (2 * len(names)) + "|")
        if part["rows"]:
            lines[-2:] = sets_lines({**part, "published": None})
            continue
        for metric in part["figures"][0]:
            values = [spoken(figures[metric]) if metric in figures else "–" for figures in part["figures"]]
            apart = [_signed(differences.get(metric)) for differences in part["differences"]]
            lines.append(f"| {metric} | " + " | ".join([*values, *apart]) + " |")
        lines.append("")
    return "\n".join(lines)


def _section(part: Mapping[str, Any], names: Sequence[str]) -> str:
    headline = part["headline"]
    if part["rows"]:
        return f'<h2>{escape(part["suite"])}</h2><p class="soft">{escape(part["about"])}</p>{sets_table(part)}'
    rows = {
        name: [categories.get(name, {}).get(headline) for categories in part["categories"]]
        for name in part["categories"][0]
    }
    whole = [figures.get(headline) for figures in part["figures"]]
    parts = [
        f"<h2>{escape(part['suite'])}</h2>",
        f'<p class="soft">{escape(part["about"].rstrip("."))}. {escape(_shared(part, names))}.</p>',
        f"<h3>{escape(headline.capitalize())}, by category</h3>",
        interval_plot({**rows, "all": whole}, names),
        "<h3>All metrics, shares in %</h3>",
        table(
            ["metric", *names, *(f"{name} − {names[0]}" for name in names[1:])],
            [_row(metric, part) for metric in part["figures"][0]],
        ),
    ]
    if part["apart"]:
        shown = "".join(_pair(each, names) for each in part["apart"])
        parts.append(f'<h3>Where they differ most</h3><div class="pair">{shown}</div>')
    return "\n".join(parts)


def _shared(part: Mapping[str, Any], names: Sequence[str]) -> str:
    """What is compared, and what is not."""
    said = f"{part['prompts']:,} prompts, {part['pictures']:,} pictures of each model"
    out = [f"{count:,} of {name}" for count, name in zip(part["left_out"], names, strict=True) if count]
    return f"{said}; pictures left out, as not all have their prompts or rounds: {', '.join(out)}" if out else said


def _row(metric: str, part: Mapping[str, Any]) -> list[str]:
    strong = metric == part["headline"]
    values = [figure_cell(figures.get(metric), strong) for figures in part["figures"]]
    apart = []
    for differences in part["differences"]:
        found = differences.get(metric)
        if found is None:
            apart.append(cell("–", -9))
            continue
        gain, loss = ("no", "yes") if metric in FAULTS else ("yes", "no")
        kind = "" if part["prompts"] < ENOUGH else gain if found["low"] > 0 else loss if found["high"] < 0 else ""
        apart.append(cell(number(found, sign="+"), found["value"], interval(found, "+"), kind))
    return [cell(metric), *values, *apart]


def _pair(each: Mapping[str, Any], names: Sequence[str]) -> str:
    frames, words = [], []
    for name, picture in zip(names, each["pictures"], strict=True):
        frames.append(shot(Path(picture["path"]), picture, _SHOWN))
        words.append(f"<div><b>{escape(name)}</b> {read_line(picture) or _scores(picture)}</div>")
    return (
        f'<figure class="shot"><div class="row">{"".join(frames)}</div><figcaption><q>{escape(each["text"])}</q>'
        f"{''.join(words)}</figcaption></figure>"
    )


def _scores(picture: Mapping[str, Any]) -> str:
    return escape(", ".join(f"{name} {value:.2f}" for name, value in picture["scores"].items() if value is not None))


def _model(model: Mapping[str, Any]) -> str:
    settings, about = model["source"]["settings"], model["source"]["facts"]
    facts = {
        "Pictures from": f"{settings['kind']}: {about['path']}",
        "Weights (sha256)": str(settings.get("weights", ""))[:16] or "–",
        "Sampling": ", ".join(f"{key} {value}" for key, value in settings.get("sampling", {}).items()) or "–",
        "Seed": settings.get("seed", "–"),
        "Report": model["folder"],
    }
    return f"<h3>{escape(model['name'])}</h3>{facts_table(facts)}"


def _signed(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    return f"{number(found, sign='+')} ({interval(found, '+')})"
