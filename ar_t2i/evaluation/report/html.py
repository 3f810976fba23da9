"""A report as one page with its pictures."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ar_t2i.data.scenes import COLORS
from ar_t2i.evaluation.report.page import cell, chips, facts_table, page, picture_uri, table
from ar_t2i.evaluation.report.plots import bar, interval_plot
from ar_t2i.evaluation.report.sets import sets_card, sets_section
from ar_t2i.evaluation.report.words import interval, number, reading_words, scorer, source_facts, unit
from ar_t2i.evaluation.sources import SIZE

_SHOWN = 192
"""Edge of the pictures in the gallery, pixels."""


def html(report: Mapping[str, Any], out: Path) -> str:
    """The page; `out` is the folder that the pictures' names start from.

    Raises:
        ValueError: a picture that it shows is not there.
    """
    name = report["source"]["name"]
    body = [
        head("Evaluation", name, _chips(report)),
        '<div class="cards">' + "".join(_card(part) for part in report["suites"]) + "</div>",
        *(
            sets_section(part, out, _anchor(part)) if part.get("kind") == "distribution" else _section(part, out)
            for part in report["suites"]
        ),
        "<h2>What the figures hang on</h2>",
        facts_table(source_facts(report)),
        "<footer>Bars, whiskers and small print are 95 % intervals: Wilson's for shares of single pictures, else "
        "prompts drawn with replacement. report.json holds all figures, results.jsonl each picture's.</footer>",
    ]
    return page(f"{name}: evaluation", "<main>" + "\n".join(body) + "</main>")


def head(over: str, title: str, facts: Sequence[str]) -> str:
    """The top of a page."""
    return (
        f'<header><div><div class="over">ar_t2i · {escape(over)}</div><h1>{escape(title)}</h1>{chips(facts)}</div>'
        '<button id="boxes" title="show what was read">boxes</button>'
        '<button id="theme" title="change between dark and light">◐</button></header>'
    )


def shot(path: Path, result: Mapping[str, Any], size: int = _SHOWN) -> str:
    """A picture with what was read in it; boxes come up under the mouse."""
    boxes = "".join(
        f'<rect x="{x0:.0f}" y="{y0:.0f}" width="{max(x1 - x0, 0):.0f}" height="{max(y1 - y0, 0):.0f}" rx="4"/>'
        for x0, y0, x1, y1 in (each["box"] for each in (result["reading"] or {"objects": ()})["objects"])
    )
    overlay = f'<svg viewBox="0 0 {SIZE} {SIZE}" aria-hidden="true">{boxes}</svg>' if boxes else ""
    return (
        f'<div class="frame"><img src="{picture_uri(path, size)}" alt="{escape(result["text"])}" '
        f'loading="lazy">{overlay}</div>'
    )


def read_line(result: Mapping[str, Any]) -> str:
    """What was read in a picture, with a dot of each object's colour."""
    reading = result["reading"]
    if reading is None:
        return ""
    dots = "".join(
        f'<span class="dot" style="background:rgb{tuple(COLORS[each["color"]])}"></span>'
        for each in reading["objects"]
        if each["color"] in COLORS
    )
    return f"<div>{dots}{escape(reading_words(reading))}</div>"


def _chips(report: Mapping[str, Any]) -> list[str]:
    pictures = sum(part["pictures"] for part in report["suites"])
    return [
        f"{pictures:,} pictures",
        f"seed {report['seed']}",
        f"{report['rounds']} rounds" if report["rounds"] > 1 else "",
        report["created"][:10],
        f"ar_t2i {report['versions']['ar_t2i']}",
        f"commit {report['commit'][:10]}" if report["commit"] else "",
        report["device"],
    ]


def _card(part: Mapping[str, Any]) -> str:
    figure = part["figures"].get(part["headline"])
    title = f'<div class="soft">{escape(part["suite"])}</div>'
    if part.get("kind") == "distribution":
        return f'<a class="card" href="#{_anchor(part)}">{title}{sets_card(part)}</a>'
    if figure is None:
        return f'<a class="card" href="#{_anchor(part)}">{title}<div class="big">–</div></a>'
    return (
        f'<a class="card" href="#{_anchor(part)}">{title}<div class="big">{number(figure)}'
        f'<span class="unit">{unit(figure)} {escape(part["headline"])}</span></div>{bar(figure)}'
        f'<div class="soft">{interval(figure)} · {part["pictures"]:,} pictures</div></a>'
    )


def _section(part: Mapping[str, Any], out: Path) -> str:
    headline = part["headline"]
    rows = {name: [figures.get(headline)] for name, figures in part["categories"].items()}
    scored = scorer(part["protocol"]["scored_by"])
    parts = [
        f'<h2 id="{_anchor(part)}">{escape(part["suite"])}</h2>',
        f'<p class="soft">{escape(part["about"])}</p>',
        f"<h3>{escape(headline.capitalize())}, by category</h3>",
        interval_plot({**rows, "all": [part["figures"].get(headline)]}),
        "<h3>All metrics, shares in %</h3>",
        _table(part),
    ]
    for kind, title in (("right", "Right"), ("wrong", "Wrong")):
        shown = part["examples"][kind]
        if shown:
            shots = "".join(_figure(result, out / part["folder"], part) for result in shown)
            parts.append(f'<h3>{title}</h3><div class="gallery {kind}">{shots}</div>')
    parts.append(
        f'<p class="soft" style="margin-top:16px">Prompts {escape(part["protocol"]["prompts"])}; scored by '
        f"{escape(scored)}; drawn in {part['seconds_drawing']:,.0f} s, scored in {part['seconds_scoring']:,.0f} s.</p>"
    )
    return "\n".join(parts)


def _table(part: Mapping[str, Any]) -> str:
    metrics = list(part["figures"])

    def row(name: str, figures: Mapping[str, Any]) -> list[str]:
        return [cell(name), *(figure_cell(figures.get(metric), metric == part["headline"]) for metric in metrics)]

    rows = [row(name, figures) for name, figures in part["categories"].items()]
    return table(["category", *metrics], rows, row("all", part["figures"]))


def figure_cell(figure: Mapping[str, Any] | None, strong: bool = False) -> str:
    """A share with its interval in small print."""
    if figure is None:
        return cell("–", -1)
    small = interval(figure) + (f" ± {number(figure, 'deviation')}" if "deviation" in figure else "")
    return cell(number(figure), figure["value"], small, "head" if strong else "")


def _figure(result: Mapping[str, Any], folder: Path, part: Mapping[str, Any]) -> str:
    marks = "".join(_mark(name, value) for name, value in result["scores"].items() if name != part["headline"])
    return (
        f'<figure class="shot">{shot(folder / result["picture"], result)}<figcaption><q>{escape(result["text"])}</q>'
        f'{read_line(result)}<div class="marks">{marks}</div></figcaption></figure>'
    )


def _mark(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if value in (0.0, 1.0):
        return f'<span class="{"yes" if value else "no"}">{"✓" if value else "✗"} {escape(name)}</span>'
    return f"<span>{escape(name)} {value:.2f}</span>"


def _anchor(part: Mapping[str, Any]) -> str:
    return escape(part["suite"].replace("/", "-"))
